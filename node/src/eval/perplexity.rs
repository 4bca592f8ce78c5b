//! Perplexity: how well a model predicts a text.
//!
//! The method is that of llama.cpp's `llama-perplexity` (its `tools/perplexity`, described
//! in <https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity>), so that the
//! numbers can be held against each other on the same text and context:
//!
//! - The whole text is tokenised at once; names of control tokens in it stay text.
//! - Windows of `context` tokens follow each other; what is left at the end is not read.
//!   Where the model wants a token at a text's beginning, it replaces each window's first.
//! - Each window is read from an empty state. The rows at positions
//!   `context / 2 .. context - 1` are judged, each by the probability that it gives to
//!   the token behind it: `context - context / 2 - 1` predictions, each with at least
//!   half a window before it.
//! - The perplexity is `exp(mean)` of the predictions' negative log-likelihoods. Its
//!   standard error is that of the mean, times the perplexity; predictions count as
//!   independent, though neighbours are not quite.
//!
//! With a `stride` below the context, windows begin every `stride` tokens, and of each
//! at most the last `stride` predictions are judged: no token is judged twice.
//!
//! This file knows tokens and an engine; it must not know files or text.

use std::ops::Range;
use std::thread;

use quern_engine::{AdapterId, Engine, EngineError, Output, Row, TokenId};

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens in a window, at least 4.
    pub context: usize,
    /// Tokens from one window's beginning to the next one's, at least 1.
    pub stride: usize,
    /// Windows at most.
    pub max_windows: usize,
    /// What stands at the beginning of each window, where the model wants it.
    pub bos: Option<TokenId>,
}

impl Cut {
    /// The windows of a text of so many tokens.
    #[must_use]
    pub(super) fn num_windows(&self, num_tokens: usize) -> usize {
        let Some(room) = num_tokens.checked_sub(self.context) else { return 0 };
        (room / self.stride + 1).min(self.max_windows)
    }

    /// Predictions that are judged in a window.
    #[must_use]
    pub(super) fn num_judged(&self) -> usize {
        self.stride.min(self.context - self.context / 2 - 1)
    }

    /// The rows of a window that are judged; the last row predicts what is behind the window.
    fn judged(&self) -> Range<usize> {
        self.context - 1 - self.num_judged()..self.context - 1
    }

    /// The tokens of a window.
    pub(super) fn window(&self, tokens: &[TokenId], idx: usize) -> Vec<TokenId> {
        let mut window = tokens[idx * self.stride..][..self.context].to_vec();
        if let Some(bos) = self.bos {
            window[0] = bos;
        }
        window
    }
}

/// The negative log-likelihood, in nats, of each judged token, window after window.
/// `progress` is called with the rows of each step.
///
/// # Errors
/// The engine's; it must have room for a window in sequence 0.
pub fn judge(
    engine: &mut dyn Engine,
    adapter: AdapterId,
    tokens: &[TokenId],
    cut: &Cut,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f32>, EngineError> {
    let mut losses = Vec::with_capacity(cut.num_windows(tokens.len()) * cut.num_judged());
    for idx in 0..cut.num_windows(tokens.len()) {
        let window = cut.window(tokens, idx);
        let judged = cut.judged();
        let mut from = 0;
        while from < judged.end {
            let to = end_of_step(engine, from, &judged);
            let row = |pos: usize| Row {
                seq: 0,
                pos: pos as u32,
                token: window[pos],
                adapter,
                output: if judged.contains(&pos) { Output::Logits } else { Output::None },
            };
            let rows: Vec<Row> = (from..to).map(row).collect();
            let vocab_size = engine.capabilities().vocab_size;
            let logits = engine.step(&rows)?.logits;
            let targets = &window[from.max(judged.start).min(to) + 1..=to];
            losses.extend(negative_log_likelihoods(logits, vocab_size, targets));
            progress(to - from);
            from = to;
        }
        engine.truncate(0, 0)?;
    }
    Ok(losses)
}

/// As many rows as the engine takes, and of those that are judged as many as it gives outputs for.
fn end_of_step(engine: &dyn Engine, from: usize, judged: &Range<usize>) -> usize {
    let caps = engine.capabilities();
    let by_outputs = from.max(judged.start) + caps.max_outputs;
    (from + caps.max_rows).min(by_outputs).min(judged.end)
}

/// For each row of `logits`, `[targets.len(), vocab_size]`, what its target costs.
pub(super) fn negative_log_likelihoods(logits: &[f32], vocab_size: usize, targets: &[TokenId]) -> Vec<f32> {
    let one = |(row, &target): (&[f32], &TokenId)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
        (sum.ln() - f64::from(row[target as usize] - largest)) as f32
    };
    // A vocabulary's exponentials cost about as much as a layer: they are worth all cores.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let each = targets.len().div_ceil(threads).max(1);
    let mut losses = vec![0.0; targets.len()];
    thread::scope(|scope| {
        let parts = losses.chunks_mut(each).zip(targets.chunks(each)).zip(logits.chunks(each * vocab_size));
        for ((losses, targets), logits) in parts {
            scope.spawn(move || {
                let rows = logits.chunks_exact(vocab_size).zip(targets).map(one);
                losses.iter_mut().zip(rows).for_each(|(loss, found)| *loss = found);
            });
        }
    });
    losses
}

#[cfg(test)]
mod tests;
