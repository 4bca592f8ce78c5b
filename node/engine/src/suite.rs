//! The checks that every engine must pass.
//!
//! They know only the contract in the crate's root: nothing here may name an
//! engine. Each check gets a fresh engine and panics with what it saw. Engines
//! for these checks should be small: a few hundred tokens of state, at least
//! [`MIN_SEQUENCES`] sequences that together can fill it, at least
//! [`MIN_ROWS`] rows and [`MIN_OUTPUTS`] outputs a step.

mod sampled;
mod state;
mod step;

use crate::{AdapterId, Capabilities, Engine, EngineError, Output, Row, SeqId, TokenId};

/// Sequences that the checks use at once.
pub const MIN_SEQUENCES: usize = 6;
/// Rows in the largest single step of the checks, but for filling the engine.
pub const MIN_ROWS: usize = 32;
/// Outputs in the largest single step of the checks.
pub const MIN_OUTPUTS: usize = 8;

/// Runs every check, each on a fresh engine from `make`.
///
/// `tolerance` is the largest difference allowed between two values of one
/// output row that should be equal, as a part of the row's largest magnitude:
/// 0 for an engine that computes exactly the same however rows are batched.
///
/// # Panics
/// When a check fails.
pub fn check_all(make: &mut dyn FnMut() -> Box<dyn Engine>, tolerance: f32) {
    let mut run = |check: fn(&mut Subject)| check(&mut Subject::new(make(), tolerance));
    run(step::outputs_have_shape_and_order);
    run(step::a_batch_of_sequences_equals_each_alone);
    run(step::chunks_of_any_size_equal_the_whole);
    run(step::hidden_states_have_shape_and_meaning);
    run(step::logits_and_hidden_states_mix_or_are_refused);
    run(step::invalid_batches_change_nothing);
    run(step::unknown_adapters_are_refused);
    run(sampled::tokens_are_drawn_or_refused);
    run(sampled::draws_are_what_the_contract_says);
    run(sampled::masks_are_honoured);
    run(sampled::drawn_tokens_stand_beside_other_outputs);
    run(state::a_fork_equals_recomputing);
    run(state::forks_share_room);
    run(state::a_fork_into_a_used_sequence_is_refused);
    run(state::truncating_then_continuing_equals_recomputing);
    run(state::dropping_a_sequence_frees_its_room);
    run(state::running_out_of_room_changes_nothing);
    run(state::a_restored_sequence_equals_the_saved_one);
    run(state::a_foreign_state_is_refused);
}

/// An engine under test, with the shorthands that checks are written in.
struct Subject {
    engine: Box<dyn Engine>,
    caps: Capabilities,
    tolerance: f32,
}

impl Subject {
    fn new(engine: Box<dyn Engine>, tolerance: f32) -> Self {
        let caps = engine.capabilities().clone();
        assert!(caps.max_sequences >= MIN_SEQUENCES, "the checks use {MIN_SEQUENCES} sequences: {caps:?}");
        assert!(caps.max_rows >= MIN_ROWS, "the checks use {MIN_ROWS} rows a step: {caps:?}");
        assert!(caps.max_outputs >= MIN_OUTPUTS, "the checks use {MIN_OUTPUTS} outputs a step: {caps:?}");
        Self { engine, caps, tolerance }
    }

    /// `count` tokens that look random and depend on `seed` only.
    fn tokens(&self, seed: u64, count: usize) -> Vec<TokenId> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut next = || {
            // xorshift64: enough to spread tokens over the vocabulary.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..count).map(|_| ((next() >> 16) % self.caps.vocab_size as u64) as TokenId).collect()
    }

    /// Steps `rows`, which are few enough for one step, and copies the logits
    /// out, one vector an output.
    fn logits(&mut self, rows: &[Row]) -> Vec<Vec<f32>> {
        let wanted = rows.iter().filter(|row| row.output == Output::Logits).count();
        let vocab_size = self.caps.vocab_size;
        let output = self.engine.step(rows).expect("a valid batch is computed");
        assert_eq!(output.logits.len(), wanted * vocab_size, "logits are [num_logits, vocab]");
        output.logits.chunks(vocab_size).map(<[f32]>::to_vec).collect()
    }

