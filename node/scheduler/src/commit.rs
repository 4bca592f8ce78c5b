//! Running the batch and what follows from its output.
//!
//! `step` computes and draws tokens; `commit` makes the books agree with what
//! came out: guesses that failed are rolled back, those that ended leave.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quern_engine::{Capabilities, EngineError, StepOutput, TokenId};

use crate::batch::{Batch, Part};
use crate::constraint::Constraint;
use crate::offloaded::WORTH_COPYING;
use crate::request::{Event, Failure, Pooling};
use crate::sampler::Sampler;
use crate::sequence::{Embedding, Sequence, Task};
use crate::step_loop::StepLoop;

impl StepLoop {
    /// Computes the batch and draws from its output.
    pub(crate) fn step(&mut self) {
        if self.batch.rows.is_empty() {
            return;
        }
        let started = Instant::now();
        match self.engine.step_masked(&self.batch.rows, &self.batch.masks) {
            Ok(output) => {
                let took = started.elapsed();
                take_output(&mut self.running, &mut self.batch, output, &self.caps);
                self.note_costs(took);
            }
            Err(error) => self.recover(&error),
        }
    }

    /// Makes the books agree with what the step did.
    pub(crate) fn commit(&mut self) {
        self.close_branches();
        for part in &self.batch.parts {
            let sequence = &mut self.running[part.running];
            let slot = sequence.slot.expect("a running sequence holds a slot");
            let computed = sequence.computed + part.kept;
            if part.kept < part.num_rows()
                && let Err(error) = self.engine.truncate(slot, computed as u32)
            {
                tracing::error!(error = %error, "rejected drafts could not be rolled back");
                sequence.poisoned = true;
                sequence.end(Event::Failed(Failure::Engine(error.to_string())));
            }
            self.cache.append(slot, &sequence.tokens[sequence.computed..computed]);
            sequence.computed = computed;
            if sequence.next_path() {
                self.cache.cut(slot, sequence.prompt_len, &mut self.ops);
            }
            if !part.drafts.is_empty() {
                self.metrics.accepted_tokens.increment((part.kept - part.len) as u64);
            }
        }
        let num_running = self.running.len();
        self.drop_ended();
        (self.expected, self.committed) = (num_running - self.running.len(), Instant::now());
        if cfg!(debug_assertions) || self.config.check_invariants {
            self.assert_consistent();
        }
        if !self.batch.parts.is_empty() {
            let overhead = self.planning_started.elapsed().saturating_sub(self.costs.last_step);
            self.metrics.overhead.record(overhead.as_secs_f64());
        }
    }

    /// Forgets the label paths that were computed for this step alone.
    fn close_branches(&mut self) {
        for branch in self.batch.parts.iter_mut().flat_map(|part| part.branches.drain(..)) {
            self.cache.release(branch.slot, false, &mut self.ops);
        }
        self.apply_ops();
    }

    /// Lets go of sequences that need no more work.
    pub(crate) fn drop_ended(&mut self) {
        let (cache, ops, completions) = (&mut self.cache, &mut self.ops, &self.completions);
        let mut let_go = |sequence: &mut Sequence| {
            if let Some(drafter) = &mut self.drafter {
                drafter.forget(sequence.id);
            }
            if let Some(saved) = sequence.saved.take() {
                self.saved_bytes -= saved.state.len();
            }
            if let Some(slot) = sequence.slot.take() {
                let keep = self.config.prefix_cache && !sequence.poisoned && sequence.is_worth_keeping();
                cache.release(slot, keep, ops);
            }
            if completions.are_wanted() {
                completions.tell(sequence.completion());
            }
        };
        self.running.extract_if(.., |s| s.ended).for_each(|mut s| let_go(&mut s));
        self.waiting.extract_if(.., |s| s.ended).for_each(|mut s| let_go(&mut s));
        self.apply_ops();
        self.offload();
        self.cache.keep_cached(self.config.max_cached, &mut self.ops);
        self.apply_ops();
        self.publish_load();
    }

