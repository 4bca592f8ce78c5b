//! The node's whole configuration, typed.
//!
//! Two stages: [`Layers`] turns a file's text, the environment and flags into a
//! [`Config`] without touching the system; [`crate::app`] then resolves it, which
//! is where files are opened and sockets bound. Functions elsewhere take the
//! values they need, not a `Config`.

mod convert;
mod layers;
mod policy;
#[cfg(test)]
mod tests;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Layers, Origin};
pub use policy::{Policy, PolicyProfile};
pub use units::{Bytes, Span};

/// Everything that can be chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is served.
    pub model: Model,
    /// What computes.
    pub engine: Engine,
    /// Who runs next.
    pub scheduler: Scheduler,
    /// What a request gets where it says nothing.
    pub generation: Generation,
    /// The public listener.
    pub http: Http,
    /// The operators' listener.
    pub admin: Admin,
    /// What one request may ask for.
    pub limits: Limits,
    /// Encryption of the public listener.
    pub tls: Tls,
    /// Who may ask.
    pub auth: Auth,
    /// What is written to standard error.
    pub logging: Logging,
    /// How the node ends.
    pub shutdown: Shutdown,
    /// Recorded steps, for whoever writes policies.
    pub recording: Recording,
    /// Places for policies, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<Policy>,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A name of the catalogue, or the path of a GGUF file.
    pub name: String,
    /// What clients call it; the catalogue name or the file's stem where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A `tokenizer.json` to use instead of the GGUF's own vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Fetch a catalogue model that is not here yet before serving it.
    pub pull: bool,
}

/// `[engine]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Which engine.
    pub kind: EngineKind,
    /// `[engine.llama]`
    pub llama: Llama,
    /// `[engine.fake]`
    pub fake: Fake,
}

/// Which engine computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// llama.cpp.
    #[default]
    Llama,
    /// Made-up tokens for tests of clients and operations.
    Fake,
    /// The portable engine, which this build does not have.
    Wgsl,
}

/// `[engine.llama]`, see `quern_llama::LlamaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Llama {
    /// Longest sequence in tokens; 0 takes what the model was trained for.
    pub max_sequence_len: u32,
    /// Tokens of key-value state over all sequences.
    pub kv_capacity: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Rows in one step.
    pub max_rows: u32,
    /// Rows that are computed at once.
    pub micro_batch_rows: u32,
    /// Rows with an output in one step.
    pub max_outputs: u32,
    /// Threads for a step of one row; 0 takes the physical cores.
    pub threads: u32,
    /// Threads for a step of several rows; 0 takes the physical cores.
    pub threads_prefill: u32,
    /// Layers on the GPU; all where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_layers: Option<u32>,
    /// How a model is spread over several GPUs.
    pub split: Split,
    /// The GPU to use with `split = "none"`.
    pub main_gpu: u32,
    /// Share of each GPU; empty divides by free memory.
    pub tensor_split: Vec<f32>,
    /// Format of keys and values.
    pub kv_type: KvType,
    /// Attention in one fused operation.
    pub flash_attention: FlashAttention,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Keep the model's pages in memory.
    pub mlock: bool,
    /// Rearrange weights for the CPU while loading.
    pub repack: bool,
}

/// How a model is spread over several GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// One GPU holds everything.
    None,
    /// Each GPU holds some layers.
    Layer,
    /// Each GPU holds some rows of every matrix.
    Row,
}

/// Format of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 16 bits a value.
    F16,
    /// 8.5 bits a value.
    #[serde(rename = "q8_0")]
    Q8,
    /// 4.5 bits a value.
    #[serde(rename = "q4_0")]
    Q4,
}

/// Attention in one fused operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlashAttention {
    /// Where the device can.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `[engine.fake]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fake {
    /// Tokens of key-value state over all sequences.
    pub kv_capacity: usize,
    /// Sequences at once.
    pub max_sequences: usize,
    /// Longest sequence in tokens.
    pub max_sequence_len: usize,
    /// Rows in one step.
    pub max_rows: usize,
    /// Every step takes at least this long.
    pub step_time: Span,
}

