//! Workload files: what to ask, how hard, and what a good answer looks like. Written as TOML.
//!
//! Reading has two stages: `parse` checks the text alone and names the line and key of a mistake; `Workload::prompts`
//! then reads the files that the prompts stand in. This module knows no HTTP and sends nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use thiserror::Error;

use crate::check::Check;
use crate::http::header;
use crate::lengths::Lengths;
use crate::mix::ModelMix;
use crate::objective::Objective;
use crate::prompts::{PromptError, PromptSet, PromptSource};
use crate::tenants::{Tenant, Tenants};
use crate::trace::{Trace, TraceError};
use crate::variant::Variant;

mod builtin;
mod load;
mod place;

pub use builtin::names as builtin_names;
pub use load::{Amount, Load};
use place::Place;

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
    /// Largest numbers of tokens of answers.
    pub max_tokens: Lengths,
    /// Whether answers come as streams.
    pub is_streamed: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Further fields of the request body, sent as they are.
    pub body: serde_json::Map<String, serde_json::Value>,
    /// Models to spread requests over; else each server's own is asked.
    pub models: Option<ModelMix>,
    /// What differs for servers that are measured under these names.
    pub servers: BTreeMap<String, Variant>,
    /// When answers should be there.
    pub deadline: Option<Deadline>,
    /// Who asks, if not everybody is alike.
    pub tenants: Option<Tenants>,
    /// What counts as goodput.
    pub objective: Option<Objective>,
    /// Where prompts come from.
    pub prompts: PromptSource,
    /// How requests arrive.
    pub load: Load,
    /// Whether connections stay open between requests; else each request opens its own.
    pub keeps_connections: bool,
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
    max_tokens: Lengths,
    #[serde(default = "yes")]
    stream: bool,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    body: serde_json::Map<String, serde_json::Value>,
    models: Option<ModelMix>,
    #[serde(default)]
    servers: BTreeMap<String, Variant>,
    deadline: Option<Deadline>,
    tenants: Option<Vec<Tenant>>,
    objective: Option<Objective>,
    prompts: PromptSource,
    load: load::RawLoad,
    #[serde(default)]
    check: Check,
}

fn yes() -> bool {
    true
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
        let place = Place::new(file, text);
        raw.check(&place)?;
        let tenants = raw.tenants.map(Tenants::new).transpose();
        let tenants = tenants.map_err(|(key, reason)| place.error("tenants", key, reason))?;
        let stall_timeout = place.seconds("stall_timeout_s", raw.load.stall_timeout_s)?;
        let request_timeout = place.seconds("request_timeout_s", raw.load.request_timeout_s)?;
        Ok(Self {
            name: raw.name,
            about: leading_comment(text),
            api: raw.api,
            texts: raw.texts.unwrap_or(1),
            max_tokens: raw.max_tokens,
            is_streamed: raw.stream && raw.api != Api::Classify,
            temperature: raw.temperature,
            body: raw.body,
            models: raw.models,
            servers: raw.servers,
            deadline: raw.deadline,
            tenants,
            objective: raw.objective,
            prompts: raw.prompts,
            keeps_connections: raw.load.keep_connections,
            warmup: raw.load.warmup,
            load: raw.load.resolve(&place)?,
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

    /// Reads the load's trace, if it replays one.
    ///
    /// # Errors
    /// When the file is missing, or names line and column of its first mistake.
    pub fn read_trace(&self) -> Result<Option<Trace>, TraceError> {
        let Load::Trace { trace: file, .. } = &self.load else { return Ok(None) };
        let read = builtin::read_beside(self.folder.as_deref(), file);
        let text = read.map_err(|source| TraceError::Read { file: file.clone(), source })?;
        let is_tenant = |name: &str| self.tenants.as_ref().is_some_and(|all| all.named(name).is_some());
        Trace::parse(file, &text, is_tenant).map(Some)
    }
}

impl RawWorkload {
    /// What the tables other than `[load]` must keep, beyond the types of their values.
    fn check(&self, place: &Place<'_>) -> Result<(), WorkloadError> {
        let folder_name_is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(folder_name_is_plain) {
            return Err(place.error("", "name", "must be letters, digits, '-', '_' or '.'"));
        }
        if self.texts == Some(0) {
            return Err(place.error("", "texts", "must be at least 1"));
        }
        if self.texts.is_some() && self.api != Api::Classify {
            return Err(place.error("", "texts", "only a classification has several texts"));
        }
        if self.body.contains_key("stream") {
            return Err(place.error("body", "stream", "is a key of the workload itself: stream = false"));
        }
        if !(0.0..=1.0).contains(&self.check.max_error_share) {
            return Err(place.error("check", "max_error_share", "must lie between 0 and 1"));
        }
        let deadline_ms = self.deadline.as_ref().map_or([1, 1], |deadline| deadline.ms);
        if deadline_ms[0] == 0 || deadline_ms[1] < deadline_ms[0] {
            return Err(place.error("deadline", "ms", "must be [shortest, longest], both above 0"));
        }
        let deadline_header =
            self.deadline.as_ref().map(|deadline| header(&deadline.header, "1")).transpose();
        deadline_header.map_err(|reason| place.error("deadline", "header", reason))?;
        let objective = self.objective.as_ref().map_or(Ok(()), |objective| objective.validate(self.stream));
        objective.map_err(|(key, reason)| place.error("objective", key, reason))?;
        if self.load.is_ramp() && self.objective.is_none() {
            let reason = "a ramp rises until the table [objective] no longer holds: it is missing";
            return Err(place.error("load", "mode", reason));
        }
        let models = self.models.as_ref().map_or(Ok(()), ModelMix::validate);
        models.map_err(|(key, reason)| place.error("models", key, reason))?;
        for (name, variant) in &self.servers {
            let checked = variant.validate(self.texts.unwrap_or(1), self.models.as_ref());
            checked.map_err(|(key, reason)| place.error(&format!("servers.{name}"), key, reason))?;
        }
        self.prompts.validate().map_err(|(key, reason)| place.error("prompts", key, reason))
    }
}

/// The comment lines at the beginning of a file, as one paragraph.
fn leading_comment(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests;
