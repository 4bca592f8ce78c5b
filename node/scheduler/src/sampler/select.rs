//! Which tokens may be drawn: top-k, top-p and min-p without sorting a vocabulary.
//!
//! All three keep a prefix of the tokens in order of likelihood (ties to the
//! lower token). So each first finds a logit below which nothing can be kept,
//! collects the few tokens above it, and then cuts exactly among those.

use std::cmp::Ordering;

use quern_engine::TokenId;

use super::exp::{LOWEST, weight};
use super::row::{BLOCK, LogitRow, Peak};

const BUCKETS: usize = 256;
/// So few tokens are sorted rather than divided further.
const SORT_AT_MOST: usize = 64;
/// Values that are looked at together when tokens are collected.
const CHUNK: usize = 8;
/// One block in so many is looked at to guess where a tail begins.
const SAMPLE_EVERY: usize = 32;

/// Tokens that may be drawn, in order of their numbers, in columns.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) tokens: Vec<TokenId>,
    pub(super) logits: Vec<f32>,
    pub(super) weights: Vec<f32>,
    /// Indexes into the columns, for selections.
    order: Vec<u32>,
}

/// The last token that is kept.
#[derive(Debug, Clone, Copy)]
struct Cut {
    logit: f32,
    idx: u32,
}

impl Candidates {
    /// Collects the tokens whose logits are at least `cutoff`.
    pub(super) fn gather(&mut self, row: &LogitRow<'_>, maxima: &[f32], cutoff: f32) {
        self.tokens.clear();
        self.logits.clear();
        self.weights.clear();
        let mut found = [0_u32; BLOCK];
        for (block, &max) in maxima.iter().enumerate() {
            if max < cutoff {
                continue;
            }
            let logits = row.block(block);
            let num_found = positions(logits, cutoff, &mut found);
            let found = &found[..num_found];
            self.tokens.extend(found.iter().map(|&offset| (block * BLOCK) as TokenId + offset));
            self.logits.extend(found.iter().map(|&offset| logits[offset as usize]));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Computes the weights; gives their sum.
    pub(super) fn weigh(&mut self, max: f32, scale: f32) -> f64 {
        self.weights.clear();
        self.weights.extend(self.logits.iter().map(|&logit| weight(logit, max, scale)));
        self.total()
    }

    pub(super) fn total(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Keeps the `count` likeliest. To be called before [`Candidates::weigh`].
    pub(super) fn keep_count(&mut self, count: usize) {
        if count >= self.len() {
            return;
        }
        let Candidates { logits, order, .. } = self;
        order.clear();
        order.extend(0..logits.len() as u32);
        let (_, &mut idx, _) = order.select_nth_unstable_by(count - 1, |&a, &b| by_likelihood(logits, a, b));
        let cut = Cut { logit: logits[idx as usize], idx };
        self.retain(cut);
    }

    /// Keeps the fewest of the likeliest whose weights reach `target` together.
    pub(super) fn keep_mass(&mut self, target: f64) {
        if let Some(cut) = self.cut_at_mass(target) {
            self.retain(cut);
        }
    }

    /// Keeps those whose weight is at least `min`.
    pub(super) fn keep_weight(&mut self, min: f32) {
        self.retain_by(|_, _, weight| weight >= min);
    }

    /// The `count` likeliest, likeliest first.
    pub(super) fn likeliest(&mut self, count: usize) -> impl Iterator<Item = (TokenId, f32)> + '_ {
        self.keep_count(count);
        let Candidates { tokens, logits, order, .. } = self;
        order.clear();
        order.extend(0..tokens.len() as u32);
        order.sort_unstable_by(|&a, &b| by_likelihood(logits, a, b));
        order.iter().map(|&idx| (tokens[idx as usize], logits[idx as usize])).take(count)
    }

    /// Divides the candidates into buckets by logit, goes on inside the bucket
    /// in which the sum passes `target`, and sorts once little is left.
    fn cut_at_mass(&mut self, target: f64) -> Option<Cut> {
        let Candidates { logits, weights, order, .. } = self;
        order.clear();
        order.extend(0..logits.len() as u32);
        let mut above = 0.0;
        while order.len() > SORT_AT_MOST {
            let (low, high) = extremes(logits, order);
            let per_logit = (BUCKETS as f32) / (high - low);
            // False as well when the range is nothing or overflows.
            if !(per_logit.is_normal() && high > low) {
                break;
            }
            let bucket = |idx: u32| (((high - logits[idx as usize]) * per_logit) as usize).min(BUCKETS - 1);
            let mut mass = [0.0_f64; BUCKETS];
            for &idx in order.iter() {
                mass[bucket(idx)] += f64::from(weights[idx as usize]);
            }
            let mut chosen = 0;
            while chosen < BUCKETS - 1 && above + mass[chosen] < target {
                above += mass[chosen];
                chosen += 1;
            }
            // The largest and the smallest logit are in different buckets, so
            // this always leaves fewer; it may leave none by rounding alone.
            order.retain(|&idx| bucket(idx) == chosen);
        }
        order.sort_unstable_by(|&a, &b| by_likelihood(logits, a, b));
        let reaches = order.iter().find(|&&idx| {
            above += f64::from(weights[idx as usize]);
            above >= target
        });
        let last = reaches.or(order.last());
        last.map(|&idx| Cut { logit: logits[idx as usize], idx })
    }

    fn retain(&mut self, cut: Cut) {
        self.retain_by(|idx, logit, _| (logit > cut.logit) | ((logit == cut.logit) & (idx <= cut.idx)));
    }

    fn retain_by(&mut self, keep: impl Fn(u32, f32, f32) -> bool) {
        let Candidates { tokens, logits, weights, .. } = self;
        // Unweighed candidates are carried along with a weight of 0.
        let is_weighed = !weights.is_empty();
        weights.resize(tokens.len(), 0.0);
        let mut kept = 0;
        for idx in 0..tokens.len() {
            let (token, logit, weight) = (tokens[idx], logits[idx], weights[idx]);
            // Written in any case: a branch would be mispredicted.
            (tokens[kept], logits[kept], weights[kept]) = (token, logit, weight);
            kept += usize::from(keep(idx as u32, logit, weight));
        }
        tokens.truncate(kept);
        logits.truncate(kept);
        weights.truncate(if is_weighed { kept } else { 0 });
    }
}

/// Descending logits, then ascending tokens; candidates are in token order.
/// Candidates are never NaN, and both zeros are the same logit.
fn by_likelihood(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

fn extremes(logits: &[f32], order: &[u32]) -> (f32, f32) {
    order.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &idx| {
        let logit = logits[idx as usize];
        (low.min(logit), high.max(logit))
    })
}

/// Writes the positions in `logits` (at most a block) of values that reach
/// `cutoff`; gives their number. Without branches on single values, which would
/// be mispredicted.
fn positions(logits: &[f32], cutoff: f32, found: &mut [u32; BLOCK]) -> usize {
    let mut num_found = 0;
    let (chunks, rest) = logits.as_chunks::<CHUNK>();
    for (chunk_idx, chunk) in chunks.iter().enumerate() {
        // Most chunks hold nothing, and this test is vectorised.
        if !chunk.iter().fold(false, |any, &logit| any | (logit >= cutoff)) {
            continue;
        }
        for (idx, &logit) in chunk.iter().enumerate() {
            found[num_found % BLOCK] = (chunk_idx * CHUNK + idx) as u32;
            num_found += usize::from(logit >= cutoff);
        }
    }
    for (idx, &logit) in rest.iter().enumerate() {
        found[num_found % BLOCK] = (chunks.len() * CHUNK + idx) as u32;
        num_found += usize::from(logit >= cutoff);
    }
    num_found
}

/// The logit at which a weight of `2^-bits` is passed.
pub(super) fn cutoff_at(peak: Peak, scale: f32, bits: f64) -> f32 {
    // A little lower, so that rounding here loses no token; NaN (an infinite
    // temperature) and overflow end at the lowest finite logit.
    let distance = (bits + 0.01) / f64::from(scale);
    ((f64::from(peak.logit) - distance) as f32).max(f32::MIN)
}

/// A logit that every token of the nucleus reaches, for certain.
///
/// What is left out of the nucleus weighs no more than `(1 - top_p) * total`.
/// Tokens that weigh less than that divided by the vocabulary's size weigh less
/// than that together, so none of them is needed.
pub(super) fn nucleus_bound(row: &LogitRow<'_>, peak: Peak, scale: f32, total: f64, top_p: f32) -> f32 {
    let tail = (1.0 - f64::from(top_p)) * total / row.len() as f64;
    cutoff_at(peak, scale, (-tail.log2()).clamp(0.0, f64::from(LOWEST)))
}

/// A guess at a higher logit than [`nucleus_bound`] that the nucleus reaches.
///
/// It looks at one block in [`SAMPLE_EVERY`] and asks how far the tail goes that
/// may be left out. The tail is many unlikely tokens, so a sample tells much;
/// the caller checks the sum that it gets and falls back to the bound.
pub(super) fn nucleus_guess(row: &LogitRow<'_>, peak: Peak, scale: f32, total: f64, top_p: f32) -> f32 {
    let tail = 0.8 * (1.0 - f64::from(top_p)) * total / SAMPLE_EVERY as f64;
    let per_bit = BUCKETS as f32 / LOWEST;
    let mut counts = [0_u32; BUCKETS];
    for block in (SAMPLE_EVERY / 2..row.num_blocks()).step_by(SAMPLE_EVERY) {
        for &logit in row.block(block) {
            // A conversion from NaN gives 0, and the first bucket is not asked.
            let bucket = ((peak.logit - logit) * scale * per_bit) as u32 as usize;
            counts[bucket.min(BUCKETS - 1)] += 1;
        }
    }
    let mut sum = 0.0;
    let mut lowest = 0;
    for bucket in (1..BUCKETS).rev() {
        // All in a bucket weigh about what its middle does.
        sum += f64::from(counts[bucket]) * (-(bucket as f64 + 0.5) / f64::from(per_bit)).exp2();
        if sum > tail {
            lowest = bucket;
            break;
        }
    }
    cutoff_at(peak, scale, (lowest + 1) as f64 / f64::from(per_bit))
}
