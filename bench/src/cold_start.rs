//! Cold start: starts a server, and measures how long until it is ready and until its first token, and its memory.
//!
//! "Cold" is the process, not the disk: one start that is not counted comes first, so that the model's file is
//! in the page cache for every server alike. Memory is Linux's `VmHWM`, which includes the mapped model file.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::json;

use crate::client::{Client, Server};
use crate::machine::{Machine, command_for_readers, now_utc};
use crate::output::{RESULTS_FILE, TABLE_FILE};
use crate::process::{Memory, POLL_PAUSE, Running};
use crate::request::{AnswerShape, Question};
use crate::results::FORMAT;
use crate::stats::Spread;

/// What to start, and how to see that it is up.
#[derive(Debug)]
pub struct ColdStart {
    /// Name in tables.
    pub name: String,
    /// Answers 200 when the server is ready.
    pub ready_url: String,
    /// Base address of the OpenAI endpoints.
    pub url: String,
    /// Model that the request names; the first one listed otherwise.
    pub model: Option<String>,
    /// Bearer token.
    pub api_key: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Starts that count.
    pub rounds: usize,
    /// Longest time until the first token.
    pub timeout: Duration,
}

/// One start.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Start {
    /// From the process's start until the ready address answered 200.
    pub ready_s: f64,
    /// From the process's start until the first token.
    pub first_token_s: f64,
    /// Peak resident memory, with the mapped file.
    pub peak_resident_mib: f64,
    /// Resident memory after the first token.
    pub resident_mib: f64,
    /// The part of it that is no file: KV cache, buffers, heap.
    pub anonymous_mib: f64,
}

impl ColdStart {
    /// Starts the command again and again; the first start is not counted.
    ///
    /// # Errors
    /// When the command cannot be started, ends too early, or is not ready in time.
    pub fn measure(&self) -> anyhow::Result<Vec<Start>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut starts = Vec::new();
        for round in 0..=self.rounds {
            let start = runtime.block_on(self.start_once()).with_context(|| format!("start {round}"))?;
            eprintln!(
                "start {round}: ready after {:.3} s, first token after {:.3} s",
                start.ready_s, start.first_token_s
            );
            if round > 0 {
                starts.push(start);
            }
        }
        Ok(starts)
    }

    async fn start_once(&self) -> anyhow::Result<Start> {
        let client = Client::new(self.timeout, self.timeout);
        ensure!(!client.is_ok(&self.ready_url).await, "{} answers before the start", self.ready_url);
        let (program, arguments) = self.command.split_first().context("no command")?;
        let started = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut running = Running(child);
        while !client.is_ok(&self.ready_url).await {
            if let Some(status) = running.0.try_wait()? {
                bail!("the command ended with {status} before it was ready");
            }
            ensure!(started.elapsed() < self.timeout, "not ready after {:?}", self.timeout);
            tokio::time::sleep(POLL_PAUSE).await;
        }
        let ready_s = started.elapsed().as_secs_f64();
        let model = match &self.model {
            Some(model) => model.clone(),
            None => {
                let first = client.first_model(&self.url, self.api_key.as_deref()).await;
                first.map_err(anyhow::Error::msg)?
            }
        };
        let body = json!({
            "model": model, "stream": true, "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": "Say hello."}],
        });
        let (url, api_key) = (self.url.clone(), self.api_key.clone());
        let server = Server { name: self.name.clone(), url, model, api_key, ..Server::default() };
        let intended = tokio::time::Instant::now();
        let (path, shape) = ("/v1/chat/completions", AnswerShape::Stream);
        let question = Question { path, body: body.to_string().into(), shape };
        let reply = client.ask(&server, &question, intended, |_| {}).await;
        if let Some((kind, message)) = reply.failure {
            bail!("the first request failed: {kind}: {message}");
        }
        let first_token = reply.deltas.first().context("the first request had no token")?;
        let first_token_s = first_token.into_std().duration_since(started).as_secs_f64();
        let memory = Memory::of(running.0.id()).context("the process's memory cannot be read")?;
        Ok(Start {
            ready_s,
            first_token_s,
            peak_resident_mib: memory.peak_resident_mib,
            resident_mib: memory.resident_mib,
            anonymous_mib: memory.anonymous_mib,
        })
    }

    /// The starts for people.
    pub fn table(&self, starts: &[Start], machine: &Machine) -> String {
        let mut text = format!(
            "# Cold start of {}\n\nWorkload `cold-start`, {}, quern-bench {}.  \nMachine: {machine}.  \nCommand: `{}`\n\n",
            self.name,
            now_utc(),
            env!("CARGO_PKG_VERSION"),
            command_for_readers(self.command.iter().map(String::as_str)),
        );
        text.push_str("The model's file was in the page cache.\n\n");
        text.push_str("| | median | range | starts |\n|---|---:|---|---:|\n");
        type Row = (&'static str, fn(&Start) -> f64);
        let rows: [Row; 5] = [
            ("ready after s", |start| start.ready_s),
            ("first token after s", |start| start.first_token_s),
            ("peak resident MiB", |start| start.peak_resident_mib),
            ("resident MiB", |start| start.resident_mib),
            ("of it no file MiB", |start| start.anonymous_mib),
        ];
        for (name, value) in rows {
            if let Some(Spread { median, min, max, count }) = Spread::of(starts.iter().map(value)) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "| {name} | {median:.3} | {min:.3} to {max:.3} | {count} |");
            }
        }
        text
    }

    /// Writes table and single starts into a folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path, starts: &[Start], machine: &Machine) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(TABLE_FILE), self.table(starts, machine))?;
        let version = env!("CARGO_PKG_VERSION");
        let mut lines =
            vec![json!({"type": "cold_start", "format": FORMAT, "bench_version": version}).to_string()];
        for start in starts {
            lines.push(serde_json::to_string(start)?);
        }
        std::fs::write(folder.join(RESULTS_FILE), lines.join("\n") + "\n")?;
        Ok(())
    }
}
