//! The node's whole configuration, typed.
//!
//! Two stages: [`Layers`] turns a file's text, the environment and flags into a
//! [`Config`] without touching the system; [`crate::app`] then resolves it, which
//! is where files are opened and sockets bound. Functions elsewhere take the
//! values they need, not a `Config`.

mod adapters;
mod check;
mod classifier;
mod convert;
mod layers;
mod policy;
mod recording;
#[cfg(test)]
mod tests;
mod units;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use adapters::{Adapter, AdapterFormat, Adapters};
pub use classifier::{Classifier, Message};
pub use layers::{ConfigError, Layers, Origin};
pub use policy::{Policy, PolicyProfile};
pub use recording::Recording;
pub use units::{Bytes, Span};
pub use workers::{Autoscale, Workers};

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
    /// How many schedulers with an engine each.
    pub workers: Workers,
    /// Who is asked how many.
    pub autoscale: Autoscale,
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
    /// LoRA adapters: where they come from and what they may take.
    pub adapters: Adapters,
    /// Recorded steps, for whoever writes policies.
    pub recording: Recording,
    /// Places for policies, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<Policy>,
    /// Ways to classify, beside the models that have a head of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classifier: Vec<Classifier>,
    /// Adapters that are served from the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapter: Vec<Adapter>,
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
    /// `[engine.wgsl]`
    pub wgsl: Wgsl,
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
    /// Our own kernels, on any GPU that Vulkan, Metal or DirectX reaches.
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

/// `[engine.wgsl]`, see `quern_wgsl::WgslConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wgsl {
    /// A part of the device's name; empty takes the fastest kind there is.
    pub device: String,
    /// What reaches the device.
    pub backend: Backend,
    /// Longest sequence in tokens; 0 takes what the model was trained for.
    pub max_sequence_len: u32,
    /// Tokens of key-value state over all sequences.
    pub kv_capacity: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Rows in one step.
    pub max_rows: u32,
    /// Rows with an output in one step.
    pub max_outputs: u32,
    /// Adapters that can be loaded at once, with ranks up to 8, 16, 32 and 64.
    pub adapter_slots: [u32; 4],
    /// Draw tokens on the device; on all but CPUs where unset.
    pub sample_on_device: Option<bool>,
    /// Multiply the rows of long prompts by cooperative matrices (tensor cores).
    pub cooperative_matrices: bool,
}

/// What reaches a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Whichever has a fitting device.
    Any,
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// DirectX 12.
    Dx12,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 32 bits a value.
    F32,
    /// 16 bits a value.
    F16,
    /// 8.5 bits a value.
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8,
    /// 4.5 bits a value.
    #[serde(rename = "q4_0")]
    #[value(name = "q4_0")]
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
    /// Of these, tokens that only one request had so far; what is beyond moves to host
    /// memory. 0 is 512 on the CPU, where a full cache makes steps slower, and else no
    /// limit.
    pub max_unshared: usize,
    /// What becomes of the state of a paused sequence.
    pub preemption: Preemption,
    /// Host memory for the state of paused and of finished sequences.
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
    /// Texts of a classification.
    pub max_texts: usize,
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

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { drain_timeout: Span(std::time::Duration::from_secs(60)) }
    }
}

impl Config {
    /// The configuration as TOML, every key that has a value.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("plain structs of numbers and strings are TOML")
    }
}
