//! `quern policy record`: keeps steps of a node that serves, by its operators'
//! endpoints. A client of a node, and no part of one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

/// Time between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is read, the file apart.
const MAX_ANSWER: u64 = 64 << 10;

/// `quern policy record`.
#[derive(Debug, Clone, Args)]
pub struct RecordArgs {
    /// The node's operators' endpoint.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub admin: String,
    /// Steps to keep.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// How long to wait for them, in seconds; what there is by then is kept.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub seconds: u64,
    /// Write the recording here; without it, it stays with the node.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nobody answers.
    #[error("{url}: {source}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The node says no.
    #[error("the node says: {0}")]
    Refused(String),
    /// The node answers what no node answers.
    #[error("{url} gives no answer of a node: {why}")]
    Strange {
        /// What was asked.
        url: String,
        /// What is strange.
        why: String,
    },
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Begins a recording, waits for it, and fetches its file. Blocks.
///
/// # Errors
/// [`RecordError`].
pub fn record(args: &RecordArgs) -> Result<(), RecordError> {
    let node = Node::at(&args.admin);
    let begun = node.ask("POST", Some(&json!({"steps": args.steps})))?;
    eprintln!("recording {} steps to {}", args.steps, begun["file"].as_str().unwrap_or("a file of the node"));
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let mut state = begun;
    while state["running"] == true && Instant::now() < until {
        thread::sleep(LOOK);
        state = node.ask("GET", None)?;
    }
    if state["running"] == true {
        // It may have ended just now, which is as well.
        match node.ask("DELETE", None) {
            Ok(_) | Err(RecordError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        while state["running"] == true {
            thread::sleep(LOOK);
            state = node.ask("GET", None)?;
        }
    }
    if let Some(path) = &args.out {
        node.fetch(path)?;
    }
    eprintln!("{} steps, {} missed, {} bytes", state["steps"], state["missed"], state["bytes"]);
    Ok(())
}

/// A node's endpoint for recordings.
struct Node {
    url: String,
    agent: Agent,
}

impl Node {
    fn at(admin: &str) -> Node {
        let url = format!("{}/v1/recording", admin.trim_end_matches('/'));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .build()
            .into();
        Node { url, agent }
    }

    /// The state that an answer tells.
    fn ask(&self, method: &str, wish: Option<&Value>) -> Result<Value, RecordError> {
        let sent = match (method, wish) {
            ("POST", wish) => self.agent.post(&self.url).send(wish.map_or(String::new(), Value::to_string)),
            ("DELETE", _) => self.agent.delete(&self.url).call(),
            _ => self.agent.get(&self.url).call(),
        };
        let response = sent.map_err(|source| self.unreachable(source))?;
        let well = response.status().is_success();
        let answer = self.json(response)?;
        match answer["error"].as_str() {
            Some(why) => Err(RecordError::Refused(why.to_owned())),
            None if well => Ok(answer),
            None => Err(self.strange(&answer.to_string())),
        }
    }

    fn json(&self, mut response: Response<Body>) -> Result<Value, RecordError> {
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let text = text.map_err(|source| self.unreachable(source))?;
        serde_json::from_str(&text).map_err(|error| self.strange(&error.to_string()))
    }

    fn fetch(&self, path: &Path) -> Result<(), RecordError> {
        let url = format!("{}/file", self.url);
        let response = self.agent.get(&url).call().map_err(|source| self.unreachable(source))?;
        if !response.status().is_success() {
            return Err(self.strange(&format!("status {}", response.status().as_u16())));
        }
        let written = File::create(path).and_then(|mut file| {
            let mut body = response.into_body().into_reader();
            io::copy(&mut body, &mut file).map(drop)
        });
        written.map_err(|source| RecordError::Write { path: path.to_owned(), source })
    }

    fn unreachable(&self, source: ureq::Error) -> RecordError {
        RecordError::Unreachable { url: self.url.clone(), source: Box::new(source) }
    }

    fn strange(&self, why: &str) -> RecordError {
        RecordError::Strange { url: self.url.clone(), why: why.to_owned() }
    }
}
