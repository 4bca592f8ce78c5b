//! Workload files: what to ask, how hard, and what a good answer looks like. Written as TOML.
//!
//! Reading has two stages: `parse` checks the text alone and names the line and key of a mistake; `Workload::prompts`
//! then reads the files that the prompts stand in. This module knows no HTTP and sends nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use thiserror::Error;

use crate::mix::ModelMix;
use crate::prompts::{PromptError, PromptSet, PromptSource};

mod builtin;

pub use builtin::names as builtin_names;

/// Why a workload cannot be used.
#[derive(Debug, Error)]
pub enum WorkloadError {
    /// No such file, and no built-in workload of that name.
    #[error("no workload {name:?}: neither a file nor one of {}", builtin::names().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The text is no TOML, has an unknown key, or a value of the wrong type.
    #[error("{file}: {source}")]
    Syntax {
        /// The workload's file or name.
        file: String,
        /// Names line, column and key.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be used.
    #[error("{file}: line {line}, key {key:?}: {reason}")]
    Value {
        /// The workload's file or name.
        file: String,
        /// One-based; the table's own line if the key is missing.
        line: usize,
        /// Key with its table, as in `load.clients`.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Which endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/chat/completions`.
    #[default]
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/classify`. The answer is a label a text, one a line.
    Classify,
}

/// How requests arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// A fixed number of clients, each sending its next request when the last one ended.
    Closed {
        /// Levels, driven one after the other.
        clients: Vec<usize>,
        /// When a level ends.
        amount: Amount,
    },
    /// Requests arrive at a rate, whether or not earlier ones have ended.
    Open {
        /// Distances between arrivals.
        arrivals: Arrivals,
        /// Levels in requests per second.
        rates: Vec<f64>,
        /// When a level ends.
        amount: Amount,
        /// Requests under way at once; later ones wait here, and their latency counts from their intended time.
        max_in_flight: usize,
    },
    /// Clients stream without pause; one long prompt arrives among them, again and again.
    LongPrompt {
        /// Levels: how many clients stream.
        streams: Vec<usize>,
        /// Tokens that each stream must have sent before the long prompt arrives.
        settle_tokens: usize,
        /// Long prompts a round.
        trials: usize,
        /// Pause between two trials, so that a server notices the streams that were dropped.
        rest: Duration,
        /// The long prompt itself.
        prompts: Box<PromptSource>,
        /// Tokens that the long prompt's answer may have.
        max_tokens: u32,
    },
}

/// When a level has enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many requests in all.
    Requests(usize),
    /// So many requests for each client of the level.
    RequestsPerClient(usize),
    /// No new request after this time; those under way end.
    Duration(Duration),
}

/// Distances between arrivals in open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Equal distances.
    Constant,
    /// Independent arrivals: exponential distances, the same ones for every server.
    Poisson,
}

/// What to do with an answer that is unlike the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strictness {
    /// Count it and say so.
    Report,
    /// Count it as wrong: the run fails.
    Require,
}

/// What makes an answer a good one. All that are given must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Something other than white space was said.
    #[serde(default)]
    pub non_empty: bool,
    /// At least so many tokens.
    pub min_tokens: Option<u64>,
    /// The answer, trimmed and in lower case, is one of these.
    pub one_of: Option<Vec<String>>,
    /// The answer is a JSON text.
    #[serde(default)]
    pub json: bool,
    /// The answer contains the prompt's expected answer.
    pub expected: Option<Strictness>,
    /// All servers gave the same answer to the same prompt.
    pub equal_across_servers: Option<Strictness>,
    /// Share of requests that may fail, for workloads that overload a server on purpose.
    #[serde(default)]
    pub max_error_share: f64,
}

/// A time by which each answer should be there, told to the server in a header.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    /// The header's name; its value is a number of milliseconds.
    pub header: String,
    /// Shortest and longest; each request has one of its own in between.
    pub ms: [u32; 2],
}

impl Deadline {
    /// The deadline of a prompt: the same for every server.
    pub fn ms_of(&self, seed: u64, prompt_idx: u64) -> u32 {
        let mut random = ChaCha8Rng::seed_from_u64(!seed);
        random.set_stream(prompt_idx);
        random.random_range(self.ms[0]..=self.ms[1])
    }
}

/// A workload, checked.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Short name for folders and tables.
    pub name: String,
    /// The comment that the file begins with: what it asks, and what a good answer looks like.
    pub about: String,
    /// Endpoint.
    pub api: Api,
    /// Texts of a request.
    pub texts: usize,
    /// Largest number of tokens of an answer.
    pub max_tokens: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Further fields of the request body, sent as they are.
    pub body: serde_json::Map<String, serde_json::Value>,
    /// Models to spread requests over; else each server's own is asked.
    pub models: Option<ModelMix>,
    /// When answers should be there.
    pub deadline: Option<Deadline>,
    /// Where prompts come from.
    pub prompts: PromptSource,
    /// How requests arrive.
    pub load: Load,
    /// Requests to each server before each of its phases that are not counted.
    pub warmup: usize,
    /// Longest silence before a request counts as stalled.
    pub stall_timeout: Duration,
    /// Longest time for a whole request.
    pub request_timeout: Duration,
    /// What a good answer is.
    pub check: Check,
    /// The folder that prompts' files are relative to; none for a built-in workload.
    folder: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    name: String,
    #[serde(default)]
    api: Api,
    texts: Option<usize>,
    max_tokens: u32,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    body: serde_json::Map<String, serde_json::Value>,
    models: Option<ModelMix>,
    deadline: Option<Deadline>,
    prompts: PromptSource,
    load: RawLoad,
    #[serde(default)]
    check: Check,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Closed,
    Open,
    LongPrompt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLoad {
    mode: Mode,
    clients: Option<Vec<usize>>,
    arrivals: Option<Arrivals>,
    rates: Option<Vec<f64>>,
    requests: Option<usize>,
    requests_per_client: Option<usize>,
    duration_s: Option<f64>,
    max_in_flight: Option<usize>,
    streams: Option<Vec<usize>>,
    settle_tokens: Option<usize>,
    trials: Option<usize>,
    rest_s: Option<f64>,
    long: Option<PromptSource>,
    long_max_tokens: Option<u32>,
    #[serde(default)]
    warmup: usize,
    #[serde(default = "default_stall_timeout_s")]
    stall_timeout_s: f64,
    #[serde(default = "default_request_timeout_s")]
    request_timeout_s: f64,
}

fn default_stall_timeout_s() -> f64 {
    60.0
}

fn default_request_timeout_s() -> f64 {
    300.0
}

impl Workload {
    /// Finds a workload: a path first, then a built-in name.
    ///
    /// # Errors
    /// When there is none, or it has a mistake.
    pub fn find(name: &str) -> Result<Self, WorkloadError> {
        let path = Path::new(name);
        if path.is_file() {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|source| WorkloadError::Read { path: path.to_owned(), source })?;
            return Self::parse(name, &text, path.parent().map(Path::to_owned));
        }
        let text = builtin::file(&format!("{name}.toml"))
            .ok_or_else(|| WorkloadError::Unknown { name: name.to_owned() })?;
        Self::parse(name, text, None)
    }

    /// Reads a workload's text. `file` is its name in messages, `folder` where the files it names lie.
    ///
    /// # Errors
    /// Names line and key of the first mistake.
    pub fn parse(file: &str, text: &str, folder: Option<PathBuf>) -> Result<Self, WorkloadError> {
        let raw: RawWorkload = toml::from_str(text)
            .map_err(|source| WorkloadError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
        let place = Place { file, text };
        let folder_name_is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if raw.name.is_empty() || !raw.name.chars().all(folder_name_is_plain) {
            return Err(place.error("", "name", "must be letters, digits, '-', '_' or '.'"));
        }
        if raw.max_tokens == 0 {
            return Err(place.error("", "max_tokens", "must be at least 1"));
        }
        if raw.texts == Some(0) {
            return Err(place.error("", "texts", "must be at least 1"));
        }
        if raw.texts.is_some() && raw.api != Api::Classify {
            return Err(place.error("", "texts", "only a classification has several texts"));
        }
        if !(0.0..=1.0).contains(&raw.check.max_error_share) {
            return Err(place.error("check", "max_error_share", "must lie between 0 and 1"));
        }
        if raw
            .deadline
            .as_ref()
            .is_some_and(|deadline| deadline.ms[0] == 0 || deadline.ms[1] < deadline.ms[0])
        {
            return Err(place.error("deadline", "ms", "must be [shortest, longest], both above 0"));
        }
        let models = raw.models.as_ref().map_or(Ok(()), ModelMix::validate);
        models.map_err(|(key, reason)| place.error("models", key, reason))?;
        raw.prompts.validate().map_err(|(key, reason)| place.error("prompts", key, reason))?;
        let stall_timeout = place.seconds("stall_timeout_s", raw.load.stall_timeout_s)?;
        let request_timeout = place.seconds("request_timeout_s", raw.load.request_timeout_s)?;
        Ok(Self {
            name: raw.name,
            about: leading_comment(text),
            api: raw.api,
            texts: raw.texts.unwrap_or(1),
            max_tokens: raw.max_tokens,
            temperature: raw.temperature,
            body: raw.body,
            models: raw.models,
            deadline: raw.deadline,
            prompts: raw.prompts,
            warmup: raw.load.warmup,
            load: resolve_load(raw.load, &place)?,
            stall_timeout,
            request_timeout,
            check: raw.check,
            folder,
        })
    }

    /// Reads the prompts.
    ///
    /// # Errors
    /// When a file is missing or holds no prompt.
    pub fn read_prompts(&self, source: &PromptSource) -> Result<PromptSet, PromptError> {
        PromptSet::read(source, |name| builtin::read_beside(self.folder.as_deref(), name))
    }
}

/// The comment lines at the beginning of a file, as one paragraph.
fn leading_comment(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect();
    lines.join(" ")
}

fn resolve_load(raw: RawLoad, place: &Place<'_>) -> Result<Load, WorkloadError> {
    let load = match raw.mode {
        Mode::Closed => Load::Closed {
            clients: place.levels("clients", raw.clients.as_deref(), |&n| n > 0)?,
            amount: resolve_amount(&raw, place)?,
        },
        Mode::Open => Load::Open {
            arrivals: raw.arrivals.ok_or_else(|| place.error("load", "arrivals", "is missing"))?,
            rates: place.levels("rates", raw.rates.as_deref(), |&r| r.is_finite() && r > 0.0)?,
            amount: resolve_amount(&raw, place)?,
            max_in_flight: raw.max_in_flight.unwrap_or(512).max(1),
        },
        Mode::LongPrompt => {
            let prompts = raw.long.ok_or_else(|| place.error("load", "long", "is missing"))?;
            prompts.validate().map_err(|(key, reason)| place.error("load.long", key, reason))?;
            let trials = raw.trials.unwrap_or(1);
            if trials == 0 {
                return Err(place.error("load", "trials", "must be at least 1"));
            }
            let rest_s = raw.rest_s.unwrap_or(0.0);
            Load::LongPrompt {
                streams: place.levels("streams", raw.streams.as_deref(), |&n| n > 0)?,
                settle_tokens: raw.settle_tokens.unwrap_or(8).max(2),
                trials,
                rest: Duration::try_from_secs_f64(rest_s)
                    .map_err(|error| place.error("load", "rest_s", error.to_string()))?,
                prompts: Box::new(prompts),
                max_tokens: raw.long_max_tokens.unwrap_or(8).max(1),
            }
        }
    };
    Ok(load)
}

fn resolve_amount(raw: &RawLoad, place: &Place<'_>) -> Result<Amount, WorkloadError> {
    match (raw.requests, raw.requests_per_client, raw.duration_s) {
        (Some(0), None, None) => Err(place.error("load", "requests", "must be at least 1")),
        (None, Some(0), None) => Err(place.error("load", "requests_per_client", "must be at least 1")),
        (Some(requests), None, None) => Ok(Amount::Requests(requests)),
        (None, Some(requests), None) if raw.mode == Mode::Closed => Ok(Amount::RequestsPerClient(requests)),
        (None, None, Some(seconds)) => Ok(Amount::Duration(place.seconds("duration_s", seconds)?)),
        _ => {
            let reason =
                "give exactly one of requests, requests_per_client (closed loop only) and duration_s";
            Err(place.error("load", "requests", reason))
        }
    }
}

/// The text of a workload, to find a key's line in.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn error(&self, table: &str, key: &str, reason: impl Into<String>) -> WorkloadError {
        let name = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
        let (file, line) = (self.file.to_owned(), self.line_of(table, key));
        WorkloadError::Value { file, line, key: name, reason: reason.into() }
    }

    /// One-based line of a key, or of its table if the key is missing.
    fn line_of(&self, table: &str, key: &str) -> usize {
        let mut current = "";
        let mut table_line = 1;
        for (index, line) in self.text.lines().enumerate() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                current = header.trim();
                if current == table {
                    table_line = index + 1;
                }
            } else if current == table && line.split('=').next().is_some_and(|left| left.trim() == key) {
                return index + 1;
            }
        }
        table_line
    }

    fn seconds(&self, key: &str, seconds: f64) -> Result<Duration, WorkloadError> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            _ => Err(self.error("load", key, "must be a number of seconds above 0")),
        }
    }

    fn levels<T: Clone>(
        &self,
        key: &str,
        levels: Option<&[T]>,
        is_good: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, WorkloadError> {
        match levels {
            None => Err(self.error("load", key, "is missing")),
            Some([]) => Err(self.error("load", key, "must name at least one level")),
            Some(levels) if !levels.iter().all(is_good) => {
                Err(self.error("load", key, "every level must be above 0"))
            }
            Some(levels) => Ok(levels.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests;
