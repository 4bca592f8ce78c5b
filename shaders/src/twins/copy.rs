//! The twin of `wgsl/copy.wgsl`.

/// What `x` holds.
#[must_use]
pub fn copy(x: &[u32]) -> Vec<u32> {
    x.to_vec()
}
