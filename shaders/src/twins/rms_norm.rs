//! The twin of `wgsl/rms_norm.wgsl`.

/// Divides each row by the root of its mean square and multiplies it with `weight`.
///
/// `x` is `[num_rows, weight.len()]`, and so is the result; row `i` of the result is of row `from[i]`.
/// Sums are f64.
#[must_use]
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, from: &[u32]) -> Vec<f32> {
    let width = weight.len();
    let mut out = Vec::with_capacity(from.len() * width);
    for &row in from {
        let row = &x[row as usize * width..][..width];
        let squares: f64 = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        let scale = 1.0 / (squares / width as f64 + f64::from(epsilon)).sqrt();
        out.extend(row.iter().zip(weight).map(|(value, weight)| (f64::from(*value) * scale) as f32 * weight));
    }
    out
}
