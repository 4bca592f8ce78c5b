//! Drafts from a smaller model with the same vocabulary.
//!
//! It has an engine of its own and keeps state there for the sequences that
//! asked last. Each round brings that state up to date with what was really
//! drawn (cutting off rejected drafts), then goes on greedily, one token a step
//! for all sequences together. Whatever fails here costs drafts, never requests.

use std::collections::HashMap;

use quern_engine::{AdapterId, Engine, EngineError, Output, Row, SeqId, TokenId};

use super::{DraftAsk, Drafter, clear_drafts};
use crate::sampler::most_likely;

/// Vocabularies of one family differ by padding of the embedding matrix: Qwen's
/// have 151,936 and 152,064 rows for the same tokens.
const MAX_PADDING: usize = 256;

/// The draft model's vocabulary is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the draft model has a vocabulary of {draft}, the model one of {target}")]
pub struct VocabMismatch {
    /// Length of the draft model's logits.
    pub draft: usize,
    /// Length of the served model's logits.
    pub target: usize,
}

/// How a [`ModelDrafter`] works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelDrafterConfig {
    /// A draft ends before a token to which the draft model gives less than this.
    pub min_probability: f32,
    /// Tokens computed in one round to catch up, over all sequences. One that
    /// is further behind gets its draft in a later round, so that a long
    /// prompt holds nobody up.
    pub max_sync_tokens: usize,
}

impl Default for ModelDrafterConfig {
    fn default() -> Self {
        ModelDrafterConfig { min_probability: 0.4, max_sync_tokens: 512 }
    }
}

/// Drafts with a smaller model.
pub struct ModelDrafter {
    engine: Box<dyn Engine>,
    config: ModelDrafterConfig,
    /// Tokens that both models know.
    vocab_size: usize,
    /// What each of the engine's sequences holds.
    slots: Vec<Option<Slot>>,
    places: HashMap<u64, SeqId>,
    free: Vec<SeqId>,
    /// Counts calls of [`Drafter::draft`].
    round: u64,
    has_warned: bool,
}

#[derive(Debug)]
struct Slot {
    seq: u64,
    held: Vec<TokenId>,
    /// The last round in which it was asked for.
    used: u64,
}

/// One ask that can be served in this round.
#[derive(Debug, Clone, Copy)]
struct Turn {
    ask_idx: usize,
    slot: SeqId,
    max: usize,
    /// Tokens that the engine has yet to see.
    missing: usize,
}

/// What the draft model would say next.
#[derive(Debug, Clone, Copy)]
struct Guess {
    slot: SeqId,
    token: TokenId,
    probability: f32,
}

impl ModelDrafter {
    /// Drafts for a model whose logits have length `target_vocab`. The engine
    /// must be empty and belongs to the drafter from now on.
    ///
    /// # Errors
    /// [`VocabMismatch`] when the vocabularies differ by more than padding.
    pub fn new(
        engine: Box<dyn Engine>,
        target_vocab: usize,
        config: ModelDrafterConfig,
    ) -> Result<ModelDrafter, VocabMismatch> {
        let caps = engine.capabilities();
        let draft_vocab = caps.vocab_size;
        if draft_vocab.abs_diff(target_vocab) > MAX_PADDING {
            return Err(VocabMismatch { draft: draft_vocab, target: target_vocab });
        }
        let num_slots = caps.max_sequences;
        Ok(ModelDrafter {
            engine,
            config,
            vocab_size: draft_vocab.min(target_vocab),
            slots: (0..num_slots).map(|_| None).collect(),
            places: HashMap::new(),
            free: (0..num_slots as SeqId).rev().collect(),
            round: 0,
            has_warned: false,
        })
    }

    /// Tokens of state that the draft engine holds.
    #[must_use]
    pub fn kv_used(&self) -> usize {
        self.slots.iter().flatten().map(|slot| slot.held.len()).sum()
    }

