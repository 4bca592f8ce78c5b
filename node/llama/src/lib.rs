//! The llama.cpp engine: [`quern_engine::Engine`] on the library that
//! llama-cpp-sys-2 builds.
//!
//! Only `ffi.rs` names C symbols and holds `unsafe`. Nothing here knows
//! requests, queues, text or HTTP. Start with [`LlamaEngine::load`], or, where several
//! engines share weights, with [`LlamaModel`]; what can be chosen is in [`LlamaConfig`].
//!
//! The instruction set is chosen at run time: ggml's plug-ins must lie beside
//! the executable, in `backends` beside it, or in the folder that
//! [`BACKENDS_DIR_VARIABLE`] names.
#![deny(missing_docs)]

mod backends;
mod config;
mod engine;
mod ffi;
mod info;
mod inputs;
mod load;
mod log;
mod operations;
mod widen;

pub use backends::BACKENDS_DIR_VARIABLE;
pub use config::{ConfigError, FlashAttention, KvType, LlamaConfig, MAX_SEQUENCES, Split, physical_cores};
pub use engine::LlamaEngine;
pub use info::{Device, ModelInfo};
pub use inputs::MatrixInputs;
pub use load::{LlamaModel, LoadError};
pub use operations::{Operation, Weight};
