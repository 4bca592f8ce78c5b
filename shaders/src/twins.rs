//! What each kernel computes, written for the CPU: a file of the same name for each.
//!
//! Twins are plain and slow. They say what is right; kernels are held against them.

mod rms_norm;

pub use rms_norm::rms_norm;