    /// Moves tails that nobody shares to host memory, as far as they are more than the
    /// engine is to keep.
    fn offload(&mut self) {
        let room = self.config.host_state_bytes.saturating_sub(self.saved_bytes);
        while let Some(tail) = self.cache.excess_tail(self.config.max_unshared) {
            if tail.len >= WORTH_COPYING && room > 0 {
                if !self.offloaded.fits(tail.tokens.len(), room) {
                    self.cache.spare_tail(&tail);
                    continue;
                }
                match self.engine.save(tail.slot) {
                    Ok(state) => self.offloaded.put(tail.adapter, tail.tokens.clone(), state),
                    // Nothing is lost but time: the tokens are computed again.
                    Err(error) => tracing::debug!(error = %error, "state could not be saved"),
                }
                self.offloaded.shrink(room);
            }
            self.cache.cut_tail(&tail, &mut self.ops);
            self.apply_ops();
        }
    }

    fn note_costs(&mut self, took: Duration) {
        let costs = &mut self.costs;
        costs.num_steps += 1;
        costs.last_step = took;
        self.shared.pulse.step(took);
        self.shared.failed_steps.store(0, Ordering::Relaxed);
        self.last_adapter = self.batch.adapter.unwrap_or(self.last_adapter);
        self.metrics.step_duration.record(took.as_secs_f64());
        self.metrics.step_rows.record(self.batch.num_rows as f64);
        let Batch { num_rows, num_outputs, .. } = self.batch;
        costs.model.note(num_rows, num_outputs, took.as_secs_f64() * 1e6);
        tracing::trace!(rows = num_rows, outputs = num_outputs, ?took, cost = ?costs.model.now(), "step");
    }

    /// Answers an engine's refusal so that the loop can go on.
    fn recover(&mut self, error: &EngineError) {
        self.costs.num_steps += 1;
        let ids: Vec<u64> = self.batch.parts.iter().map(|part| self.running[part.running].id).collect();
        self.close_branches();
        self.batch.clear();
        if let EngineError::OutOfKv { wanted } = error {
            tracing::warn!(wanted, "the engine had less room than the books say");
            self.cache.clear_cached(&mut self.ops);
            self.apply_ops();
            if let [_, .., last] = ids[..] {
                return self.preempt(last);
            }
        }
        self.shared.failed_steps.fetch_add(1, Ordering::Relaxed);
        tracing::error!(error = %error, sequences = ids.len(), "step failed");
        for sequence in self.running.iter_mut().filter(|sequence| ids.contains(&sequence.id)) {
            sequence.poisoned = true;
            sequence.end(Event::Failed(Failure::Engine(error.to_string())));
        }
        if matches!(error, EngineError::Lost(_)) {
            self.abandon();
        }
    }

    /// Ends whoever was not in the step that found the engine lost: what was computed for them is gone,
    /// and nothing can be computed for them here. Whoever owns this loop sees that the engine is lost.
    fn abandon(&mut self) {
        self.shared.engine_lost.store(true, Ordering::Release);
        for sequence in self.waiting.iter_mut().chain(&mut self.running).filter(|sequence| !sequence.ended) {
            sequence.poisoned = true;
            sequence.end(Event::Failed(Failure::WorkerEnded));
        }
    }
}

/// Hands each part its rows of the output.
fn take_output(running: &mut [Sequence], batch: &mut Batch, output: StepOutput<'_>, caps: &Capabilities) {
    let StepOutput { mut logits, mut hidden, mut tokens } = output;
    for part in &mut batch.parts {
        let sequence = &mut running[part.running];
        match &mut sequence.task {
            Task::Generate(_) if part.is_drawn => {
                let (mine, rest) = tokens.split_at(part.num_outputs);
                tokens = rest;
                take_tokens(sequence, part, Given::Tokens(mine), caps);
            }
            Task::Generate(_) => {
                let (mine, rest) = logits.split_at(part.num_outputs * caps.vocab_size);
                logits = rest;
                take_tokens(sequence, part, Given::Logits(mine), caps);
            }
            Task::Score(_) => {
                let (mine, rest) = logits.split_at(part.num_outputs * caps.vocab_size);
                logits = rest;
                score(sequence, part, mine, caps);
            }
            Task::Embed(embedding) => {
                let (mine, rest) = hidden.split_at(part.num_outputs * caps.hidden_size);
                hidden = rest;
                let finished = sequence.computed + part.len == sequence.tokens.len();
                pool(embedding, mine, caps.hidden_size);
                if finished {
                    let vector = pooled(embedding, sequence.tokens.len());
                    sequence.end(Event::Embedding(vector));
                }
            }
        }
    }
}

