//! Draws the next token from a row of logits.
//!
//! The order is: logit bias, penalties, constraint mask, temperature, top-k,
//! top-p, min-p, draw. A draw's random number is a function of the seed and the
//! position alone, so neither batching nor speculation nor preemption changes
//! an answer. Nothing here knows batches or engines.
//!
//! A vocabulary has 150,000 tokens, so the work is counted in passes over the
//! row: greedy takes one, others two to four. See `sampler/row.rs` for how the
//! row is read, `sampler/select.rs` for how it is narrowed down, and
//! `sampler/exp.rs` for the weights.

mod exp;
mod history;
mod row;
mod select;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::f32::consts::LOG2_E;

use quern_engine::draw::mask_words;
use quern_engine::{Draw, TokenId};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::constraint::{Constraint, ConstraintError, ban};
use crate::request::{SamplingParams, TokenLogprobs};
use exp::weight;
use history::History;
use row::{BLOCK, LogitRow, Patches, Peak};
use select::{Candidates, cutoff_at, nucleus_bound, nucleus_guess};

/// One sequence's sampler. Keep it with the sequence: it knows the history.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    logprobs: Option<u8>,
    history: History,
    /// Seeded once; each draw seeks.
    rng: ChaCha8Rng,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its number.
    pub token: TokenId,
    /// When asked for.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

thread_local! {
    /// Buffers for one row. One thread samples all sequences of an engine, so
    /// one set stays in the processor's cache where one for each would not.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

#[derive(Debug, Default)]
struct Scratch {
    edits: Edits,
    work: Work,
}

#[derive(Debug, Default)]
struct Edits {
    mask: Vec<u32>,
    masked: Vec<f32>,
    patches: Patches,
}

#[derive(Debug, Default)]
struct Work {
    maxima: Vec<f32>,
    sums: Vec<f32>,
    floats: Vec<f32>,
    candidates: Candidates,
}

/// What may be drawn, with the sum of its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    /// The likeliest token alone.
    Peak,
    /// The whole row; the work's `sums` hold.
    Row { total: f64 },
    /// The work's `candidates`.
    Candidates { total: f64 },
}

impl Sampler {
    /// A sampler for an answer to `prompt`; `logprobs` asks for that many alternatives.
    #[must_use]
    pub fn new(params: SamplingParams, prompt: &[TokenId], logprobs: Option<u8>) -> Sampler {
        let history = History::new(&params, prompt);
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Sampler { params, logprobs, history, rng }
    }