    /// As [`Subject::logits`], for hidden states.
    fn hidden(&mut self, rows: &[Row]) -> Vec<Vec<f32>> {
        let wanted = rows.iter().filter(|row| row.output == Output::Hidden).count();
        let hidden_size = self.caps.hidden_size;
        let output = self.engine.step(rows).expect("a valid batch is computed");
        assert_eq!(output.hidden.len(), wanted * hidden_size, "hidden states are [num_hidden, hidden]");
        output.hidden.chunks(hidden_size).map(<[f32]>::to_vec).collect()
    }

    /// Feeds `tokens` to `seq` from position `start` in steps of `chunk` rows
    /// and gives the logits after the last.
    fn feed(&mut self, seq: SeqId, start: u32, tokens: &[TokenId], chunk: usize) -> Vec<f32> {
        let mut rows = rows_of(seq, start, tokens, Output::None);
        rows.last_mut().expect("there is a token to feed").output = Output::Logits;
        rows.chunks(chunk)
            .map(|rows| self.logits(rows))
            .last()
            .and_then(|mut outputs| outputs.pop())
            .expect("the last row asked for logits")
    }

    /// The logits after `tokens` on an otherwise unused sequence, which is
    /// empty again afterwards.
    fn reference(&mut self, seq: SeqId, tokens: &[TokenId]) -> Vec<f32> {
        let logits = self.feed(seq, 0, tokens, MIN_ROWS);
        self.engine.truncate(seq, 0).expect("a sequence can be dropped");
        logits
    }

    fn assert_close(&self, what: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len(), "{what}: lengths differ");
        assert!(got.iter().chain(want).all(|value| value.is_finite()), "{what}: a value is not finite");
        let scale = want.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        let allowed = self.tolerance * scale;
        let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0f32, f32::max);
        assert!(
            worst <= allowed,
            "{what}: values differ by {worst}, allowed {allowed} (largest magnitude {scale})"
        );
        // Where the best value leads by more than the noise, it must be the same one.
        let (best, lead) = best_and_lead(want);
        if lead > 2.0 * allowed {
            assert_eq!(best_and_lead(got).0, best, "{what}: another value is the largest");
        }
    }

    /// Asserts that two rows are too different to be the same computation.
    fn assert_differ(&self, what: &str, left: &[f32], right: &[f32]) {
        let scale = left.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        let worst = left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0f32, f32::max);
        assert!(worst > self.tolerance * scale, "{what}: the rows are the same");
    }

    /// Adds one row after another until the engine has no room left, and gives
    /// the length of each sequence then. Sequence 0 gets none.
    fn fill(&mut self) -> Vec<u32> {
        let mut lens = vec![0u32; self.caps.max_sequences];
        let max_len = self.caps.max_sequence_len as u32;
        for seq in 1..self.caps.max_sequences as SeqId {
            let mut chunk = MIN_ROWS as u32;
            while chunk > 0 && lens[seq as usize] + chunk <= max_len {
                let len = lens[seq as usize];
                let tokens = self.tokens(u64::from(seq) << 32 | u64::from(len), chunk as usize);
                match self.engine.step(&rows_of(seq, len, &tokens, Output::None)) {
                    Ok(_) => lens[seq as usize] += chunk,
                    Err(EngineError::OutOfKv { wanted }) => {
                        assert_eq!(wanted, chunk as usize, "the refusal names the rows that it refused");
                        chunk /= 2;
                    }
                    Err(error) => panic!("filling the engine failed with {error}"),
                }
            }
            if chunk == 0 {
                return lens;
            }
        }
        panic!(
            "the engine for these checks must be small enough that its sequences can fill it: {:?}",
            self.caps
        )
    }
}

/// Rows for `tokens` of `seq` from position `start`, all with the same output.
fn rows_of(seq: SeqId, start: u32, tokens: &[TokenId], output: Output) -> Vec<Row> {
    let row = |(idx, &token): (usize, &TokenId)| Row {
        seq,
        pos: start + idx as u32,
        token,
        adapter: AdapterId::BASE,
        output,
    };
    tokens.iter().enumerate().map(row).collect()
}

/// Index of the largest value, and by how much it leads the next.
fn best_and_lead(values: &[f32]) -> (usize, f32) {
    let (mut best, mut second) = (0, f32::NEG_INFINITY);
    for (idx, &value) in values.iter().enumerate().skip(1) {
        if value > values[best] {
            second = values[best];
            best = idx;
        } else {
            second = second.max(value);
        }
    }
    (best, values[best] - second)
}
