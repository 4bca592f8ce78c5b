//! What the sampling kernels are told: sizes, and a row of parameters for each draw.
//!
//! A draw takes two passes. `sample_scan` reads each row of logits once and leaves,
//! for every block of [`BLOCK_TOKENS`] tokens, its largest logit and the sum of its
//! weights. `sample_draw` needs little more than that: one workgroup for each row
//! finds the peak, cuts by top-k, top-p and min-p, and draws.
//!
//! Nothing is approximated and no row is refused. The `k` likeliest tokens lie in
//! the `k` blocks with the largest peaks, so top-k reads those alone, for any `k`.
//! The mass that top-p is a share of comes from the sums of all blocks, and the
//! tokens that are too unlikely for any nucleus are left out by a bound that holds
//! for certain. Without cuts the draw goes by the blocks' sums and then reads the
//! block that was drawn.
//!
//! The order, the random numbers and the ties are the host sampler's. It sums in
//! f64 and this in f32, so the two may differ where a random number falls within
//! about `1e-6` of the border between two tokens, or the mass of a nucleus within
//! that of `top_p`. Penalties, biases and logprobs are the host's alone.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Tokens in a block. A mask's block is two whole words.
pub const BLOCK_TOKENS: u32 = 64;

/// What `sample_draw` gives when no token is above negative infinity.
pub const NO_TOKEN: u32 = u32::MAX;

/// The largest vocabulary: each of `sample_draw`'s 256 threads looks after at most
/// 256 blocks.
pub const MAX_VOCAB: u32 = 256 * 256 * BLOCK_TOKENS;

/// Words in [`SampleRow::words`].
pub const ROW_WORDS: usize = 16;

const NO_MASK: u32 = u32::MAX;

/// Sizes that follow from the vocabulary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleShape {
    /// Length of a row of logits.
    pub vocab_size: u32,
}

impl SampleShape {
    /// Blocks in a row, the last one perhaps a part of one.
    #[must_use]
    pub fn num_blocks(self) -> u32 {
        self.vocab_size.div_ceil(BLOCK_TOKENS)
    }

    /// Words of 32 tokens in a mask. Bit `t % 32` of word `t / 32` allows token
    /// `t`; bits past the vocabulary mean nothing.
    #[must_use]
    pub fn mask_words(self) -> u32 {
        self.vocab_size.div_ceil(32)
    }
}

/// How a token is drawn, with the meaning that the host sampler gives these.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// 0, less, or NaN is greedy: the largest logit, ties to the lowest token.
    pub temperature: f32,
    /// Keep the `top_k` likeliest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// The draw at a position depends on this and the position alone.
    pub seed: u64,
}

impl Draw {
    /// The largest logit.
    pub const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
}

/// One draw as the kernels read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// The key of the seed's ChaCha stream.
    pub(crate) key: [u32; 8],
    pub(crate) position: u32,
    pub(crate) logits_row: u32,
    pub(crate) mask_row: u32,
    /// `log2(e) / temperature`.
    pub(crate) scale: f32,
    pub(crate) is_greedy: bool,
    /// 0 keeps all.
    pub(crate) top_k: u32,
    /// 1 keeps all.
    pub(crate) top_p: f32,
    /// In `0..=1`; 0 keeps all.
    pub(crate) min_p: f32,
}

impl SampleRow {
    /// The draw for `position` from row `logits_row` of the logits, of the tokens
    /// that row `mask_row` of the masks allows, or of all.
    #[must_use]
    pub fn new(draw: Draw, position: u32, logits_row: u32, mask_row: Option<u32>) -> SampleRow {
        let Draw { temperature, top_k, top_p, min_p, seed } = draw;
        let scale = std::f32::consts::LOG2_E / temperature;
        let is_cold = temperature.is_nan() || temperature <= 0.0 || !scale.is_finite();
        let is_greedy = is_cold || top_k == 1 || top_p <= 0.0;
        SampleRow {
            key: if is_greedy { [0; 8] } else { stream_key(seed) },
            position,
            logits_row,
            mask_row: mask_row.unwrap_or(NO_MASK),
            scale: if is_greedy { 0.0 } else { scale },
            is_greedy,
            top_k,
            // As in the host sampler, a NaN limits nothing.
            top_p: if top_p < 1.0 { top_p } else { 1.0 },
            min_p: if min_p > 0.0 { min_p.min(1.0) } else { 0.0 },
        }
    }

    /// The row in the kernels' buffer of parameters, `[num_rows, ROW_WORDS]`.
    #[must_use]
    pub fn words(&self) -> [u32; ROW_WORDS] {
        let mut words = [0; ROW_WORDS];
        words[..8].copy_from_slice(&self.key);
        words[8..].copy_from_slice(&[
            self.position,
            self.logits_row,
            self.mask_row,
            self.scale.to_bits(),
            u32::from(self.is_greedy),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
        ]);
        words
    }

    /// The mask's row, where there is one.
    pub(crate) fn mask_row(&self) -> Option<u32> {
        (self.mask_row != NO_MASK).then_some(self.mask_row)
    }
}

fn stream_key(seed: u64) -> [u32; 8] {
    let bytes = ChaCha8Rng::seed_from_u64(seed).get_seed();
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|idx| u32::from_le_bytes(words[idx]))
}