    /// Sequences that the draft engine holds state for.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.places.len()
    }

    /// Finds a place for each ask and cuts its state back to what is still true.
    fn take_turns(&mut self, asks: &[DraftAsk<'_>]) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        // Turns need so much room beside what is held.
        let mut wanted = 0;
        for (ask_idx, ask) in asks.iter().enumerate() {
            let caps = self.engine.capabilities();
            let (capacity, max_len) = (caps.kv_capacity, caps.max_sequence_len);
            // The last drafted token is not computed, so it takes no room.
            let longest = (max_len + 1).saturating_sub(ask.tokens.len());
            let max = longest.min(ask.max as usize);
            let is_known = ask.tokens.iter().all(|&token| (token as usize) < self.vocab_size);
            if max == 0 || ask.tokens.is_empty() || !is_known {
                continue;
            }
            let Some(slot) = self.slot_for(ask.seq) else { continue };
            let Some(kept) = self.cut(slot, ask.tokens) else { continue };
            let missing = ask.tokens.len() - kept;
            let room = missing + max - 1;
            while self.kv_used() + wanted + room > capacity && self.evict() {}
            if self.kv_used() + wanted + room > capacity {
                self.release(slot);
                continue;
            }
            wanted += room;
            turns.push(Turn { ask_idx, slot, max, missing });
        }
        // Those who lack little come first, so that one long prompt does not
        // use the round up.
        turns.sort_by_key(|turn| turn.missing);
        turns
    }

    /// The place of `seq`, new or old, marked as used; `None` when all places
    /// serve this round or it has asked in it before.
    fn slot_for(&mut self, seq: u64) -> Option<SeqId> {
        let round = self.round;
        if let Some(&place) = self.places.get(&seq) {
            let slot = self.slots[place as usize].as_mut().expect("places name filled slots");
            return (std::mem::replace(&mut slot.used, round) != round).then_some(place);
        }
        if self.free.is_empty() {
            self.evict();
        }
        let place = self.free.pop()?;
        self.slots[place as usize] = Some(Slot { seq, held: Vec::new(), used: round });
        self.places.insert(seq, place);
        Some(place)
    }

    /// Drops the state that was unused for longest; false when all are in use.
    fn evict(&mut self) -> bool {
        let round = self.round;
        let idle = self.slots.iter().enumerate().filter_map(|(place, slot)| {
            let slot = slot.as_ref().filter(|slot| slot.used != round)?;
            Some((slot.used, place as SeqId))
        });
        let Some((_, place)) = idle.min() else { return false };
        self.release(place);
        true
    }

    /// Cuts the state back to what it shares with `tokens`, all but the last of
    /// them, which is computed anew for its logits. Gives what is left.
    fn cut(&mut self, place: SeqId, tokens: &[TokenId]) -> Option<usize> {
        let slot = self.slots[place as usize].as_mut().expect("a turn's slot is filled");
        let shared = slot.held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = shared.min(tokens.len() - 1);
        if kept < slot.held.len() {
            slot.held.truncate(kept);
            if let Err(error) = self.engine.truncate(place, kept as u32) {
                self.warn(&error);
                self.release(place);
                return None;
            }
        }
        Some(kept)
    }

    fn release(&mut self, place: SeqId) {
        let Some(slot) = self.slots[place as usize].take() else { return };
        self.places.remove(&slot.seq);
        match self.engine.truncate(place, 0) {
            Ok(()) => self.free.push(place),
            // A place that cannot be emptied is not used again.
            Err(error) => self.warn(&error),
        }
    }

    fn warn(&mut self, error: &EngineError) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(%error, "draft engine failed, going on without some drafts");
        }
    }

    /// Feeds each turn what it lacks, as far as the round's budget goes.
    fn sync(&mut self, turns: &[Turn], asks: &[DraftAsk<'_>]) -> Result<Vec<Guess>, EngineError> {
        let mut budget = self.config.max_sync_tokens.max(1);
        let mut rows = Vec::new();
        for turn in turns {
            let tokens = asks[turn.ask_idx].tokens;
            let start = tokens.len() - turn.missing;
            let end = start + turn.missing.min(budget);
            budget -= end - start;
            for (pos, &token) in tokens.iter().enumerate().take(end).skip(start) {
                let output = if pos + 1 == tokens.len() { Output::Logits } else { Output::None };
                rows.push(row(turn.slot, pos, token, output));
            }
        }
        self.compute(&rows)
    }

    /// Goes on greedily until no turn wants more.
    fn extend(
        &mut self,
        turns: &[Turn],
        mut guesses: Vec<Guess>,
        out: &mut [Vec<TokenId>],
    ) -> Result<(), EngineError> {
        let by_slot: HashMap<SeqId, &Turn> = turns.iter().map(|turn| (turn.slot, turn)).collect();
        let mut rows = Vec::new();
        while !guesses.is_empty() {
            rows.clear();
            for guess in &guesses {
                let turn = by_slot[&guess.slot];
                let draft = &mut out[turn.ask_idx];
                if guess.probability < self.config.min_probability {
                    continue;
                }
                draft.push(guess.token);
                if draft.len() < turn.max {
                    let slot = self.slots[guess.slot as usize].as_ref().expect("a turn's slot is filled");
                    rows.push(row(guess.slot, slot.held.len(), guess.token, Output::Logits));
                }
            }
            guesses = self.compute(&rows)?;
        }
        Ok(())
    }

    /// Computes rows in as many steps as the engine's limits ask for.
    fn compute(&mut self, mut rows: &[Row]) -> Result<Vec<Guess>, EngineError> {
        let caps = self.engine.capabilities();
        let (max_rows, max_outputs) = (caps.max_rows, caps.max_outputs);
        let row_len = caps.vocab_size;
        let mut guesses = Vec::new();
        while !rows.is_empty() {
            let (batch, rest) = rows.split_at(batch_len(rows, max_rows, max_outputs));
            rows = rest;
            let logits = self.engine.step(batch)?.logits;
            let asked = batch.iter().filter(|row| row.output == Output::Logits);
            for (row, logits) in asked.zip(logits.chunks_exact(row_len)) {
                if let Some((token, probability)) = most_likely(&logits[..self.vocab_size]) {
                    guesses.push(Guess { slot: row.seq, token, probability });
                }
            }
            for row in batch {
                let slot = self.slots[row.seq as usize].as_mut().expect("a turn's slot is filled");
                slot.held.push(row.token);
            }
        }
        Ok(guesses)
    }
}