/// What the engine gave for a part's rows.
#[derive(Clone, Copy)]
enum Given<'a> {
    /// `[num_outputs, vocab]`.
    Logits(&'a [f32]),
    /// `[num_outputs]`.
    Tokens(&'a [Option<TokenId>]),
}

/// Takes the token behind each row, drawn here or by the engine, for as long as
/// the guesses behind it come true. Each token is drawn as it would be without
/// guesses, so guessing changes the pace and never the answer (Leviathan et al.,
/// 2023, verify drafts by rejection; drawing with the same numbers and comparing
/// needs no more than a draw that depends on the seed and the position alone).
fn take_tokens(sequence: &mut Sequence, part: &mut Part, given: Given<'_>, caps: &Capabilities) {
    for idx in 0..part.num_outputs {
        let position = sequence.tokens.len() as u64;
        let Task::Generate(generation) = &mut sequence.task else { return };
        let drawn = match given {
            Given::Tokens(tokens) => Sampler::take_drawn(tokens[idx]),
            Given::Logits(logits) => {
                let row = &logits[idx * caps.vocab_size..][..caps.vocab_size];
                let constraint = generation.constraint.as_deref_mut().map(|c| c as &mut dyn Constraint);
                generation.sampler.sample(row, position, constraint)
            }
        };
        match drawn {
            Ok(drawn) => {
                let token = drawn.token;
                sequence.take_token(drawn, caps.max_sequence_len);
                if sequence.ended || part.drafts.get(idx) != Some(&token) {
                    break;
                }
                part.kept += 1;
            }
            Err(error) => return sequence.end(Event::Failed(Failure::Constraint(error.0))),
        }
    }
    if let Task::Generate(generation) = &mut sequence.task
        && let Some(length) = &mut generation.draft_length
        && part.num_outputs > 0
    {
        length.record(part.drafts.len() as u32, (part.kept - part.len) as u32);
    }
}

/// Takes in the logits behind labels' nodes, those of the sequence's own path first.
fn score(sequence: &mut Sequence, part: &Part, logits: &[f32], caps: &Capabilities) {
    let own = sequence.computed..sequence.computed + part.len;
    let mut nodes: Vec<usize> = own.filter_map(|idx| sequence.label_node(idx)).collect();
    nodes.extend(part.branches.iter().flat_map(|branch| branch.outputs()));
    let Task::Score(scoring) = &mut sequence.task else { return };
    for (&node, row) in nodes.iter().zip(logits.chunks_exact(caps.vocab_size)) {
        scoring.see(node, row);
    }
    if scoring.knows_prompt() && scoring.settle() {
        let scores = scoring.scores();
        sequence.end(Event::Scores(scores));
    }
}

fn pool(embedding: &mut Embedding, hidden: &[f32], size: usize) {
    for row in hidden.chunks_exact(size) {
        match embedding.pooling {
            Pooling::Last => embedding.sum = row.to_vec(),
            Pooling::Mean if embedding.sum.is_empty() => embedding.sum = row.to_vec(),
            Pooling::Mean => embedding.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x),
        }
    }
}

fn pooled(embedding: &mut Embedding, num_tokens: usize) -> Vec<f32> {
    let mut vector = std::mem::take(&mut embedding.sum);
    if embedding.pooling == Pooling::Mean {
        vector.iter_mut().for_each(|x| *x /= num_tokens as f32);
    }
    vector
}
