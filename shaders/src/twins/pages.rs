//! The twin of `wgsl/shared/pages.wgsl`: where keys and values lie.

use half::f16;

/// Tokens of a page.
const SLOTS: usize = 32;

/// The shape of a layer's part of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub dim: usize,
}

impl KvShape {
    /// Words of a page.
    #[must_use]
    pub fn page_words(&self) -> usize {
        2 * self.kv_heads * SLOTS * self.dim / 2
    }

    /// A token's key of one head; `slot` counts over all pages.
    #[must_use]
    pub fn key(&self, kv: &[u32], slot: usize, head: usize) -> Vec<f32> {
        let start = slot / SLOTS * self.page_words() + head * SLOTS * self.dim / 2;
        let word = |dim: usize| kv[start + (dim / 8 * SLOTS + slot % SLOTS) * 4 + dim % 8 / 2];
        (0..self.dim).map(|dim| half(word(dim), dim)).collect()
    }

    /// A token's value of one head; `slot` counts over all pages.
    #[must_use]
    pub fn value(&self, kv: &[u32], slot: usize, head: usize) -> Vec<f32> {
        let start = slot / SLOTS * self.page_words() + (self.kv_heads + head) * SLOTS * self.dim / 2;
        let word = |dim: usize| kv[start + slot % SLOTS * self.dim / 2 + dim / 2];
        (0..self.dim).map(|dim| half(word(dim), dim)).collect()
    }
}

fn half(word: u32, idx: usize) -> f32 {
    f16::from_bits((word >> (16 * (idx % 2))) as u16).to_f32()
}
