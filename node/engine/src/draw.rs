//! What a draw is: the terms that a scheduler which samples by itself and an engine that samples
//! for it agree on.
//!
//! The order is: mask, temperature, top-k, top-p, min-p, draw. Who is likelier is decided by
//! logits, ties by the lower token; NaN counts as negative infinity. The random number is the
//! first of the words `2 * position` and the next of the seed's ChaCha stream (8 rounds), as a
//! part of one, where `position` is that of the token that is drawn. Tokens are walked through in
//! the order of their numbers until their weights sum to that part of the total.

use std::cmp::Ordering;
use std::f32::consts::LOG2_E;
use std::ops::RangeInclusive;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::TokenId;

/// How the token behind a row is drawn.
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
    /// Which of the step's masks says what may be drawn; `None` allows every token.
    pub mask: Option<u32>,
}

impl Draw {
    /// The largest logit of all.
    pub const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, mask: None };
}

/// Words of 32 tokens in a mask. Bit `t % 32` of word `t / 32` allows token `t`; bits past the
/// vocabulary mean nothing.
#[must_use]
pub fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// Whether a mask allows `token`, which is inside of it.
#[must_use]
pub fn allows(mask: &[u32], token: TokenId) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: TokenId,
    logit: f32,
    weight: f64,
}

/// What a draw at `position` may give from `logits`, `[vocab]`, of the tokens that `mask` allows,
/// by whoever's sums are wrong by at most `slack` as a part of the total: these tokens, or those
/// between. With a slack of 0 that is one token. `None` when no token is above negative infinity.
///
/// The slow way, for checks: it sorts the vocabulary and sums in f64. `draw.mask` is not looked at.
#[must_use]
pub fn drawn(
    logits: &[f32],
    draw: Draw,
    position: u32,
    mask: Option<&[u32]>,
    slack: f64,
) -> Option<RangeInclusive<TokenId>> {
    let is_drawable =
        |token: TokenId, logit: f32| logit > f32::NEG_INFINITY && mask.is_none_or(|mask| allows(mask, token));
    let mut sorted: Vec<Candidate> = (0..)
        .zip(logits)
        .filter(|&(token, &logit)| is_drawable(token, logit))
        .map(|(token, &logit)| Candidate { token, logit, weight: 1.0 })
        .collect();
    sorted
        .sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token)));
    let peak = *sorted.first()?;
    let Draw { temperature, top_k, top_p, .. } = draw;
    let is_cold = temperature.is_nan() || temperature <= 0.0 || !(LOG2_E / temperature).is_finite();
    if is_cold || top_k == 1 || top_p <= 0.0 || peak.logit == f32::INFINITY {
        return Some(peak.token..=peak.token);
    }
    for candidate in &mut sorted {
        let distance = f64::from(candidate.logit) - f64::from(peak.logit);
        candidate.weight = (distance / f64::from(temperature)).exp();
    }
    if top_k > 0 {
        sorted.truncate(top_k as usize);
    }
    let part = uniform(draw.seed, position);
    let walks = [-slack, slack].map(|nudge| {
        let kept = kept(&sorted, draw, nudge);
        [-slack, slack].map(|other| walk(&kept, part + other))
    });
    let (low, high) = (walks.as_flattened().iter().min()?, walks.as_flattened().iter().max()?);
    Some(*low..=*high)
}

/// A number in `[0, 1)` with 53 random bits. An engine may take the first 24 of them.
fn uniform(seed: u64, position: u32) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_word_pos(u128::from(position) * 2);
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// What top-p and min-p leave of the candidates, likeliest first, by their numbers. Both limits
/// are off by `nudge`.
fn kept(sorted: &[Candidate], draw: Draw, nudge: f64) -> Vec<Candidate> {
    let mut num_kept = sorted.len();
    if draw.top_p < 1.0 {
        let goal = (f64::from(draw.top_p) + nudge) * total(sorted);
        let mut sum = 0.0;
        let reaches = sorted.iter().position(|candidate| {
            sum += candidate.weight;
            sum >= goal
        });
        num_kept = reaches.map_or(num_kept, |last| last + 1);
    }
    let least = if draw.min_p > 0.0 { f64::from(draw.min_p.min(1.0)) * (1.0 + nudge) } else { 0.0 };
    let (peak, others) = sorted[..num_kept].split_at(1);
    let mut kept = peak.to_vec();
    kept.extend(others.iter().filter(|candidate| candidate.weight >= least));
    kept.sort_by_key(|candidate| candidate.token);
    kept
}

/// The token at which the sum of weights passes `part` of the total.
fn walk(kept: &[Candidate], part: f64) -> TokenId {
    let goal = part * total(kept);
    let mut sum = 0.0;
    let mut token = kept[0].token;
    for candidate in kept.iter().filter(|candidate| candidate.weight > 0.0) {
        sum += candidate.weight;
        token = candidate.token;
        if sum > goal {
            break;
        }
    }
    token
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Draw = Draw { temperature: 1.0, ..Draw::GREEDY };

    #[track_caller]
    fn check(logits: &[f32], draw: Draw, mask: Option<&[u32]>, expected: Option<TokenId>) {
        for position in 0..20 {
            let found = drawn(logits, Draw { seed: 7, ..draw }, position, mask, 0.0);
            assert_eq!(found, expected.map(|token| token..=token));
        }
    }

    #[test]
    fn what_leaves_no_choice() {
        let logits = [1.0, 3.0, 2.0, 3.0, f32::NAN];
        check(&logits, Draw::GREEDY, None, Some(1));
        check(&logits, Draw { temperature: f32::NAN, ..WARM }, None, Some(1));
        check(&logits, Draw { top_k: 1, ..WARM }, None, Some(1));
        check(&logits, Draw { top_p: 0.2, ..WARM }, None, Some(1));
        check(&logits, Draw { min_p: 1.0, ..WARM }, Some(&[0b10111]), Some(1));
        check(&logits, WARM, Some(&[0b10100]), Some(2));
        check(&logits, WARM, Some(&[0b10000]), None);
        check(&[0.0, f32::INFINITY, f32::INFINITY], WARM, None, Some(1));
    }

    #[test]
    fn draws_follow_probabilities_and_slack_widens_them() {
        let logits = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln);
        let mut counts = [0_u32; 4];
        for position in 0..4000 {
            let found = drawn(&logits, WARM, position, None, 0.0).expect("there are tokens");
            counts[*found.start() as usize] += 1;
            assert_eq!(found.start(), found.end());
            let wide = drawn(&logits, WARM, position, None, 0.6).expect("there are tokens");
            assert!(wide.contains(found.start()) && wide.start() < wide.end());
        }
        for (count, expected) in counts.into_iter().zip([2000_i32, 1000, 500, 500]) {
            assert!((count as i32 - expected).abs() < 150, "{counts:?}");
        }
    }
}
