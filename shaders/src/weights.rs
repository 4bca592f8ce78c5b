//! A model's weights: how they lie on the device, and how they come there from a file.

pub mod format;
mod repack;

pub use format::{Format, Planes};
pub use repack::{repack, widen_q5_0};
