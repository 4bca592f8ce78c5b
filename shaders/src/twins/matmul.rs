//! The twin of `wgsl/matmul.wgsl`.

use super::Group;
use crate::weights::format::{Format, GROUP, Planes};

/// `out[c][m]`, the sum over k of `W[m][k] * x[c][k]`, in f64.
///
/// `W` is `[num_rows, num_groups * 32]` in planes, `x` is `[columns, num_groups * 32]`.
#[must_use]
pub fn matmul(format: Format, num_rows: usize, num_groups: usize, planes: &Planes, x: &[f32]) -> Vec<f32> {
    let columns: Vec<&[f32]> = x.chunks_exact(num_groups * GROUP).collect();
    let mut out = vec![0.0; columns.len() * num_rows];
    for row in 0..num_rows {
        let read = |group_idx| Group::read(format, num_groups, planes, row, group_idx).values();
        let weights: Vec<f32> = (0..num_groups).flat_map(read).collect();
        for (column, x) in columns.iter().enumerate() {
            let products = weights.iter().zip(*x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            out[column * num_rows + row] = products.sum::<f64>() as f32;
        }
    }
    out
}