/// `[scheduler]`, see `quern_scheduler::SchedulerConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    /// Requests that may be queued; further ones get 429.
    pub max_queued: usize,
    /// Sequences that may run at once; the engine's own limit holds too.
    pub max_running: usize,
    /// Rows in a step; the engine's own limit holds too.
    pub token_budget: usize,
    /// How long a step should take at most while sequences decode; `0ms` is no limit.
    pub target_step: Span,
    /// How long a step may wait for the requests that follow on finished answers;
    /// never more than a 32nd of a step. `0ms` never waits.
    pub wait_window: Span,
    /// Keep finished sequences' state for prompts that begin alike.
    pub prefix_cache: bool,
    /// Tokens that the cache keeps for nobody who runs; 0 is an eighth of the
    /// engine's. A full cache makes steps slower.
    pub max_cached: usize,
    /// What becomes of the state of a paused sequence.
    pub preemption: Preemption,
    /// Host memory for the state of paused sequences.
    pub host_state_bytes: Bytes,
    /// Where guesses at the next tokens come from.
    pub speculation: Speculation,
    /// Catalogue name or path of the model that guesses, with `speculation = "draft"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_model: Option<String>,
    /// Tokens to guess ahead at most.
    pub max_draft: u32,
    /// Check all books after every step; slow, for tests.
    pub check_invariants: bool,
}

/// What becomes of the state of a paused sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preemption {
    /// It is computed again.
    Recompute,
    /// It is kept in host memory.
    Host,
}

/// Where guesses at the next tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculation {
    /// Nowhere.
    Off,
    /// What followed the same words earlier in the sequence.
    Lookup,
    /// A smaller model.
    Draft,
}

/// `[generation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Generation {
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// 1 keeps all tokens.
    pub top_p: f32,
    /// 0 keeps all tokens.
    pub top_k: u32,
    /// 0 keeps all tokens.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// New tokens at most; all that fit where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How embeddings are made of hidden states.
    pub pooling: Pooling,
}

/// How embeddings are made of hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean over all tokens.
    Mean,
}

/// `[http]`, see [`crate::http::Settings`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port of the public endpoints.
    pub listen: SocketAddr,
    /// Connections at once; further ones wait.
    pub max_connections: usize,
    /// A request's line and headers together.
    pub max_header_bytes: Bytes,
    /// One request's body.
    pub max_body_bytes: Bytes,
    /// Bodies being read or worked on, all connections together.
    pub max_buffered_bytes: Bytes,
    /// To the end of a request's headers.
    pub header_timeout: Span,
    /// From there to the end of its body.
    pub body_timeout: Span,
    /// A connection without a request is closed after this.
    pub idle_timeout: Span,
    /// A client that takes nothing for this long is cut off.
    pub write_timeout: Span,
    /// The `Server` header; empty sends none.
    pub server_header: String,
    /// Headers of a request that admission policies may see.
    pub policy_headers: Vec<String>,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port of the operators' endpoints.
    pub listen: SocketAddr,
    /// `/health` fails when the step loop has been silent for longer.
    pub stuck_after: Span,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Choices.
    pub max_n: u32,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: Bytes,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Prompts of a completion or inputs of an embedding.
    pub max_prompts: usize,
}

/// `[tls]`: both files, or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// `[auth]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// One API key a line; everybody may ask where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_file: Option<PathBuf>,
}

/// `[logging]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level, or a filter such as `info,quern=debug`.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[recording]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recording {
    /// Where files of recorded steps are written; nothing is recorded where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Largest file.
    pub max_bytes: Bytes,
    /// Begin with the first step, without being asked.
    pub from_start: bool,
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long running requests may take to finish.
    pub drain_timeout: Span,
}

impl Default for Model {
    fn default() -> Self {
        let name = quern_models::catalog().default_entry().map_or("", |entry| entry.name.as_str());
        Model { name: name.to_owned(), id: None, tokenizer: None, pull: true }
    }
}

