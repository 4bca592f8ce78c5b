//! From a plan to the rows of one step.
//!
//! The plan says who and how much; here it meets what the engine can do. Rows
//! that do not fit (another adapter, another kind of output, too many outputs,
//! no room) are left out and come in a later step: nothing is lost by that.

use quern_engine::draw::mask_words;
use quern_engine::{AdapterId, Capabilities, Draw, Output, Row, TokenId};

use crate::score::Branch;
use crate::sequence::{Sequence, Task};

/// One sequence's share of a step.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// Index into the running sequences.
    pub(crate) running: usize,
    /// Known tokens that are computed.
    pub(crate) len: usize,
    /// Guessed tokens that are computed behind them.
    pub(crate) drafts: Vec<TokenId>,
    /// Planned rows that are left for label paths beside the sequence's own.
    pub(crate) spare: usize,
    /// Label paths that are computed in slots of their own.
    pub(crate) branches: Vec<Branch>,
    /// Rows of output that the engine gives for this part.
    pub(crate) num_outputs: usize,
    /// Whether those are tokens that the engine draws.
    pub(crate) is_drawn: bool,
    /// Tokens of state that hold once outputs are known: known tokens and
    /// those guesses that came true.
    pub(crate) kept: usize,
}

impl Part {
    /// Rows of the sequence's own slot.
    pub(crate) fn num_rows(&self) -> usize {
        self.len + self.drafts.len()
    }
}

/// The rows of one step, and whose they are.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) parts: Vec<Part>,
    pub(crate) rows: Vec<Row>,
    /// What the rows' draws may give, see [`quern_engine::Engine::step_masked`].
    pub(crate) masks: Vec<u32>,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) output: Option<Output>,
    pub(crate) num_rows: usize,
    pub(crate) num_outputs: usize,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.rows.clear();
        self.masks.clear();
        (self.adapter, self.output) = (None, None);
        (self.num_rows, self.num_outputs) = (0, 0);
    }

    /// Whether rows of an adapter can join.
    pub(crate) fn takes(&self, caps: &Capabilities, adapter: AdapterId) -> bool {
        caps.mixes_adapters || self.adapter.is_none_or(|present| present == adapter)
    }

    /// How many of `wanted` tokens of `sequence` can join this batch.
    pub(crate) fn fits(&self, caps: &Capabilities, sequence: &Sequence, wanted: usize, room: usize) -> usize {
        let other_output = self.output.is_some_and(|output| output != sequence.output());
        if !self.takes(caps, sequence.adapter) || (other_output && !caps.mixes_outputs) {
            return 0;
        }
        let len = wanted.min(sequence.known_left()).min(caps.max_rows - self.num_rows).min(room);
        let mut outputs_left = caps.max_outputs - self.num_outputs;
        let ends_before = |idx: &usize| {
            let wants = sequence.wants_output(sequence.computed + idx);
            let fits = !wants || outputs_left > 0;
            outputs_left -= usize::from(wants && fits);
            !fits
        };
        (0..len).find(ends_before).unwrap_or(len)
    }

    /// Adds `len` tokens of the running sequence at index `running`, and `spare` planned
    /// rows beside them.
    pub(crate) fn add(&mut self, running: usize, sequence: &Sequence, len: usize, spare: usize) {
        let rows = sequence.computed..sequence.computed + len;
        let num_outputs = rows.filter(|&idx| sequence.wants_output(idx)).count();
        self.adapter = Some(sequence.adapter);
        self.output = Some(sequence.output());
        self.num_rows += len;
        self.num_outputs += num_outputs;
        self.parts.push(Part { running, len, spare, num_outputs, kept: len, ..Part::default() });
    }

    /// Puts guesses behind a part, each with an output.
    pub(crate) fn add_drafts(&mut self, part: usize, drafts: Vec<TokenId>) {
        let part = &mut self.parts[part];
        self.num_rows += drafts.len();
        self.num_outputs += drafts.len();
        part.num_outputs += drafts.len();
        part.drafts = drafts;
    }

    /// Computes a label path beside a part.
    pub(crate) fn add_branch(&mut self, part: usize, branch: Branch) {
        let part = &mut self.parts[part];
        let num_outputs = branch.outputs().count();
        self.num_rows += branch.rows.len();
        self.num_outputs += num_outputs;
        part.num_outputs += num_outputs;
        part.spare -= branch.rows.len();
        part.branches.push(branch);
    }

    /// Writes out the rows, once every part is complete.
    pub(crate) fn write_rows(&mut self, running: &mut [Sequence], caps: &Capabilities) {
        for part in &mut self.parts {
            let sequence = &mut running[part.running];
            let draw = engine_draw(sequence, part.num_outputs, caps, &mut self.masks);
            part.is_drawn = draw.is_some();
            let wanted = draw.map_or(sequence.output(), Output::Token);
            let seq = sequence.slot.expect("a running sequence holds a slot");
            let known = &sequence.tokens[sequence.computed..sequence.computed + part.len];
            let mut push = |seq, idx: usize, token, wants: bool| {
                let output = if wants { wanted } else { Output::None };
                self.rows.push(Row { seq, pos: idx as u32, token, adapter: sequence.adapter, output });
            };
            for (idx, &token) in (sequence.computed..).zip(known.iter().chain(&part.drafts)) {
                push(seq, idx, token, idx >= sequence.tokens.len() || sequence.wants_output(idx));
            }
            for branch in &part.branches {
                for (idx, &(token, node)) in (sequence.prompt_len..).zip(&branch.rows) {
                    push(branch.slot, idx, token, node.is_some());
                }
            }
        }
    }
}

/// The draw of a sequence's rows with an output, where the engine can make it as the sampler would. A mask
/// that it needs is added to `masks`.
fn engine_draw(
    sequence: &mut Sequence,
    num_outputs: usize,
    caps: &Capabilities,
    masks: &mut Vec<u32>,
) -> Option<Draw> {
    let Task::Generate(generation) = &mut sequence.task else { return None };
    if !caps.samples || num_outputs == 0 {
        return None;
    }
    let draw = generation.sampler.draw()?;
    let Some(constraint) = &mut generation.constraint else { return Some(draw) };
    // What may follow a guess is not known before it has come true.
    if num_outputs > 1 {
        return None;
    }
    let (start, words) = (masks.len(), mask_words(caps.vocab_size));
    masks.resize(start + words, 0);
    if constraint.mask(&mut masks[start..]).is_err() {
        // The sampler will meet the same error once there are logits, and end the sequence with it.
        masks.truncate(start);
        return None;
    }
    Some(Draw { mask: Some((start / words) as u32), ..draw })
}
