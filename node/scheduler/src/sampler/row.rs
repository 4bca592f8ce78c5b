//! A row of logits in blocks, with changes laid over it.
//!
//! Biases and penalties touch a few tokens of a vocabulary of 150,000. So the
//! blocks that they touch are copied and changed, and the others are read where
//! they lie. Only a constraint's mask, which may touch all, costs a full copy.
//! This file finds peaks and sums; it knows nothing of parameters.

use quern_engine::TokenId;

use super::exp::{LANES, sum_weights, weight};

/// Logits in one block: small enough that few blocks hold the likely tokens,
/// large enough that the work for each block is lost in the work inside it.
pub(super) const BLOCK: usize = 256;

const UNTOUCHED: u32 = u32::MAX;

/// Copies of the blocks that differ from the engine's row. Empty it before use.
#[derive(Debug, Default)]
pub(super) struct Patches {
    /// For each block, the index of its copy.
    slots: Vec<u32>,
    touched: Vec<u32>,
    data: Vec<f32>,
}

impl Patches {
    pub(super) fn clear(&mut self) {
        for &block in &self.touched {
            self.slots[block as usize] = UNTOUCHED;
        }
        self.touched.clear();
        self.data.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// The changeable logit of `token`, which must be inside `base`.
    pub(super) fn entry(&mut self, base: &[f32], token: TokenId) -> &mut f32 {
        let (block, offset) = (token as usize / BLOCK, token as usize % BLOCK);
        if self.slots.len() <= block {
            self.slots.resize(base.len().div_ceil(BLOCK), UNTOUCHED);
        }
        if self.slots[block] == UNTOUCHED {
            self.slots[block] = self.touched.len() as u32;
            self.touched.push(block as u32);
            let source = block_of(base, block);
            self.data.extend_from_slice(source);
            // Every copy takes a whole block's room, so that slots are easy to find.
            self.data.resize(self.touched.len() * BLOCK, f32::NEG_INFINITY);
        }
        &mut self.data[self.slots[block] as usize * BLOCK + offset]
    }
}

fn block_of(base: &[f32], block: usize) -> &[f32] {
    let start = block * BLOCK;
    &base[start..base.len().min(start + BLOCK)]
}

/// The likeliest token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Peak {
    pub(super) token: TokenId,
    pub(super) logit: f32,
}

/// A row of logits as the sampler sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitRow<'a> {
    base: &'a [f32],
    patches: Option<&'a Patches>,
}

impl<'a> LogitRow<'a> {
    pub(super) fn new(base: &'a [f32]) -> LogitRow<'a> {
        LogitRow { base, patches: None }
    }

    pub(super) fn patched(base: &'a [f32], patches: &'a Patches) -> LogitRow<'a> {
        LogitRow { base, patches: (!patches.is_empty()).then_some(patches) }
    }

    pub(super) fn len(&self) -> usize {
        self.base.len()
    }

    /// How many tokens have this logit.
    pub(super) fn count(&self, logit: f32) -> usize {
        let in_block = |block| self.block(block).iter().filter(|&&x| x == logit).count();
        (0..self.num_blocks()).map(in_block).sum()
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.base.len().div_ceil(BLOCK)
    }

    /// The logits `block * BLOCK..`, one block or what is left of the row.
    pub(super) fn block(&self, block: usize) -> &'a [f32] {
        let source = block_of(self.base, block);
        let Some(patches) = self.patches else { return source };
        match patches.slots.get(block) {
            Some(&slot) if slot != UNTOUCHED => {
                let start = slot as usize * BLOCK;
                &patches.data[start..start + source.len()]
            }
            _ => source,
        }
    }

    /// Finds each block's largest logit and the row's, ties to the lowest
    /// token. NaN counts as negative infinity; a row of nothing else, or an
    /// empty one, has its peak at negative infinity.
    pub(super) fn scan(&self, maxima: &mut Vec<f32>) -> Peak {
        maxima.clear();
        let (mut best_block, mut logit) = (0, f32::NEG_INFINITY);
        for block in 0..self.num_blocks() {
            let max = max_of(self.block(block));
            maxima.push(max);
            if max > logit {
                (best_block, logit) = (block, max);
            }
        }
        if logit == f32::NEG_INFINITY {
            return Peak { token: 0, logit };
        }
        let offset = self.block(best_block).iter().position(|&x| x == logit);
        let offset = offset.expect("a block's maximum is one of its logits");
        Peak { token: (best_block * BLOCK + offset) as TokenId, logit }
    }

    /// The sum of weights of each block, and of all. `maxima` is from
    /// [`LogitRow::scan`] and `max` the largest of them.
    pub(super) fn sum(&self, max: f32, scale: f32, maxima: &[f32], sums: &mut Vec<f32>) -> f64 {
        sums.clear();
        let mut total = 0.0;
        for (block, &block_max) in maxima.iter().enumerate() {
            // At low temperatures most blocks weigh nothing.
            let is_heavy = weight(block_max, max, scale) > 0.0;
            let sum = if is_heavy { sum_weights(self.block(block), max, scale) } else { 0.0 };
            sums.push(sum);
            total += f64::from(sum);
        }
        total
    }

    /// A logit that at least `count` tokens reach, if so many are above negative
    /// infinity, and rarely many more. `maxima` is from [`LogitRow::scan`].
    ///
    /// Each block's maximum is a token, so at least `count` tokens are no
    /// smaller than the `count`-th largest maximum. Where there are too few
    /// blocks, the maxima of each block's lanes do the same.
    pub(super) fn cutoff_for(&self, count: usize, maxima: &[f32], scratch: &mut Vec<f32>) -> f32 {
        scratch.clear();
        if count <= maxima.len() {
            scratch.extend_from_slice(maxima);
        } else if count <= maxima.len() * LANES {
            for block in 0..self.num_blocks() {
                scratch.extend_from_slice(&lane_maxima(self.block(block)));
            }
        } else {
            return f32::MIN;
        }
        let (_, cutoff, _) = scratch.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        cutoff.max(f32::MIN)
    }
}

fn lane_maxima(logits: &[f32]) -> [f32; LANES] {
    // Comparing this way round keeps the old value when the new one is NaN.
    let larger = |lane: f32, logit: f32| if logit > lane { logit } else { lane };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, logit);
    }
    lanes
}

fn max_of(logits: &[f32]) -> f32 {
    lane_maxima(logits).into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
}
