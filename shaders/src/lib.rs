//! The portable engine's parts: WGSL kernels with a CPU twin each, weights on a device, and a step over a
//! ragged batch.
//!
//! This crate knows tensors and tokens' numbers, never text, requests or queues. `README.md` walks from a
//! token to the next.
//!
//! What waits for a device is async; beside it stands a form that blocks, but on WebAssembly, where a page must
//! not be blocked.
#![deny(missing_docs)]

mod buffers;
mod clock;
pub mod device;
mod error;
#[cfg(not(target_arch = "wasm32"))]
pub mod harness;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod pages;
mod preprocess;
pub mod sampling;
pub mod step;
pub mod texels;
#[cfg(not(target_arch = "wasm32"))]
pub mod timing;
pub mod twins;
pub mod weights;

pub use buffers::Buffer;
pub use device::{Backend, Device, DeviceOptions, Profile, Subgroups};
#[cfg(not(target_arch = "wasm32"))]
pub use device::{Surveyed, survey};
pub use error::DeviceError;
