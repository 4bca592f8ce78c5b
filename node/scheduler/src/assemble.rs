//! Acting on a plan: pausing, starting, and filling the step's batch.
//!
//! Room is made before anything joins the batch, so that a step never finds the
//! engine full. What a plan leaves open (chunks, the adapter) is decided here.

use std::time::Instant;

use quern_engine::{AdapterId, EngineError, SeqId, TokenId};

use crate::adapters::Readiness;
use crate::batch::Part;
use crate::draft::DraftAsk;
use crate::offloaded::Saved;
use crate::plan::Plan;
use crate::request::{Event, Failure};
use crate::score::Branch;
use crate::sequence::{Sequence, Task};
use crate::snapshot::{better_later, reuse};
use crate::step_loop::StepLoop;
use crate::{Preemption, prefix_cache::KvOp};

impl StepLoop {
    /// Fills the batch of the next step.
    pub(crate) fn assemble(&mut self, plan: &Plan) {
        self.batch.clear();
        // The adapter is settled before rows are added in the plan's order.
        self.batch.adapter = plan.adapter.filter(|_| !self.caps.mixes_adapters);
        let mut budget = self.config.token_budget.min(self.caps.max_rows);

        // The plan speaks of rows of the snapshot, so rows are turned into ids
        // before the tables change.
        let ids = |rows: &[u32], ids: &[u64]| rows.iter().map(|&row| ids[row as usize]).collect::<Vec<_>>();
        let preempt = ids(&plan.preempt, &self.snapshot.running.id);
        let admit = ids(&plan.admit, &self.snapshot.waiting.id);
        let running = std::mem::take(&mut self.snapshot.running.id);

        for &id in &preempt {
            self.preempt(id);
        }
        for (row, &id) in running.iter().enumerate().filter(|(_, id)| !preempt.contains(id)) {
            let chunk = plan.running_chunk.get(row).map_or(usize::MAX, |&n| n as usize);
            self.add_rows(id, chunk, &mut budget);
        }
        for (row, &id) in admit.iter().enumerate() {
            let chunk = plan.admit_chunk.get(row).map_or(usize::MAX, |&n| n as usize);
            if budget > 0 && chunk > 0 && self.admit(id) {
                self.add_rows(id, chunk, &mut budget);
            }
        }
        if self.batch.parts.is_empty() && self.running.len() > 1 && self.cache.available() == 0 {
            // A plan that pauses nobody would leave everybody without room.
            let last = self.running.last().map(|sequence| sequence.id);
            last.into_iter().for_each(|id| self.preempt(id));
        }
        self.add_branches();
        self.add_drafts(budget);
        self.batch.write_rows(&mut self.running, &self.caps);
        self.stalled = self.batch.parts.is_empty() && self.waiting.len() + self.running.len() > 0;
        self.snapshot.running.id = running;
    }