    /// Draws the token at `position` from `logits`, `[vocab]`, and remembers it
    /// for the penalties. The same logits, history and position give the same
    /// token. The constraint masks, but it is the caller who tells it of the
    /// token by [`Constraint::accept`].
    ///
    /// NaN counts as negative infinity. A token at positive infinity is certain,
    /// the lowest if there are several. A temperature that is not above 0 is greedy.
    ///
    /// # Errors
    /// [`ConstraintError`] when the constraint cannot go on or no token is left.
    pub fn sample(
        &mut self,
        logits: &[f32],
        position: u64,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<Sampled, ConstraintError> {
        // Taken rather than borrowed, so that a constraint may sample itself.
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let sampled = self.sample_with(&mut scratch, logits, position, constraint);
        SCRATCH.set(Some(scratch));
        sampled
    }

    /// The draw that an engine can make in this sampler's stead, without a mask; `None`
    /// where more is asked for than engines do: biases, penalties or logprobs.
    pub(crate) fn draw(&self) -> Option<Draw> {
        let SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = self.params;
        let is_plain = self.logprobs.is_none() && self.history.changes_nothing();
        is_plain.then_some(Draw { temperature, top_k, top_p, min_p, seed, mask: None })
    }

    /// Takes in what an engine drew by [`Sampler::draw`].
    ///
    /// # Errors
    /// [`ConstraintError`] when no token was left.
    pub(crate) fn take_drawn(token: Option<TokenId>) -> Result<Sampled, ConstraintError> {
        token.map(|token| Sampled { token, logprobs: None }).ok_or_else(no_token)
    }

    fn sample_with(
        &mut self,
        scratch: &mut Scratch,
        logits: &[f32],
        position: u64,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<Sampled, ConstraintError> {
        let Scratch { edits, work } = scratch;
        let row = self.edit(edits, logits, constraint)?;
        let peak = row.scan(&mut work.maxima);
        if peak.logit == f32::NEG_INFINITY {
            return Err(no_token());
        }
        let token = match self.select(&row, peak, work) {
            Kept::Peak => peak.token,
            Kept::Row { total } => {
                draw_from_row(&row, peak, self.scale(), work, self.uniform(position) * total)
            }
            Kept::Candidates { total } => draw_from(&work.candidates, self.uniform(position) * total),
        };
        let logprobs = self.logprobs.map(|count| Box::new(logprobs_of(logits, token, count.into(), work)));
        self.history.remember(token);
        Ok(Sampled { token, logprobs })
    }

    /// Lays biases, penalties and the mask over the row.
    fn edit<'a>(
        &self,
        edits: &'a mut Edits,
        logits: &'a [f32],
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<LogitRow<'a>, ConstraintError> {
        let Edits { mask, masked, patches } = edits;
        let Some(constraint) = constraint else {
            patches.clear();
            self.history.apply(logits.len(), |token, change| {
                let logit = patches.entry(logits, token);
                *logit = change(*logit);
            });
            return Ok(LogitRow::patched(logits, patches));
        };
        masked.clear();
        masked.extend_from_slice(logits);
        self.history.apply(logits.len(), |token, change| {
            let logit = &mut masked[token as usize];
            *logit = change(*logit);
        });
        mask.resize(mask_words(logits.len()), 0);
        constraint.mask(mask)?;
        ban(mask, masked);
        Ok(LogitRow::new(masked))
    }

    /// `log2(e) / temperature`; not finite for temperatures so low that they are greedy.
    fn scale(&self) -> f32 {
        LOG2_E / self.params.temperature
    }

    fn select(&self, row: &LogitRow<'_>, peak: Peak, work: &mut Work) -> Kept {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let scale = self.scale();
        let greedy = temperature.is_nan() || temperature <= 0.0 || !scale.is_finite();
        if greedy || top_k == 1 || top_p <= 0.0 || peak.logit == f32::INFINITY {
            return Kept::Peak;
        }
        let limits_count = top_k > 0 && (top_k as usize) < row.len();
        let (limits_mass, limits_weight) = (top_p < 1.0, min_p > 0.0);

        let Work { maxima, sums, floats, candidates } = work;
        let mut total;
        if limits_count {
            let cutoff = row.cutoff_for(top_k as usize, maxima, floats);
            candidates.gather(row, maxima, cutoff);
            candidates.keep_count(top_k as usize);
            total = candidates.weigh(peak.logit, scale);
        } else if limits_mass {
            total = row.sum(peak.logit, scale, maxima, sums);
            let bound = nucleus_bound(row, peak, scale, total, top_p);
            let guess = nucleus_guess(row, peak, scale, total, top_p).max(bound);
            candidates.gather(row, maxima, guess);
            if candidates.weigh(peak.logit, scale) < f64::from(top_p) * total && guess > bound {
                candidates.gather(row, maxima, bound);
                candidates.weigh(peak.logit, scale);
            }
        } else if limits_weight {
            let bits = -f64::from(min_p.min(1.0)).log2();
            candidates.gather(row, maxima, cutoff_at(peak, scale, bits));
            total = candidates.weigh(peak.logit, scale);
        } else {
            total = row.sum(peak.logit, scale, maxima, sums);
            return Kept::Row { total };
        }
        if limits_mass {
            candidates.keep_mass(f64::from(top_p) * total);
            total = candidates.total();
        }
        if limits_weight {
            // The likeliest weighs exactly 1, so it always stays.
            candidates.keep_weight(min_p.min(1.0));
            total = candidates.total();
        }
        Kept::Candidates { total }
    }

    /// A number in `[0, 1)` with 53 random bits: the words `2 * position` and
    /// the next of the seed's ChaCha stream (8 rounds).
    fn uniform(&mut self, position: u64) -> f64 {
        self.rng.set_word_pos(u128::from(position) * 2);
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

fn no_token() -> ConstraintError {
    ConstraintError("no token is left to draw".to_owned())
}

/// The likeliest token of a row and its probability at temperature 1, for
/// drafts. `None` when no token is above negative infinity.
pub(crate) fn most_likely(logits: &[f32]) -> Option<(TokenId, f32)> {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let Work { maxima, sums, .. } = &mut scratch.work;
    let row = LogitRow::new(logits);
    let peak = row.scan(maxima);
    let total = row.sum(peak.logit, LOG2_E, maxima, sums);
    SCRATCH.set(Some(scratch));
    let probability = if peak.logit == f32::INFINITY { 1.0 } else { (1.0 / total) as f32 };
    (peak.logit > f32::NEG_INFINITY).then_some((peak.token, probability))
}

/// Goes through tokens in order of their numbers until weights sum to `target`.
fn draw_from(candidates: &Candidates, target: f64) -> TokenId {
    let mut sum = 0.0;
    let mut last = 0;
    for (&token, &weight) in candidates.tokens.iter().zip(&candidates.weights) {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = token;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The same over the whole row: first the block, then the token in it.
fn draw_from_row(row: &LogitRow<'_>, peak: Peak, scale: f32, work: &Work, target: f64) -> TokenId {
    let mut sum = 0.0;
    let mut chosen = (0, 0.0);
    for (block, &block_sum) in work.sums.iter().enumerate() {
        if block_sum > 0.0 {
            chosen = (block, sum);
            sum += f64::from(block_sum);
            if sum > target {
                break;
            }
        }
    }
    // A block's sum is rounded otherwise than its terms are here; where they
    // disagree, the block's last possible token is as good.
    let (block, mut sum) = chosen;
    let mut last = 0;
    for (idx, &logit) in row.block(block).iter().enumerate() {
        let weight = weight(logit, peak.logit, scale);
        if weight > 0.0 {
            sum += f64::from(weight);
            last = block * BLOCK + idx;
            if sum > target {
                break;
            }
        }
    }
    last as TokenId
}

/// Log-softmax of the engine's own logits, for each of `tokens`. A token outside of the
/// row is impossible.
pub(crate) fn log_probabilities(logits: &[f32], tokens: impl Iterator<Item = TokenId>) -> Vec<f32> {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let softmax = LogSoftmax::of(&LogitRow::new(logits), &mut scratch.work);
    SCRATCH.set(Some(scratch));
    let logit = |token: TokenId| logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    tokens.map(|token| softmax.logprob(logit(token))).collect()
}

/// What log-softmax needs to know of a row.
#[derive(Debug, Clone, Copy)]
struct LogSoftmax {
    peak: f32,
    normaliser: f64,
}

impl LogSoftmax {
    /// Leaves the blocks' maxima in `work`.
    fn of(row: &LogitRow<'_>, work: &mut Work) -> LogSoftmax {
        let Work { maxima, sums, .. } = work;
        let peak = row.scan(maxima).logit;
        let normaliser = match peak {
            f32::INFINITY => (row.count(f32::INFINITY) as f64).ln(),
            max => f64::from(max) + row.sum(max, LOG2_E, maxima, sums).ln(),
        };
        LogSoftmax { peak, normaliser }
    }

    fn logprob(&self, logit: f32) -> f32 {
        match self.peak {
            f32::INFINITY if logit == f32::INFINITY => -self.normaliser as f32,
            f32::INFINITY => f32::NEG_INFINITY,
            _ if logit > f32::NEG_INFINITY => ((f64::from(logit) - self.normaliser) as f32).min(0.0),
            _ => f32::NEG_INFINITY,
        }
    }
}

/// Log-softmax of the engine's own logits, for `token` and the `count` likeliest.
fn logprobs_of(logits: &[f32], token: TokenId, count: usize, work: &mut Work) -> TokenLogprobs {
    let row = LogitRow::new(logits);
    let softmax = LogSoftmax::of(&row, work);
    let Work { maxima, floats, candidates, .. } = work;
    let mut top = Vec::new();
    if count > 0 && softmax.peak > f32::NEG_INFINITY {
        candidates.gather(&row, maxima, row.cutoff_for(count, maxima, floats));
        top.extend(candidates.likeliest(count).map(|(token, logit)| (token, softmax.logprob(logit))));
    }
    TokenLogprobs { logprob: softmax.logprob(logits[token as usize]), top }
}
