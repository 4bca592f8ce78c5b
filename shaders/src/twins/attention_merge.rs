//! The twin of `wgsl/attention_merge.wgsl`.

/// Threads of the workgroup that took a part.
const THREADS: usize = 128;

/// One row's heads, `[heads, dim]`, from what its parts came to. In f64.
///
/// `partials` is `[parts, heads, 129, 2]`: a word of weighted values for each of 128 threads, then the largest score
/// and the sum of weights. Threads `dim / 2` apart have the same word, of other keys.
#[must_use]
pub fn attention_merge(partials: &[f32], heads: usize, dim: usize) -> Vec<f32> {
    let part = |pairs: &[f32]| {
        let (values, sums) = pairs.split_at(2 * THREADS);
        let mut summed = vec![0.0; dim];
        values.iter().enumerate().for_each(|(idx, value)| summed[idx % dim] += f64::from(*value));
        (f64::from(sums[0]), f64::from(sums[1]), summed)
    };
    let head = |head_idx: usize| {
        let of_head = partials.chunks_exact(2 * (THREADS + 1)).skip(head_idx).step_by(heads);
        let parts: Vec<_> = of_head.map(part).collect();
        let largest = parts.iter().map(|(largest, ..)| *largest).fold(f64::NEG_INFINITY, f64::max);
        let (mut total, mut out) = (0.0, vec![0.0; dim]);
        for (own_largest, own_total, values) in parts {
            let weight = (own_largest - largest).exp();
            total += weight * own_total;
            out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
        }
        out.into_iter().map(move |value| (value / total) as f32)
    };
    (0..heads).flat_map(head).collect()
}