    fn add_rows(&mut self, id: u64, chunk: usize, budget: &mut usize) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let sequence = &self.running[index];
        let adapter = sequence.adapter;
        let room = self.cache.available() - self.batch.num_rows.min(self.cache.available());
        let wanted = chunk.min(*budget).min(sequence.left());
        let len = self.batch.fits(&self.caps, sequence, wanted, room);
        if len == 0 || sequence.ended || !self.bring(adapter) || !self.make_room(self.batch.num_rows + len) {
            return;
        }
        let sequence = &self.running[index];
        let spare = if sequence.scores_paths().is_some() { wanted - len } else { 0 };
        self.batch.add(index, sequence, len, spare);
        *budget -= len + spare;
    }

    /// Forks prompts for the label paths that the plan has rows for, each for this step
    /// alone. What finds no room, output or slot comes in a later step.
    fn add_branches(&mut self) {
        for part in 0..self.batch.parts.len() {
            let Part { running, len, spare, .. } = self.batch.parts[part];
            let sequence = &self.running[running];
            let Some(scoring) = sequence.scores_paths().filter(|_| spare > 0) else { continue };
            let (adapter, prompt) = (sequence.adapter, sequence.tokens[..sequence.prompt_len].to_vec());
            let own = (sequence.computed..sequence.computed + len).filter_map(|idx| sequence.label_node(idx));
            let mut claimed: Vec<usize> = own.collect();
            for path in scoring.others() {
                let is_new = |node: &usize| !claimed.contains(node);
                let rows = path.into_iter().map(|(token, node)| (token, node.filter(is_new))).collect();
                let branch = Branch { slot: 0, rows };
                if !self.fits_branch(part, &branch) {
                    break;
                }
                let found = self.cache.find(adapter, &prompt).map(|found| (found, prompt.len()));
                let found = found.filter(|(found, len)| found.len == *len);
                let Some(slot) = found.and_then(|_| self.cache.open(adapter, found, &mut self.ops)) else {
                    break;
                };
                self.apply_ops();
                claimed.extend(branch.outputs());
                self.batch.add_branch(part, Branch { slot, ..branch });
            }
        }
    }

    fn fits_branch(&mut self, part: usize, branch: &Branch) -> bool {
        let num_rows = branch.rows.len();
        num_rows <= self.batch.parts[part].spare
            && num_rows <= self.caps.max_rows - self.batch.num_rows
            && branch.outputs().count() <= self.caps.max_outputs - self.batch.num_outputs
            && self.make_room(self.batch.num_rows + num_rows)
    }

    /// Whether the engine has an adapter for the step, brought there if need be. One
    /// that cannot be had ends all who ask for it.
    fn bring(&mut self, adapter: AdapterId) -> bool {
        let (batch, running) = (&self.batch, &self.running);
        let in_step = |id| batch.parts.iter().any(|part| running[part.running].adapter == id);
        match self.residents.prepare(adapter, &mut *self.engine, in_step) {
            Readiness::Ready => true,
            Readiness::NoRoom => false,
            Readiness::Failed(why) => {
                let all = self.waiting.iter_mut().chain(&mut self.running);
                for sequence in all.filter(|sequence| sequence.adapter == adapter && !sequence.ended) {
                    sequence.end(Event::Failed(Failure::Adapter(why.clone())));
                }
                false
            }
        }
    }

    /// Guesses ahead for decoding sequences, as far as the step has room.
    fn add_drafts(&mut self, mut budget: usize) {
        let Some(drafter) = &mut self.drafter else { return };
        let mut asks = Vec::new();
        let mut parts = Vec::new();
        for (ix, part) in self.batch.parts.iter().enumerate() {
            let sequence = &self.running[part.running];
            let Task::Generate(generation) = &sequence.task else { continue };
            let decodes = part.num_outputs == 1 && sequence.generated() > 0;
            // The token after the last draft is drawn too, so one less is wanted.
            let wanted = generation.max_new - sequence.generated() - 1;
            let room = self.caps.max_sequence_len - sequence.tokens.len() - 1;
            let max = generation
                .draft_length
                .as_ref()
                .map_or(0, |length| length.wanted() as usize)
                .min(wanted)
                .min(room);
            if decodes && max > 0 {
                parts.push(ix);
                asks.push(DraftAsk { seq: sequence.id, tokens: &sequence.tokens, max: max as u32 });
            }
        }
        if asks.is_empty() {
            return;
        }
        let mut drafts: Vec<Vec<TokenId>> = Vec::new();
        drafter.draft(&asks, &mut drafts);
        for (ix, mut draft) in parts.into_iter().zip(drafts) {
            let outputs_left = self.caps.max_outputs - self.batch.num_outputs;
            let rows_left = self.caps.max_rows - self.batch.num_rows;
            draft.truncate(budget.min(outputs_left).min(rows_left));
            draft.retain(|&token| (token as usize) < self.caps.vocab_size);
            if !draft.is_empty() && self.make_room(self.batch.num_rows + draft.len()) {
                budget -= draft.len();
                self.metrics.drafted_tokens.increment(draft.len() as u64);
                self.batch.add_drafts(ix, draft);
            }
        }
    }

    /// Starts or resumes a waiting sequence. False leaves it waiting.
    fn admit(&mut self, id: u64) -> bool {
        let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) else { return false };
        let sequence = &self.waiting[index];
        if sequence.ended {
            return false;
        }
        let reuse = reuse(sequence, &self.running, &self.cache, &self.offloaded);
        // A start without room for at least one token would only be undone.
        let taken = self.batch.num_rows + reuse.kv_need - (sequence.left() - reuse.cached) + 1;
        if self.running.len() >= self.config.max_running
            || taken > self.cache.available()
            || better_later(&reuse)
        {
            return false;
        }
        // Asked for before it starts, so that whoever fails here was never begun.
        let adapter = sequence.adapter;
        if self.batch.takes(&self.caps, adapter) && !self.bring(adapter) {
            return false;
        }
        self.bring_back(index);
        let sequence = &self.waiting[index];
        let saved = sequence.saved.as_ref().map_or(0, |saved| saved.len);
        let found = self.cache.find(sequence.adapter, sequence.reusable()).filter(|found| found.len >= saved);
        let found = found.map(|found| (found, found.len));
        let computed = found.map_or(0, |(_, len)| len);
        let Some(slot) = self.cache.open(sequence.adapter, found, &mut self.ops) else { return false };
        self.apply_ops();

        let mut sequence = self.waiting.remove(index);
        sequence.slot = Some(slot);
        sequence.computed = computed;
        if let Some(saved) = sequence.saved.take() {
            self.saved_bytes -= saved.state.len();
            if computed == 0 && self.restore(slot, &saved) {
                self.cache.append(slot, &sequence.tokens[..saved.len]);
                sequence.computed = saved.len;
                self.metrics.restored_tokens.increment(saved.len as u64);
            }
        }
        if sequence.computed == 0 {
            sequence.begin_anew();
        }
        self.start(&mut sequence);
        self.running.push(sequence);
        true
    }

    /// Gives a waiting sequence the state that an earlier one left in host memory, where
    /// that spares more than what the engine still has.
    fn bring_back(&mut self, waiting: usize) {
        let sequence = &mut self.waiting[waiting];
        if sequence.saved.is_some() {
            return;
        }
        let (adapter, tokens) = (sequence.adapter, sequence.reusable());
        let here = self.cache.find(adapter, tokens).map_or(0, |found| found.len);
        let saved = self.offloaded.take(adapter, tokens, here);
        self.saved_bytes += saved.as_ref().map_or(0, |saved| saved.state.len());
        sequence.saved = saved;
    }

    /// Puts saved state into an empty slot. Where that fails nothing is lost: the tokens
    /// are computed again.
    fn restore(&mut self, slot: SeqId, saved: &Saved) -> bool {
        if !self.make_room(self.batch.num_rows + saved.held) {
            return false;
        }
        let restored = self.engine.restore(slot, &saved.state);
        let cut = restored.and_then(|()| match saved.len < saved.held {
            true => self.engine.truncate(slot, saved.len as u32),
            false => Ok(()),
        });
        if let Err(error) = &cut {
            tracing::warn!(error = %error, "state could not be restored");
            // Not every model's state can be cut: all of it must be gone then.
            self.ops.push(KvOp::Truncate { seq: slot, len: 0 });
            self.apply_ops();
        }
        cut.is_ok()
    }

    fn start(&mut self, sequence: &mut Sequence) {
        self.metrics.prefix_query_tokens.increment(sequence.tokens.len() as u64);
        self.metrics.prefix_hit_tokens.increment(sequence.computed as u64);
        sequence.permit = None;
        if std::mem::replace(&mut sequence.started, true) {
            return;
        }
        let now = Instant::now();
        let queued = now.saturating_duration_since(sequence.arrived);
        sequence.queued = Some(queued);
        self.metrics.queue_time.record(queued.as_secs_f64());
        self.shared.queue.note_start();
        tracing::debug!(
            request_id = sequence.request,
            queued_us = queued.as_micros() as u64,
            cached_tokens = sequence.computed,
            "sequence started"
        );
        sequence.send(Event::Started { queued, cached_tokens: sequence.computed as u32 });
    }

    /// Pauses a running sequence. Its state is put aside in host memory if the
    /// node is set up so and has room; else it stays in the prefix cache, as
    /// long as nobody needs the place, and is computed again after that.
    pub(crate) fn preempt(&mut self, id: u64) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let mut sequence = self.running.remove(index);
        let slot = sequence.slot.take().expect("a running sequence holds a slot");
        let room = self.config.host_state_bytes.saturating_sub(self.saved_bytes);
        let mut keep = self.config.prefix_cache;
        if self.config.preemption == Preemption::Host && room > 0 && sequence.computed > 0 {
            match self.engine.save(slot) {
                Ok(state) if state.len() <= room => {
                    self.saved_bytes += state.len();
                    self.offloaded.shrink(room - state.len());
                    let len = sequence.computed;
                    sequence.saved = Some(Saved { state, held: len, len });
                    keep = false;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(error = %error, "state could not be saved"),
            }
        }
        match sequence.saved {
            Some(_) => self.metrics.preempted_host.increment(1),
            None => self.metrics.preempted_recompute.increment(1),
        }
        self.cache.release(slot, keep, &mut self.ops);
        self.apply_ops();
        sequence.computed = 0;
        let place = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(place, sequence);
    }

    fn make_room(&mut self, wanted: usize) -> bool {
        let enough = self.cache.make_room(wanted, &mut self.ops);
        self.apply_ops();
        enough
    }

    /// Makes the engine do what the books say.
    pub(crate) fn apply_ops(&mut self) {
        for op in self.ops.drain(..) {
            let done = match op {
                KvOp::Fork { from, to, len } => self.engine.fork(from, to, len),
                KvOp::Truncate { seq, len } => self.engine.truncate(seq, len),
            };
            if let Err(error @ (EngineError::Failed(_) | EngineError::Unsupported(_))) = done {
                // The next step that touches the sequence is refused by the
                // engine's own check of positions, and ends it with an error.
                tracing::error!(error = %error, "sequence state could not be changed");
            }
        }
    }
}
