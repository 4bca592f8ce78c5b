//! The twin of `wgsl/swiglu.wgsl`.

/// `gate / (1 + exp(-gate)) * up` of rows of `width` gates and then as many ups, in f64.
#[must_use]
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let (gates, ups) = row.split_at(width);
        let one = |(gate, up): (&f32, &f32)| {
            let gate = f64::from(*gate);
            (gate / (1.0 + (-gate).exp()) * f64::from(*up)) as f32
        };
        gates.iter().zip(ups).map(one).collect::<Vec<_>>()
    };
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}