impl Drafter for ModelDrafter {
    fn name(&self) -> &str {
        "draft-model"
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<TokenId>>) {
        clear_drafts(out, asks.len());
        self.round += 1;
        let turns = self.take_turns(asks);
        let done = self.sync(&turns, asks).and_then(|guesses| self.extend(&turns, guesses, out));
        if let Err(error) = done {
            self.warn(&error);
            clear_drafts(out, asks.len());
            // The engine may have computed part of the batch.
            for turn in &turns {
                self.release(turn.slot);
            }
        }
    }

    fn forget(&mut self, seq: u64) {
        if let Some(&place) = self.places.get(&seq) {
            self.release(place);
        }
    }
}

fn row(seq: SeqId, pos: usize, token: TokenId, output: Output) -> Row {
    Row { seq, pos: pos as u32, token, adapter: AdapterId::BASE, output }
}

/// How many of `rows` fit in one step.
fn batch_len(rows: &[Row], max_rows: usize, max_outputs: usize) -> usize {
    let mut num_outputs = 0;
    let fitting = rows.iter().take(max_rows).take_while(|row| {
        num_outputs += usize::from(row.output == Output::Logits);
        num_outputs <= max_outputs
    });
    // An engine takes at least one row with one output.
    fitting.count().max(1)
}