impl Default for Fake {
    fn default() -> Self {
        Fake {
            kv_capacity: 16_384,
            max_sequences: 64,
            max_sequence_len: 4_096,
            max_rows: 512,
            step_time: Span(std::time::Duration::ZERO),
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Logging { format: LogFormat::Text, level: "info".to_owned() }
    }
}

impl Default for Recording {
    fn default() -> Self {
        Recording { folder: None, max_bytes: Bytes(256 << 20), from_start: false }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { drain_timeout: Span(std::time::Duration::from_secs(60)) }
    }
}

impl Config {
    /// What types cannot say: which values clash. Each with its key.
    fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut refuse = |when: bool, key: &str, why: &str| {
            if when {
                wrong.push((key.to_owned(), why.to_owned()));
            }
        };
        refuse(self.model.name.is_empty(), "model.name", "it is empty");
        for (idx, policy) in self.policy.iter().enumerate() {
            if let Err((field, why)) = policy.to_place() {
                refuse(true, &format!("policy[{idx}].{field}"), &why);
            }
            let twice = self.policy[..idx].iter().any(|other| other.name() == policy.name());
            refuse(twice, &format!("policy[{idx}].name"), "another place has this name");
        }
        let nowhere = self.recording.from_start && self.recording.folder.is_none();
        refuse(nowhere, "recording.from_start", "recording.folder is not set");
        refuse(self.model.id.as_deref() == Some(""), "model.id", "it is empty");
        refuse(
            self.engine.kind == EngineKind::Wgsl,
            "engine.kind",
            "this build does not have the wgsl engine yet",
        );
        let same = self.http.listen == self.admin.listen && self.http.listen.port() != 0;
        refuse(same, "admin.listen", "it is the address of http.listen");
        refuse(
            self.tls.cert.is_some() && self.tls.key.is_none(),
            "tls.key",
            "tls.cert is set, and this is not",
        );
        refuse(
            self.tls.key.is_some() && self.tls.cert.is_none(),
            "tls.cert",
            "tls.key is set, and this is not",
        );
        let draft = self.scheduler.speculation == Speculation::Draft;
        let missing = "speculation = \"draft\" needs a model to draft with";
        refuse(draft && self.scheduler.draft_model.is_none(), "scheduler.draft_model", missing);
        let llama = self.engine.kind == EngineKind::Llama;
        refuse(draft && !llama, "scheduler.speculation", "\"draft\" needs engine.kind = \"llama\"");
        let unused = "it is only used with speculation = \"draft\"";
        refuse(!draft && self.scheduler.draft_model.is_some(), "scheduler.draft_model", unused);
        for (key, value) in [
            ("scheduler.max_queued", self.scheduler.max_queued),
            ("scheduler.max_running", self.scheduler.max_running),
            ("scheduler.token_budget", self.scheduler.token_budget),
            ("http.max_connections", self.http.max_connections),
            ("http.max_header_bytes", self.http.max_header_bytes.0),
            ("http.max_body_bytes", self.http.max_body_bytes.0),
            ("limits.max_n", self.limits.max_n as usize),
            ("limits.max_prompts", self.limits.max_prompts),
            ("engine.fake.kv_capacity", self.engine.fake.kv_capacity),
            ("engine.fake.max_sequences", self.engine.fake.max_sequences),
            ("engine.fake.max_sequence_len", self.engine.fake.max_sequence_len),
            ("engine.fake.max_rows", self.engine.fake.max_rows),
        ] {
            refuse(value == 0, key, "it must be at least 1");
        }
        let g = &self.generation;
        refuse(!(0.0..=2.0).contains(&g.temperature), "generation.temperature", "it must be from 0 to 2");
        refuse(!(g.top_p > 0.0 && g.top_p <= 1.0), "generation.top_p", "it must be above 0 and at most 1");
        refuse(!(0.0..=1.0).contains(&g.min_p), "generation.min_p", "it must be from 0 to 1");
        refuse(
            g.repetition_penalty.is_nan() || g.repetition_penalty <= 0.0,
            "generation.repetition_penalty",
            "it must be above 0",
        );
        refuse(g.max_tokens == Some(0), "generation.max_tokens", "it must be at least 1");
        if let Err(e) = crate::logging::filter(&self.logging.level) {
            refuse(true, "logging.level", &e.to_string());
        }
        if let Err(e) = self.engine.llama.to_engine().validate() {
            refuse(self.engine.kind == EngineKind::Llama, &convert::llama_key(&e), &e.to_string());
        }
        wrong
    }

    /// The configuration as TOML, every key that has a value.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("plain structs of numbers and strings are TOML")
    }
}
