//! What each kernel computes, written for the CPU: a file of the same name for each; that of `matmul` is that of
//! `matmul_tile` and `matmul_coop` too.
//!
//! Twins are plain and slow. They say what is right; kernels are held against them.

mod attention;
mod attention_merge;
mod copy;
mod embed;
mod group;
mod halve;
mod lora_expand;
mod lora_shrink;
mod matmul;
mod pages;
mod rms_norm;
mod rope_store;
mod sample_draw;
mod sample_scan;
mod swiglu;

pub use attention::attention;
pub use attention_merge::attention_merge;
pub use copy::copy;
pub use embed::embed;
pub use group::Group;
pub use halve::{Halved, halve};
pub use lora_expand::lora_expand;
pub use lora_shrink::{LoraBuffers, lora_shrink};
pub use matmul::matmul;
pub use pages::KvShape;
pub use rms_norm::rms_norm;
pub use rope_store::{HeadNorms, rope_store};
pub use sample_draw::{Drawn, sample_draw};
pub use sample_scan::{BlockScan, sample_scan};
pub use swiglu::swiglu;
