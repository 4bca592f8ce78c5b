//! The twin of `wgsl/attention.wgsl`.

use super::KvShape;

/// One row's heads, `[heads, dim]`, over a sequence whose tokens lie in `slots` of `kv`. In f64.
///
/// `queries` is `[heads, dim]`; heads in a row share key-value heads. Scores are multiplied by `scale`.
#[must_use]
pub fn attention(queries: &[f32], shape: KvShape, kv: &[u32], slots: &[usize], scale: f32) -> Vec<f32> {
    let group = queries.len() / shape.dim / shape.kv_heads;
    let head = |(head_idx, query): (usize, &[f32])| {
        let kv_head = head_idx / group;
        let score = |slot: &usize| {
            let key = shape.key(kv, *slot, kv_head);
            let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
            dot * f64::from(scale)
        };
        let scores: Vec<f64> = slots.iter().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; shape.dim];
        for (slot, weight) in slots.iter().zip(weights) {
            for (out, value) in out.iter_mut().zip(shape.value(kv, *slot, kv_head)) {
                *out += weight / total * f64::from(value);
            }
        }
        out.into_iter().map(|value| value as f32)
    };
    queries.chunks_exact(shape.dim).enumerate().flat_map(head).collect()
}
