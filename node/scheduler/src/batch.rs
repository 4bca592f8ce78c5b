//! From a plan to the rows of one step.
//!
//! The plan says who and how much; here it meets what the engine can do. Rows
//! that do not fit (another adapter, another kind of output, too many outputs,
//! no room) are left out and come in a later step: nothing is lost by that.

use quern_engine::{AdapterId, Capabilities, Output, Row, TokenId};

use crate::sequence::Sequence;

/// One sequence's share of a step.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// Index into the running sequences.
    pub(crate) running: usize,
    /// Known tokens that are computed.
    pub(crate) len: usize,
    /// Guessed tokens that are computed behind them.
    pub(crate) drafts: Vec<TokenId>,
    /// Rows of output that the engine gives for this part.
    pub(crate) num_outputs: usize,
    /// Tokens of state that hold once outputs are known: known tokens and
    /// those guesses that came true.
    pub(crate) kept: usize,
}

impl Part {
    /// Rows in the batch.
    pub(crate) fn num_rows(&self) -> usize {
        self.len + self.drafts.len()
    }
}

/// The rows of one step, and whose they are.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) parts: Vec<Part>,
    pub(crate) rows: Vec<Row>,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) output: Option<Output>,
    pub(crate) num_rows: usize,
    pub(crate) num_outputs: usize,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.rows.clear();
        (self.adapter, self.output) = (None, None);
        (self.num_rows, self.num_outputs) = (0, 0);
    }

    /// How many of `wanted` tokens of `sequence` can join this batch.
    pub(crate) fn fits(&self, caps: &Capabilities, sequence: &Sequence, wanted: usize, room: usize) -> usize {
        let other_adapter = self.adapter.is_some_and(|adapter| adapter != sequence.adapter);
        let other_output = self.output.is_some_and(|output| output != sequence.output());
        if (other_adapter && !caps.mixes_adapters) || (other_output && !caps.mixes_outputs) {
            return 0;
        }
        let len = wanted.min(sequence.left()).min(caps.max_rows - self.num_rows).min(room);
        let outputs_left = caps.max_outputs - self.num_outputs;
        let finishes = len == sequence.left();
        match () {
            () if sequence.outputs_each_row() => len.min(outputs_left),
            // All but the last token can go in without an output.
            () if finishes && outputs_left == 0 => len - 1,
            () => len,
        }
    }

    /// Adds `len` tokens of the running sequence at index `running`.
    pub(crate) fn add(&mut self, running: usize, sequence: &Sequence, len: usize) {
        let finishes = len == sequence.left();
        let num_outputs = if sequence.outputs_each_row() { len } else { usize::from(finishes) };
        self.adapter = Some(sequence.adapter);
        self.output = Some(sequence.output());
        self.num_rows += len;
        self.num_outputs += num_outputs;
        self.parts.push(Part { running, len, drafts: Vec::new(), num_outputs, kept: len });
    }

    /// Puts guesses behind a part, each with an output.
    pub(crate) fn add_drafts(&mut self, part: usize, drafts: Vec<TokenId>) {
        let part = &mut self.parts[part];
        self.num_rows += drafts.len();
        self.num_outputs += drafts.len();
        part.num_outputs += drafts.len();
        part.drafts = drafts;
    }

    /// Writes out the rows, once every part is complete.
    pub(crate) fn write_rows(&mut self, running: &[Sequence]) {
        for part in &self.parts {
            let sequence = &running[part.running];
            let seq = sequence.slot.expect("a running sequence holds a slot");
            let known = &sequence.tokens[sequence.computed..sequence.computed + part.len];
            let first_output = part.num_rows() - part.num_outputs;
            for (idx, &token) in known.iter().chain(&part.drafts).enumerate() {
                let output = if idx >= first_output { sequence.output() } else { Output::None };
                let pos = (sequence.computed + idx) as u32;
                self.rows.push(Row { seq, pos, token, adapter: sequence.adapter, output });
            }
        }
    }
}
