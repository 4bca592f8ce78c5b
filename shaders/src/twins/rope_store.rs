//! The twin of `wgsl/rope_store.wgsl`.

/// Weights of the norms of queries and keys, `[dim]` each.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// For queries.
    pub query: &'a [f32],
    /// For keys.
    pub key: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
}

/// One row, `[heads + 2 * kv_heads, dim]`, with its queries and keys normed and turned: pairs
/// `(i, i + dim / 2)` by `turns[i]`, cosine and sine. In f64.
#[must_use]
pub fn rope_store(
    row: &[f32],
    [heads, kv_heads]: [usize; 2],
    turns: &[[f32; 2]],
    norms: Option<HeadNorms<'_>>,
) -> Vec<f32> {
    let half = turns.len();
    let mut out = Vec::with_capacity(row.len());
    for (head_idx, head) in row.chunks_exact(2 * half).enumerate() {
        if head_idx >= heads + kv_heads {
            out.extend_from_slice(head);
            continue;
        }
        let mut head: Vec<f64> = head.iter().map(|value| f64::from(*value)).collect();
        if let Some(norms) = norms {
            let squares: f64 = head.iter().map(|value| value * value).sum();
            let scale = 1.0 / (squares / head.len() as f64 + f64::from(norms.epsilon)).sqrt();
            let weight = if head_idx < heads { norms.query } else { norms.key };
            head.iter_mut().zip(weight).for_each(|(value, weight)| *value *= scale * f64::from(*weight));
        }
        let turned = |i: usize| {
            let [cos, sin] = turns[i % half].map(f64::from);
            let (x, y) = (head[i % half], head[i % half + half]);
            if i < half { x * cos - y * sin } else { x * sin + y * cos }
        };
        out.extend((0..2 * half).map(|i| turned(i) as f32));
    }
    out
}
