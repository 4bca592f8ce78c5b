//! The portable engine: WGSL kernels, their CPU twins, and what they are fed with.
#![deny(missing_docs)]

pub mod lora;
pub mod pages;
pub mod sampling;
pub mod twins;
