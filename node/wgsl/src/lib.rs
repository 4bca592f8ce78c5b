//! The engine contract on the portable kernels.
//!
//! Kernels, weights and steps live in `quern-shaders`; here is who holds which page, and what the contract
//! says about batches, forks and errors. Where next: `engine.rs`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter;
mod config;
mod engine;
mod load;

pub use config::{ConfigError, WgslConfig};
pub use engine::WgslEngine;
pub use load::{LoadError, WgslModel};
pub use quern_shaders::{Backend, DeviceOptions, Profile};
