//! What each kernel computes, written for the CPU: a file of the same name for each.
//!
//! Twins are plain and slow. They say what is right; kernels are held against them.

mod embed;
mod group;
mod matmul;
mod rms_norm;

pub use embed::embed;
pub use group::Group;
pub use matmul::matmul;
pub use rms_norm::rms_norm;
