//! The sampler against a reference that does everything the slow way in f64.

mod edges;
mod properties;

use std::collections::BTreeMap;

use super::*;

/// The slow way: full sorts, f64, one step after the other.
pub(super) struct Reference {
    /// Logits after biases and penalties; NaN as negative infinity.
    pub(super) logits: Vec<f64>,
    /// Tokens above negative infinity, likeliest first, with probabilities
    /// before any filter.
    pub(super) ranking: Vec<(TokenId, f64)>,
}

impl Reference {
    pub(super) fn new(
        logits: &[f32],
        params: &SamplingParams,
        prompt: &[TokenId],
        output: &[TokenId],
    ) -> Reference {
        let mut edited: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        for &(token, bias) in &params.logit_bias {
            edited[token as usize] += f64::from(bias);
        }
        let mut counts: BTreeMap<TokenId, (u32, u32)> = BTreeMap::new();
        prompt.iter().for_each(|&token| counts.entry(token).or_default().0 += 1);
        output.iter().for_each(|&token| counts.entry(token).or_default().1 += 1);
        for (&token, &(_, in_output)) in &counts {
            let logit = &mut edited[token as usize];
            let penalty = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            if in_output > 0 {
                *logit -= f64::from(params.presence_penalty);
                *logit -= f64::from(params.frequency_penalty) * f64::from(in_output);
            }
        }
        for logit in &mut edited {
            if logit.is_nan() {
                *logit = f64::NEG_INFINITY;
            }
        }
        let mut ranking: Vec<(TokenId, f64)> =
            edited.iter().enumerate().map(|(idx, &x)| (idx as TokenId, x)).collect();
        ranking.retain(|&(_, logit)| logit > f64::NEG_INFINITY);
        let order = |a: f64, b: f64| b.partial_cmp(&a).expect("NaN is gone");
        ranking.sort_by(|a, b| order(a.1, b.1).then(a.0.cmp(&b.0)));
        let max = ranking.first().map_or(0.0, |&(_, logit)| logit);
        let temperature = f64::from(params.temperature);
        for (_, value) in &mut ranking {
            *value = ((*value - max) / temperature).exp();
        }
        let total: f64 = ranking.iter().map(|&(_, weight)| weight).sum();
        ranking.iter_mut().for_each(|(_, value)| *value /= total);
        Reference { logits: edited, ranking }
    }

    /// The tokens that may be drawn and their probabilities, in order of
    /// likelihood, for cut-offs moved by `slack` towards keeping more.
    pub(super) fn kept(&self, params: &SamplingParams, slack: f64) -> Vec<(TokenId, f64)> {
        let mut kept = self.ranking.clone();
        if params.top_k > 0 {
            kept.truncate(params.top_k as usize);
        }
        let total: f64 = kept.iter().map(|&(_, p)| p).sum();
        let top_p = f64::from(params.top_p);
        let mut sum = 0.0;
        let mut num_kept = 0;
        for &(_, p) in &kept {
            if num_kept > 0 && top_p < 1.0 && sum >= (top_p + slack) * total {
                break;
            }
            sum += p;
            num_kept += 1;
        }
        kept.truncate(num_kept);
        let min = kept[0].1 * f64::from(params.min_p.min(1.0)) * (1.0 - slack);
        kept.retain(|&(_, p)| p >= min);
        let total: f64 = kept.iter().map(|&(_, p)| p).sum();
        kept.iter_mut().for_each(|(_, p)| *p /= total);
        kept
    }
}

/// What `sampler` would draw from: tokens in their order, and probabilities.
pub(super) fn distribution(sampler: &Sampler, logits: &[f32]) -> Vec<(TokenId, f64)> {
    let (mut edits, mut work) = (Edits::default(), Work::default());
    let row = sampler.edit(&mut edits, logits, None).expect("no constraint is there to fail");
    let peak = row.scan(&mut work.maxima);
    let weigh = |logit| f64::from(weight(logit, peak.logit, sampler.scale()));
    let (weights, total): (Vec<(TokenId, f64)>, f64) = match sampler.select(&row, peak, &mut work) {
        Kept::Peak => (vec![(peak.token, 1.0)], 1.0),
        Kept::Row { total } => {
            let logits = (0..row.num_blocks()).flat_map(|block| row.block(block));
            (logits.enumerate().map(|(idx, &x)| (idx as TokenId, weigh(x))).collect(), total)
        }
        Kept::Candidates { total } => {
            let Candidates { tokens, weights, .. } = &work.candidates;
            (tokens.iter().zip(weights).map(|(&token, &w)| (token, f64::from(w))).collect(), total)
        }
    };
    weights.into_iter().filter(|&(_, w)| w > 0.0).map(|(token, w)| (token, w / total)).collect()
}

pub(super) fn sampler(params: &SamplingParams) -> Sampler {
    Sampler::new(params.clone(), &[], None)
}

/// Normally distributed logits.
pub(super) fn normal_logits(len: usize, deviation: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let mut normal = || {
        let radius = (-2.0 * (1.0 - unit()).ln()).sqrt();
        deviation * radius * (std::f32::consts::TAU * unit()).cos()
    };
    (0..len).map(|_| normal()).collect()
}
