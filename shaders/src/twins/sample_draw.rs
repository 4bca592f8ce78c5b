//! The twin of `wgsl/sample_draw.wgsl`: sorts the vocabulary, sums in f64.

use std::ops::RangeInclusive;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::sample_scan::{allowed_logits, weight};
use crate::sampling::{SampleRow, SampleShape};

/// What is drawn, and what may be drawn when sums are not exact.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// `None` when no token is above negative infinity.
    pub token: Option<u32>,
    /// What any sum that is wrong by at most the slack can lead to: these tokens, or those between.
    pub within: RangeInclusive<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f64,
}

/// Draws a token for each row. `logits` is `[num_logits_rows, vocab_size]`, `masks` is
/// `[num_masks, mask_words]`. `slack` is how wrong sums may be, as a part of the total.
///
/// # Panics
/// When a row names logits or a mask that are not there.
#[must_use]
pub fn sample_draw(
    shape: SampleShape,
    logits: &[f32],
    masks: &[u32],
    rows: &[SampleRow],
    slack: f64,
) -> Vec<Drawn> {
    rows.iter().map(|row| draw(row, &allowed_logits(shape, logits, masks, row), slack)).collect()
}

fn draw(row: &SampleRow, logits: &[Option<f32>], slack: f64) -> Drawn {
    let drawable = logits.iter().enumerate().filter_map(|(token, logit)| Some((token as u32, (*logit)?)));
    let mut sorted: Vec<Candidate> =
        drawable.map(|(token, logit)| Candidate { token, logit, weight: 0.0 }).collect();
    sorted.sort_by(|a, b| b.logit.partial_cmp(&a.logit).expect("no NaN is left").then(a.token.cmp(&b.token)));
    let Some(&Candidate { token, logit: peak, .. }) = sorted.first() else {
        return Drawn { token: None, within: 0..=0 };
    };
    if row.is_greedy || peak == f32::INFINITY {
        return Drawn { token: Some(token), within: token..=token };
    }
    sorted.iter_mut().for_each(|candidate| candidate.weight = weight(candidate.logit, peak, row.scale));
    if row.top_k > 0 {
        sorted.truncate(row.top_k as usize);
    }

    let uniform = uniform(row);
    let token = walk(&cut(&sorted, row, 0.0), uniform);
    let mut within = token..=token;
    for kept in [cut(&sorted, row, -slack), cut(&sorted, row, slack)] {
        for uniform in [uniform - slack, uniform + slack] {
            let token = walk(&kept, uniform);
            within = token.min(*within.start())..=token.max(*within.end());
        }
    }
    Drawn { token: Some(token), within }
}

/// What top-p and min-p keep of the candidates, likeliest first, in order of their numbers. Both limits are
/// off by `nudge`.
fn cut(sorted: &[Candidate], row: &SampleRow, nudge: f64) -> Vec<Candidate> {
    let mut num_kept = sorted.len();
    if row.top_p < 1.0 {
        let total = sorted.iter().map(|candidate| candidate.weight).sum::<f64>();
        let mut sum = 0.0;
        let reaches = sorted.iter().position(|candidate| {
            sum += candidate.weight;
            sum >= (f64::from(row.top_p) + nudge) * total
        });
        num_kept = reaches.map_or(sorted.len(), |last| last + 1);
    }
    let min = f64::from(row.min_p) * (1.0 + nudge);
    // The peak weighs exactly 1 everywhere, so that it always stays.
    let is_kept = |(place, candidate): &(usize, &Candidate)| *place == 0 || candidate.weight >= min;
    let kept = sorted[..num_kept].iter().enumerate().filter(is_kept);
    let mut kept: Vec<Candidate> = kept.map(|(_, candidate)| *candidate).collect();
    kept.sort_by_key(|candidate| candidate.token);
    kept
}

/// Where the sum of weights passes `uniform` of the total.
fn walk(kept: &[Candidate], uniform: f64) -> u32 {
    let total = kept.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sum = 0.0;
    let mut token = kept[0].token;
    for candidate in kept.iter().filter(|candidate| candidate.weight > 0.0) {
        sum += candidate.weight;
        token = candidate.token;
        if sum > uniform * total {
            break;
        }
    }
    token
}

/// The first 24 of the host sampler's 53 random bits for the row's position.
fn uniform(row: &SampleRow) -> f64 {
    let mut seed = [0; 32];
    for (bytes, word) in seed.as_chunks_mut::<4>().0.iter_mut().zip(row.key) {
        *bytes = word.to_le_bytes();
    }
    let mut rng = ChaCha8Rng::from_seed(seed);
    rng.set_word_pos(u128::from(row.position) * 2);
    (rng.next_u64() >> 40) as f64 / f64::from(1 << 24)
}
