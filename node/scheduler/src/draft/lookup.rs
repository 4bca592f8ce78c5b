//! Drafts from the sequence itself: what followed the last time.
//!
//! Answers repeat their prompt and themselves (code that is edited, quoted
//! text, JSON keys). One backward scan compares the tail with every earlier
//! place in a bounded window, so nothing has to be kept for a sequence.

use quern_engine::TokenId;

use super::{DraftAsk, Drafter, clear_drafts};

/// Tokens before the end that are searched. A scan of so many costs a few
/// microseconds, since most places differ in the first token compared.
const WINDOW: usize = 8192;

/// A range of n-gram lengths that is empty or begins at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("n-grams of {min_ngram} to {max_ngram} tokens cannot be looked up")]
pub struct LookupError {
    /// The shortest that was asked for.
    pub min_ngram: usize,
    /// The longest that was asked for.
    pub max_ngram: usize,
}

/// Looks the sequence's last tokens up in the sequence.
#[derive(Debug, Clone)]
pub struct PromptLookup {
    min_ngram: usize,
    max_ngram: usize,
}

impl Default for PromptLookup {
    /// Two to four tokens: one alone recurs by chance, and what five agree on
    /// four have found already.
    fn default() -> Self {
        PromptLookup { min_ngram: 2, max_ngram: 4 }
    }
}

impl PromptLookup {
    /// Compares at most `max_ngram` tokens and is content with `min_ngram`.
    ///
    /// # Errors
    /// [`LookupError`] unless `1 <= min_ngram <= max_ngram`.
    pub fn new(min_ngram: usize, max_ngram: usize) -> Result<PromptLookup, LookupError> {
        if min_ngram == 0 || min_ngram > max_ngram {
            return Err(LookupError { min_ngram, max_ngram });
        }
        Ok(PromptLookup { min_ngram, max_ngram })
    }

    /// Where the text went on after the longest match; the latest among equals.
    fn find(&self, tokens: &[TokenId]) -> Option<usize> {
        let window_start = tokens.len().saturating_sub(WINDOW);
        let &last = tokens.last()?;
        let (mut best, mut best_len) = (None, self.min_ngram - 1);
        for end in (window_start + 1..tokens.len()).rev() {
            if tokens[end - 1] != last {
                continue;
            }
            let earlier = tokens[..end].iter().rev().take(self.max_ngram);
            let len = earlier.zip(tokens.iter().rev()).take_while(|(a, b)| a == b).count();
            if len > best_len {
                (best, best_len) = (Some(end), len);
            }
            if best_len == self.max_ngram {
                break;
            }
        }
        best
    }
}

impl Drafter for PromptLookup {
    fn name(&self) -> &str {
        "prompt-lookup"
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<TokenId>>) {
        clear_drafts(out, asks.len());
        for (ask, draft) in asks.iter().zip(out) {
            let Some(start) = self.find(ask.tokens) else { continue };
            for idx in start..start + ask.max as usize {
                // Past the end the draft goes on with itself: the text is
                // taken to repeat with the distance that was found.
                let token = ask.tokens.get(idx).or_else(|| draft.get(idx - ask.tokens.len()));
                draft.push(*token.expect("a match ends before the tail does"));
            }
        }
    }

    fn forget(&mut self, _seq: u64) {}
}
