//! Which tokens' logits are changed, and how: biases and penalties.
//!
//! Holds one entry for each token that differs from the rest, not one for each
//! token of the vocabulary, and nothing at all when nothing is asked for.

use std::collections::HashMap;

use quern_engine::TokenId;

use crate::request::SamplingParams;

#[derive(Debug, Clone)]
pub(super) struct History {
    repetition: f32,
    presence: f32,
    frequency: f32,
    entries: Vec<Entry>,
    /// Where a token's entry is.
    places: HashMap<TokenId, u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    token: TokenId,
    bias: f32,
    /// In the prompt or in the output.
    is_seen: bool,
    /// How often the output holds it.
    count: u32,
}

impl History {
    pub(super) fn new(params: &SamplingParams, prompt: &[TokenId]) -> History {
        let mut history = History {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            entries: Vec::new(),
            places: HashMap::new(),
        };
        for &(token, bias) in &params.logit_bias {
            history.entry(token).bias += bias;
        }
        if history.repeats_count() {
            for &token in prompt {
                history.entry(token).is_seen = true;
            }
        }
        history
    }

    /// Whether no logit is changed, now or later.
    pub(super) fn changes_nothing(&self) -> bool {
        self.entries.is_empty() && !self.output_counts()
    }

    /// Counts a drawn token.
    pub(super) fn remember(&mut self, token: TokenId) {
        if self.output_counts() {
            let entry = self.entry(token);
            entry.is_seen = true;
            entry.count += 1;
        }
    }

    /// Calls `edit` once for each token below `vocab_size` that is changed,
    /// with what its logit becomes.
    pub(super) fn apply(&self, vocab_size: usize, mut edit: impl FnMut(TokenId, &dyn Fn(f32) -> f32)) {
        for entry in &self.entries {
            if (entry.token as usize) < vocab_size {
                edit(entry.token, &|logit| self.change(entry, logit));
            }
        }
    }

    fn change(&self, entry: &Entry, logit: f32) -> f32 {
        let mut logit = logit + entry.bias;
        if entry.is_seen && self.repeats_count() {
            logit = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        }
        if entry.count > 0 {
            logit -= self.presence + self.frequency * entry.count as f32;
        }
        logit
    }

    fn output_counts(&self) -> bool {
        self.repeats_count() || self.presence != 0.0 || self.frequency != 0.0
    }

    fn repeats_count(&self) -> bool {
        self.repetition != 1.0
    }

    fn entry(&mut self, token: TokenId) -> &mut Entry {
        let next = self.entries.len() as u32;
        let place = *self.places.entry(token).or_insert(next);
        if place == next {
            self.entries.push(Entry { token, ..Entry::default() });
        }
        &mut self.entries[place as usize]
    }
}
