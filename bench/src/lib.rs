//! Workloads, load generator and reports for any OpenAI-compatible server.
//!
//! The crate speaks HTTP and reads files; it knows no engine, and nothing of any server beyond its public
//! endpoints. `experiment` with `node` is the exception: it starts Quern with the settings that it compares. A run goes `workload` + `prompts` → `run` → `drive` or `long_prompt` → `client` → `check` →
//! `summary` → `output`.

pub mod ceilings;
pub mod check;
pub mod client;
pub mod cold_start;
pub mod drive;
pub mod experiment;
pub mod gpu;
pub mod kv_size;
pub mod long_prompt;
pub mod machine;
pub mod mix;
pub mod node;
pub mod output;
pub mod plot;
pub mod process;
pub mod progress;
pub mod prompts;
pub mod report;
pub mod run;
pub mod sse;
pub mod stats;
pub mod summary;
pub mod workload;
