//! Where experiments are made: nodes, the node's other commands, requests, scratch files, and the progress that is shown.
//!
//! Everything that takes time goes through [`Lab::wait`], which ends early when the process is told to stop, so that
//! nodes end and scratch files go with it.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::load::{Ask, REQUEST_TIMEOUT, STALL_TIMEOUT, send_all};
use super::sheet::Sheet;
use super::texts;
use crate::client::{Client, Server};
use crate::node::{Node, NodeSettings};
use crate::process::Running;
use crate::reply::Reply;

/// Time for a node to be ready: long enough for a large model from a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two looks at a command that runs.
const COMMAND_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a command's words that an error repeats.
const MAX_WORDS: usize = 400;

/// The process was told to end.
#[derive(Debug, Error)]
#[error("stopped by a signal; no results were written")]
pub struct Stopped;

/// What all experiments are told.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The program `quern`.
    pub quern: PathBuf,
    /// The model's file.
    pub model: PathBuf,
    /// Whether to be done in minutes, with fewer rounds, levels and rows.
    pub is_quick: bool,
    /// How often each setting is measured.
    pub rounds: usize,
    /// Threads of each node and command.
    pub threads: usize,
    /// Keys and values that every node gets.
    pub set: Vec<String>,
    /// The text that perplexity is judged by; the program's own without it.
    pub text: Option<PathBuf>,
    /// Labelled rows, columns text and label; the program's own without it.
    pub csv: Option<PathBuf>,
    /// The system's message before each row.
    pub system: Option<String>,
}

/// A node with what requests need to reach it.
#[derive(Debug)]
pub struct Served {
    /// The process.
    pub node: Node,
    /// Where requests go.
    pub server: Server,
}

/// See the module's text.
#[derive(Debug)]
pub struct Lab {
    /// What was asked for.
    pub wish: Wish,
    runtime: Runtime,
    signals: RefCell<[Signal; 2]>,
    client: Client,
    bar: ProgressBar,
    num_started: Cell<u64>,
    num_texts: Cell<u64>,
    scratch: TempDir,
}

