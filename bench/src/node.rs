//! A node under test: `quern serve` with the settings that an experiment asks for, on ports of its own.
//!
//! It knows the node's command line and its operators' endpoints, and nothing of experiments. The process is ended
//! when a [`Node`] is dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use thiserror::Error;
use tokio::time::timeout;

use crate::client::with_causes;
use crate::http::send;
use crate::machine::cpu_time_of;
use crate::process::{Memory, POLL_PAUSE, Running};

/// Lines of a node's log that an error repeats.
const LAST_WORDS: usize = 6;
/// Longest time for an answer of an operators' endpoint.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no node, or nothing to be learned of it.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The program cannot be started.
    #[error("cannot start {}: {source}; give the node's program with --quern", program.display())]
    Spawn {
        /// What was to be started.
        program: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The process ended before it served.
    #[error("the node ended with {status} before it was ready; its log ends with: {last_words}")]
    Ended {
        /// How it ended.
        status: String,
        /// The log's last lines.
        last_words: String,
    },
    /// The process did not serve in time.
    #[error("the node was not ready after {timeout:?}; its log ends with: {last_words}")]
    NotReady {
        /// How long it had.
        timeout: Duration,
        /// The log's last lines.
        last_words: String,
    },
    /// An endpoint gave no good answer.
    #[error("{url}: {reason}")]
    Endpoint {
        /// What was asked.
        url: String,
        /// What came instead.
        reason: String,
    },
    /// Ports, files, the process's state.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NodeError {
    let what = what.into();
    move |source| NodeError::System { what, source }
}

/// What a node is started with, beside its addresses.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    /// The model's file or name.
    pub model: String,
    /// Further switches of `quern serve`, each with its value.
    pub switches: Vec<(String, String)>,
    /// The text of its configuration file, where switches do not reach.
    pub config: String,
}

impl NodeSettings {
    /// A node of this model with its defaults.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// Gives a switch a value, instead of the one that it had.
    #[must_use]
    pub fn with(mut self, switch: &str, value: impl ToString) -> Self {
        self.switches.retain(|(other, _)| other != switch);
        self.also(switch, value)
    }

    /// Gives a switch one more value.
    #[must_use]
    pub fn also(mut self, switch: &str, value: impl ToString) -> Self {
        self.switches.push((switch.to_owned(), value.to_string()));
        self
    }

    /// Sets a key of the configuration, instead of what it was set to.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        let is_same = |pair: &str| pair.split_once('=').is_some_and(|(other, _)| other.trim() == key);
        self.switches.retain(|(switch, pair)| switch != "--set" || !is_same(pair));
        self.also("--set", format!("{key}={value}"))
    }
}

/// A node that serves.
#[derive(Debug)]
pub struct Node {
    running: Running,
    /// Base address of the public endpoints.
    pub url: String,
    /// Base address of the operators' endpoints.
    pub admin_url: String,
    /// What requests name, as the node lists it first.
    pub model: String,
    /// From the process's start until it was ready.
    pub ready_after: Duration,
    log: PathBuf,
}

impl Node {
    /// Starts a node and waits until it is ready. Its log and its configuration become `<name>.log` and
    /// `<name>.toml` in `folder`. Dropping the future ends the process.
    ///
    /// # Errors
    /// When the program cannot be started, ends, or is not ready in time.
    pub async fn start(
        program: &Path,
        settings: &NodeSettings,
        (folder, name): (&Path, &str),
        timeout: Duration,
    ) -> Result<Self, NodeError> {
        let (log, config) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.toml")));
        std::fs::write(&config, &settings.config).map_err(system(config.display().to_string()))?;
        let out = std::fs::File::create(&log).map_err(system(log.display().to_string()))?;
        let err = out.try_clone().map_err(system(log.display().to_string()))?;
        let [listen, admin] = free_addresses()?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .args(["--model", &settings.model])
            .arg("--config")
            .arg(&config)
            .args(["--listen", &listen, "--admin-listen", &admin])
            .args(settings.switches.iter().flat_map(|(switch, value)| [switch, value]));
        // What is measured must not depend on the shell it was started from.
        for (key, _) in std::env::vars().filter(|(key, _)| is_setting(key)) {
            command.env_remove(key);
        }
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|source| NodeError::Spawn { program: program.to_owned(), source })?;
        let mut node = Self {
            running: Running(child),
            url: format!("http://{listen}"),
            admin_url: format!("http://{admin}"),
            model: String::new(),
            ready_after: Duration::ZERO,
            log,
        };
        node.wait_ready(started, timeout).await?;
        node.ready_after = started.elapsed();
        node.model = node.first_model().await?;
        Ok(node)
    }

    async fn wait_ready(&mut self, started: Instant, timeout: Duration) -> Result<(), NodeError> {
        let ready = format!("{}/ready", self.admin_url);
        loop {
            if exchange(&ready, None).await.is_ok() {
                return Ok(());
            }
            let status = self.running.0.try_wait().map_err(system("the node's process"))?;
            if let Some(status) = status {
                return Err(NodeError::Ended { status: status.to_string(), last_words: self.last_words() });
            }
            if started.elapsed() > timeout {
                return Err(NodeError::NotReady { timeout, last_words: self.last_words() });
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    async fn first_model(&self) -> Result<String, NodeError> {
        let url = format!("{}/v1/models", self.url);
        let text = exchange(&url, None).await?;
        let models: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let first = models.pointer("/data/0/id").and_then(serde_json::Value::as_str);
        let none = || NodeError::Endpoint { url, reason: format!("lists no model: {text}") };
        first.map(str::to_owned).ok_or_else(none)
    }

    /// Sends a JSON text to an operators' endpoint.
    ///
    /// # Errors
    /// When the answer is no success; repeats what it says.
    pub async fn post_admin(&self, path: &str, body: String) -> Result<String, NodeError> {
        exchange(&format!("{}{path}", self.admin_url), Some(body)).await
    }

    /// What the node counts, now.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics, NodeError> {
        Ok(Metrics(exchange(&format!("{}/metrics", self.admin_url), None).await?))
    }

    /// The process's memory now; none when it has gone.
    pub fn memory(&self) -> Option<Memory> {
        Memory::of(self.running.0.id())
    }

    /// Processor time that the process has used so far; none when it has gone.
    pub fn cpu_time(&self) -> Option<Duration> {
        cpu_time_of(self.running.0.id())
    }

    /// What it wrote so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String, NodeError> {
        std::fs::read_to_string(&self.log).map_err(system(self.log.display().to_string()))
    }

    fn last_words(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join(" / ")
    }
}

