//! The twin of `wgsl/sample_draw.wgsl`: sorts the vocabulary, sums in f64.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::sample_scan::{allowed_logits, weight};
use crate::sampling::{SampleRow, SampleShape};

/// What is drawn, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// `None` when no token is above negative infinity.
    pub token: Option<u32>,
    /// The token drawn is the same as long as sums are wrong by less than this part of the total: how far
    /// the random number is from the token's borders, and each cut from the next.
    pub margin: f64,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f64,
}

/// Draws a token for each row. `logits` is `[num_logits_rows, vocab_size]`, `masks` is
/// `[num_masks, mask_words]`.
///
/// # Panics
/// When a row names logits or a mask that are not there.
#[must_use]
pub fn sample_draw(shape: SampleShape, logits: &[f32], masks: &[u32], rows: &[SampleRow]) -> Vec<Drawn> {
    rows.iter().map(|row| draw(row, &allowed_logits(shape, logits, masks, row))).collect()
}

fn draw(row: &SampleRow, logits: &[Option<f32>]) -> Drawn {
    let drawable = logits.iter().enumerate().filter_map(|(token, logit)| Some((token as u32, (*logit)?)));
    let mut sorted: Vec<Candidate> =
        drawable.map(|(token, logit)| Candidate { token, logit, weight: 0.0 }).collect();
    sorted.sort_by(|a, b| b.logit.partial_cmp(&a.logit).expect("no NaN is left").then(a.token.cmp(&b.token)));
    let Some(&Candidate { token, logit: peak, .. }) = sorted.first() else {
        return Drawn { token: None, margin: f64::INFINITY };
    };
    if row.is_greedy || peak == f32::INFINITY {
        return Drawn { token: Some(token), margin: f64::INFINITY };
    }
    sorted.iter_mut().for_each(|candidate| candidate.weight = weight(candidate.logit, peak, row.scale));

    let mut margin = f64::INFINITY;
    if row.top_k > 0 {
        sorted.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        margin = margin.min(cut_at_mass(&mut sorted, f64::from(row.top_p)));
    }
    if row.min_p > 0.0 {
        let min = f64::from(row.min_p);
        let distance = |candidate: &Candidate| (candidate.weight - min).abs() / min;
        // The peak weighs exactly 1 everywhere.
        margin = margin.min(sorted.iter().skip(1).map(distance).fold(f64::INFINITY, f64::min));
        sorted.retain(|candidate| candidate.weight >= min);
    }
    sorted.sort_by_key(|candidate| candidate.token);
    let (token, distance) = walk(&sorted, uniform(row));
    Drawn { token: Some(token), margin: margin.min(distance) }
}

/// Keeps the fewest candidates that hold `share` of the mass; says how near the sum came to it.
fn cut_at_mass(sorted: &mut Vec<Candidate>, share: f64) -> f64 {
    let total = sorted.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sum = 0.0;
    let mut margin = f64::INFINITY;
    let reaches = sorted.iter().position(|candidate| {
        sum += candidate.weight;
        margin = margin.min((sum / total - share).abs());
        sum >= share * total
    });
    sorted.truncate(reaches.map_or(sorted.len(), |last| last + 1));
    margin
}

/// Where the sum of weights, in order of tokens, passes `uniform` of the total, and how near a border.
fn walk(kept: &[Candidate], uniform: f64) -> (u32, f64) {
    let total = kept.iter().map(|candidate| candidate.weight).sum::<f64>();
    let (mut sum, mut token, mut margin) = (0.0, kept[0].token, f64::INFINITY);
    for candidate in kept.iter().filter(|candidate| candidate.weight > 0.0) {
        let before = (sum / total - uniform).abs();
        sum += candidate.weight;
        token = candidate.token;
        // The first token has no border below it.
        margin = if sum == candidate.weight { f64::INFINITY } else { before };
        if sum > uniform * total {
            margin = margin.min((sum / total - uniform).abs());
            break;
        }
    }
    (token, margin)
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