impl Lab {
    /// A lab with its scratch folder in `out`, on the disk that results go to.
    ///
    /// # Errors
    /// When the folder cannot be made, or the system gives no runtime.
    pub fn new(wish: Wish, out: &Path) -> anyhow::Result<Self> {
        let told = || format!("cannot write into {}", out.display());
        std::fs::create_dir_all(out).with_context(told)?;
        let scratch = tempfile::Builder::new().prefix(".experiment-").tempdir_in(out).with_context(told)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            RefCell::new([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?])
        };
        let bar = ProgressBar::new(0);
        let style = "{bar:30} {pos}/{len} [{elapsed}] {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
        bar.enable_steady_tick(Duration::from_millis(500));
        let client = Client::new(STALL_TIMEOUT, REQUEST_TIMEOUT);
        Ok(Self {
            wish,
            runtime,
            signals,
            client,
            bar,
            num_started: Cell::new(0),
            num_texts: Cell::new(0),
            scratch,
        })
    }

    /// Waits for some work.
    ///
    /// # Errors
    /// The work's, or [`Stopped`].
    pub fn wait<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut signals = self.signals.borrow_mut();
        let [terminate, interrupt] = &mut *signals;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = terminate.recv() => Err(Stopped.into()),
                _ = interrupt.recv() => Err(Stopped.into()),
                done = work => done,
            }
        })
    }

    /// Requests are sent by this.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends requests at once and waits for all.
    ///
    /// # Errors
    /// Says how the first failed, if one did.
    pub fn ask(&self, served: &Served, asks: &[Ask]) -> anyhow::Result<Vec<Reply>> {
        self.wait(send_all(&self.client, &served.server, asks))
    }

    /// A number that no text of this experiment had before.
    pub fn next_text(&self) -> u64 {
        self.num_texts.replace(self.num_texts.get() + 1)
    }

    /// Settings of a node of this model with what all nodes get.
    pub fn settings(&self, model: &Path) -> NodeSettings {
        let threads = self.wish.threads;
        let settings = NodeSettings::new(model.display().to_string())
            .with("--threads", threads)
            .with("--threads-prefill", threads);
        self.wish.set.iter().fold(settings, |settings, pair| settings.also("--set", pair))
    }

    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(&self, settings: &NodeSettings) -> anyhow::Result<Served> {
        let name = format!("node-{}", self.num_started.replace(self.num_started.get() + 1));
        let place = (self.scratch.path(), name.as_str());
        let start = Node::start(&self.wish.quern, settings, place, START_TIMEOUT);
        let node = self.wait(async { Ok(start.await?) })?;
        let server = Server { name, url: node.url.clone(), model: node.model.clone(), ..Server::default() };
        Ok(Served { node, server })
    }

    /// Runs a command of the node's program and gives back what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; repeats its last words.
    pub fn quern<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        let path = |name: &str| self.scratch.path().join(name);
        let (out, err) = (path("command.out"), path("command.err"));
        let mut command = Command::new(&self.wish.quern);
        command.args(arguments).stdin(Stdio::null());
        let child = command
            .stdout(std::fs::File::create(&out)?)
            .stderr(std::fs::File::create(&err)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.wish.quern.display()))?;
        let mut running = Running(child);
        let status = self.wait(async {
            loop {
                if let Some(status) = running.0.try_wait()? {
                    return Ok(status);
                }
                tokio::time::sleep(COMMAND_PAUSE).await;
            }
        })?;
        let printed = std::fs::read_to_string(&out)?;
        if !status.success() {
            let words = String::from_utf8_lossy(&std::fs::read(&err)?).trim().to_owned();
            let start = words.char_indices().rev().nth(MAX_WORDS).map_or(0, |(idx, _)| idx);
            let name = command.get_args().next().unwrap_or_default().to_string_lossy();
            bail!("quern {name}: {status}: {}", &words[start..]);
        }
        Ok(printed)
    }

    /// A file that goes when the experiment ends.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The text that perplexity is judged by, as a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text_file(&self) -> anyhow::Result<PathBuf> {
        self.file_or(self.wish.text.as_ref(), "text.txt", texts::prose_text())
    }

    /// The labelled rows, as a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rows_file(&self) -> anyhow::Result<PathBuf> {
        self.file_or(self.wish.csv.as_ref(), "rows.csv", texts::ROWS)
    }

    fn file_or(&self, given: Option<&PathBuf>, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        if let Some(path) = given {
            return Ok(path.clone());
        }
        let path = self.scratch(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Says how many steps the progress bar has.
    pub fn expect_steps(&self, count: usize) {
        self.bar.set_length(count as u64);
    }

    /// Says what is done now.
    pub fn say(&self, what: impl Into<String>) {
        let what = what.into();
        if self.bar.is_hidden() {
            eprintln!("{what}");
        }
        self.bar.set_message(what);
    }

    /// A step is done.
    pub fn advance(&self) {
        self.bar.inc(1);
    }

    /// Does one step for a setting. If it fails, the sheet has the reason, and the experiment goes on.
    ///
    /// # Errors
    /// Only [`Stopped`].
    pub fn attempt<T>(
        &self,
        sheet: &mut Sheet,
        setting: &str,
        work: impl FnOnce(&mut Sheet) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        let done = if sheet.has_failed(setting) { Ok(None) } else { work(sheet).map(Some) };
        self.advance();
        match done {
            Err(error) if error.is::<Stopped>() => Err(error),
            Err(error) => {
                self.say(format!("{setting} failed: {error:#}"));
                sheet.fail(setting, format!("{error:#}"));
                Ok(None)
            }
            Ok(done) => Ok(done),
        }
    }

    /// Measures settings in turn, A B A B, as often as was asked for. One that failed is not tried again.
    ///
    /// # Errors
    /// Only [`Stopped`].
    pub fn rounds<S>(
        &self,
        sheet: &mut Sheet,
        settings: &[(String, S)],
        mut measure: impl FnMut(&mut Sheet, (&str, &S), usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for round in 0..self.wish.rounds {
            for (name, setting) in settings {
                self.say(format!("round {} of {}: {name}", round + 1, self.wish.rounds));
                self.attempt(sheet, name, |sheet| measure(sheet, (name, setting), round))?;
            }
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