/// Asks an endpoint, or sends it a JSON text, and gives what it answers.
async fn exchange(url: &str, json: Option<String>) -> Result<String, NodeError> {
    let content_type = json.as_ref().map(|_| (CONTENT_TYPE, HeaderValue::from_static("application/json")));
    let answer = async {
        let response = send(url, "", content_type, json.map(Bytes::from)).await;
        let response = response.map_err(|error| with_causes(&error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| with_causes(&error))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
    };
    let answer = timeout(ASK_TIMEOUT, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer for {ASK_TIMEOUT:?}")));
    answer.map_err(|reason| NodeError::Endpoint { url: url.to_owned(), reason })
}

/// Whether a variable of the environment would change a node's settings.
fn is_setting(key: &str) -> bool {
    key == "QUERN_CONFIG" || (key.starts_with("QUERN_") && key.contains("__"))
}

/// Two addresses that nobody listens on. Both are held until both are known, so that they differ; somebody else may
/// still take one before the node does, which then ends and says so.
fn free_addresses() -> Result<[String; 2], NodeError> {
    let bind = || TcpListener::bind("127.0.0.1:0").map_err(system("a free port"));
    let sockets = [bind()?, bind()?];
    let address = |socket: &TcpListener| socket.local_addr().map(|address| address.to_string());
    let [first, second] = sockets.each_ref().map(|socket| address(socket).map_err(system("a free port")));
    Ok([first?, second?])
}

/// What a node counts, in Prometheus' text format.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric's samples over all labels; none if there is no sample.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with([' ', '{']) {
                return None;
            }
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        };
        self.0.lines().filter_map(value).reduce(|sum, value| sum + value)
    }

    /// How much a counter grew since `before`; a counter that was not there stood at 0.
    pub fn growth(&self, before: &Metrics, name: &str) -> f64 {
        self.sum(name).unwrap_or(0.0) - before.sum(name).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, timeout_ms: u64) -> NodeError {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("node");
        std::fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
        let all_may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, all_may_run).unwrap();
        let (settings, place) = (NodeSettings::new("no-model"), (folder.path(), "probe"));
        let started = Node::start(&program, &settings, place, Duration::from_millis(timeout_ms));
        runtime.block_on(started).unwrap_err()
    }

    #[test]
    fn a_node_that_ends_early_is_quoted() {
        let error = start("echo the model is missing\nexit 64\n", 10_000).to_string();
        assert!(error.contains("exit status: 64") && error.contains("the model is missing"), "{error}");
    }

    #[test]
    fn a_node_that_never_serves_is_ended() {
        // The test itself would last a minute if the process were waited for.
        assert!(matches!(start("exec sleep 60\n", 50), NodeError::NotReady { .. }));
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = (folder.path(), "probe");
        let settings = NodeSettings::new("m");
        let started = Node::start(Path::new("/no/quern"), &settings, place, Duration::ZERO);
        let error = runtime.block_on(started).unwrap_err().to_string();
        assert!(error.contains("/no/quern") && error.contains("--quern"), "{error}");
    }

    #[test]
    fn metrics_are_summed_over_labels_and_not_over_names() {
        let metrics = Metrics(
            "# HELP a_total words\na_total{x=\"1 2\"} 2\na_total{x=\"b\"} 3\na_total_more 50\nb 1e3\n"
                .to_owned(),
        );
        assert_eq!(metrics.sum("a_total"), Some(5.0));
        assert_eq!(metrics.sum("b"), Some(1000.0));
        assert_eq!(metrics.sum("absent"), None);
        let before = Metrics("a_total 1\n".to_owned());
        assert!((metrics.growth(&before, "a_total") - 4.0).abs() < 1e-9);
        assert!((metrics.growth(&before, "b") - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn a_switch_has_its_last_value_and_some_have_several() {
        let settings =
            NodeSettings::new("m").with("--threads", 2).also("--adapter", "a=b").also("--adapter", "c=d");
        let settings = settings.set("x.y", 1).set("x.z", 2).set("x.y", 3).with("--threads", 1);
        let words: Vec<String> = settings.switches.iter().map(|(s, v)| format!("{s} {v}")).collect();
        let expected = ["--adapter a=b", "--adapter c=d", "--set x.z=2", "--set x.y=3", "--threads 1"];
        assert_eq!(words, expected);
    }

    #[test]
    fn settings_of_the_environment_do_not_reach_a_node() {
        assert!(is_setting("QUERN_CONFIG") && is_setting("QUERN_ENGINE__LLAMA__THREADS"));
        assert!(!is_setting("QUERN_BACKENDS_DIR") && !is_setting("PATH__X"));
    }
}
