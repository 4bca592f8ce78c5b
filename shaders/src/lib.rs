//! The portable engine's parts: WGSL kernels with a CPU twin each, weights on a device, and a step over a
//! ragged batch.
//!
//! This crate knows tensors and tokens' numbers, never text, requests or queues. `README.md` walks from a
//! token to the next.
#![deny(missing_docs)]

mod buffers;
pub mod device;
mod error;
pub mod harness;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod pages;
mod preprocess;
pub mod sampling;
pub mod step;
pub mod texels;
pub mod timing;
pub mod twins;
pub mod weights;

pub use buffers::Buffer;
pub use device::{Backend, Device, DeviceOptions, Profile, Subgroups, Surveyed, survey};
pub use error::DeviceError;
