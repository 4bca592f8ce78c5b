//! Workloads, load generator and reports for any OpenAI-compatible server.
//!
//! The crate speaks HTTP and reads files; it knows no engine, and nothing of any server beyond its public
//! endpoints. The exception is `experiment` with `node`: it starts Quern with the settings that it compares. A run goes
//! `workload` + `prompts` → `run` → `drive` (with `arrivals`) or `long_prompt` → `request` → `client` (on `connections`) →
//! `check` → `summary` → `output`; `results` reads what a run left, and `report` shows it.

pub mod advise;
mod answer;
pub mod arrivals;
pub mod ceilings;
pub mod check;
pub mod client;
pub mod cold_start;
pub mod connections;
pub mod drive;
pub mod experiment;
pub mod found;
pub mod gpu;
pub mod http;
pub mod kv_size;
pub mod lengths;
pub mod long_prompt;
pub mod machine;
pub mod mix;
pub mod node;
pub mod objective;
pub mod output;
pub mod plan;
pub mod plot;
pub mod prefixes;
pub mod prices;
pub mod process;
pub mod progress;
pub mod prompts;
pub mod ramp;
pub mod reply;
pub mod report;
pub mod request;
pub mod results;
pub mod run;
pub mod sse;
pub mod stats;
pub mod summary;
pub mod tenants;
pub mod times;
pub mod trace;
pub mod variant;
mod words;
pub mod workload;
