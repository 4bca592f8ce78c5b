//! A step's metadata: what kernels read as `step_info`, in words.
//!
//! | words | what |
//! | --- | --- |
//! | `0..4` | rows, outputs, outputs with logits, 0 |
//! | `4..4 + 4 * max_rows` | for each row: token, position, slot, where its list of pages begins |
//! | then `max_outputs` | rows with an output: with logits that are wanted, with those to draw from, others |
//! | then | lists of pages, one a sequence of the batch |

use super::{DrawnRow, StepLimits};
use crate::pages::PAGE_TOKENS;

/// Words of a row.
pub(super) const ROW_WORDS: u32 = 4;

/// One token of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRow {
    /// The token.
    pub token: u32,
    /// Its position, from 0. Its page must be in the list already.
    pub position: u32,
    /// Its sequence: an index into [`Batch::lists`].
    pub list: usize,
    /// The adapter that it is computed with.
    pub adapter_id: Option<u32>,
}

/// The rows of a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// All rows; those of one sequence in the order of their positions.
    pub rows: &'a [BatchRow],
    /// The pages of each sequence, in order.
    pub lists: &'a [&'a [u32]],
    /// Rows whose logits are wanted, as indices into `rows`.
    pub logits: &'a [u32],
    /// Rows whose last hidden states are wanted, as indices into `rows`.
    pub hidden: &'a [u32],
    /// Rows whose next tokens are drawn.
    pub drawn: &'a [DrawnRow],
    /// What may be drawn, `[num_masks, mask_words]`; see
    /// [`SampleShape::mask_words`](crate::sampling::SampleShape::mask_words). No more than outputs.
    pub masks: &'a [u32],
}

/// Where the parts of the metadata lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub limits: StepLimits,
}

impl Layout {
    /// Where the number of rows stands.
    pub const ROWS: u32 = 0;
    /// Where the number of outputs with logits stands.
    pub const LOGITS: u32 = 2;
    /// Where the rows begin.
    pub const ROWS_AT: u32 = 4;

    pub fn new(limits: StepLimits) -> Layout {
        Layout { limits }
    }

    /// Where the list of rows with an output begins.
    pub fn outputs_at(&self) -> u32 {
        Layout::ROWS_AT + ROW_WORDS * self.limits.max_rows
    }

    fn lists_at(&self) -> u32 {
        self.outputs_at() + self.limits.max_outputs
    }

    /// Words of the largest step: every row of a sequence of its own, each as long as can be.
    pub fn max_words(&self) -> u32 {
        let list = self.limits.max_sequence_len.div_ceil(PAGE_TOKENS).min(self.limits.num_pages);
        self.lists_at() + self.limits.max_rows * list
    }

    /// Writes a step's metadata.
    ///
    /// # Panics
    /// When the batch is empty or larger than the limits.
    pub fn fill(&self, batch: &Batch<'_>, words: &mut Vec<u32>) {
        let with_logits = batch.logits.len() + batch.drawn.len();
        let (rows, outputs) = (batch.rows.len(), with_logits + batch.hidden.len());
        assert!(rows > 0 && rows <= self.limits.max_rows as usize, "{rows} rows of {:?}", self.limits);
        assert!(outputs <= self.limits.max_outputs as usize, "{outputs} outputs of {:?}", self.limits);
        words.clear();
        words.extend([rows as u32, outputs as u32, with_logits as u32, 0]);
        let mut list_at = self.lists_at();
        let starts: Vec<u32> = batch
            .lists
            .iter()
            .map(|list| {
                let start = list_at;
                list_at += list.len() as u32;
                start
            })
            .collect();
        for row in batch.rows {
            let page = batch.lists[row.list][(row.position / PAGE_TOKENS) as usize];
            let slot = page * PAGE_TOKENS + row.position % PAGE_TOKENS;
            words.extend([row.token, row.position, slot, starts[row.list]]);
        }
        words.resize(self.outputs_at() as usize, 0);
        words.extend(batch.logits);
        words.extend(batch.drawn.iter().map(|drawn| drawn.row));
        words.extend(batch.hidden);
        words.resize(self.lists_at() as usize, 0);
        words.extend(batch.lists.iter().copied().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Draw;

    #[test]
    fn rows_know_their_slots_and_lists() {
        let limits = StepLimits {
            max_rows: 3,
            max_outputs: 2,
            num_pages: 9,
            max_sequence_len: 64,
            adapter_slots: [0; 4],
            draws: false,
        };
        let layout = Layout::new(limits);
        let row = |token, position, list| BatchRow { token, position, list, adapter_id: None };
        let batch = Batch {
            rows: &[row(7, 33, 0), row(8, 0, 1)],
            lists: &[&[4, 2], &[5]],
            logits: &[1],
            hidden: &[0],
            ..Batch::default()
        };
        let mut words = vec![99];
        layout.fill(&batch, &mut words);
        let expected = [
            [2, 2, 1, 0].as_slice(),
            &[7, 33, 2 * 32 + 1, 18],
            &[8, 0, 5 * 32, 20],
            &[0; 4],
            &[1, 0],
            &[4, 2, 5],
        ];
        assert_eq!(words, expected.concat());
        assert!(words.len() <= layout.max_words() as usize);
        // A row that draws needs logits, and stands before those that do not.
        let drawn = [DrawnRow { row: 0, draw: Draw::GREEDY, mask: None }];
        let batch = Batch { logits: &[], hidden: &[1], drawn: &drawn, ..batch };
        layout.fill(&batch, &mut words);
        assert_eq!((&words[..4], &words[16..18]), ([2, 2, 1, 0].as_slice(), [0, 1].as_slice()));
    }
}
