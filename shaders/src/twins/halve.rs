//! The twin of `wgsl/halve.wgsl`.

use half::f16;

/// A row in halves, and what they are multiplied with to be the row again.
#[derive(Debug, Clone, PartialEq)]
pub struct Halved {
    /// The row, divided by the power.
    pub halves: Vec<f16>,
    /// A power of two.
    pub power: f32,
}

/// A row divided by the power of two that brings its largest value to between 1024 and 2048; by 1 where all are 0.
#[must_use]
pub fn halve(row: &[f32]) -> Halved {
    let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    // As the kernel: what would have no inverse in f32 is left.
    let exponent = largest.log2().floor().clamp(-95.0, 113.0);
    let power = if largest == 0.0 { 1.0 } else { (exponent - 10.0).exp2() };
    Halved { halves: row.iter().map(|value| f16::from_f32(value / power)).collect(), power }
}
