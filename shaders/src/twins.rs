//! What each kernel computes, written for the CPU: a file of the same name for each.
//!
//! Twins are plain and slow. They say what is right; kernels are held against them.

mod attention;
mod embed;
mod group;
mod matmul;
mod pages;
mod rms_norm;
mod rope_store;
mod swiglu;

pub use attention::attention;
pub use embed::embed;
pub use group::Group;
pub use matmul::matmul;
pub use pages::KvShape;
pub use rms_norm::rms_norm;
pub use rope_store::{HeadNorms, rope_store};
pub use swiglu::swiglu;
