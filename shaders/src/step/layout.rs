//! A step's metadata: what kernels read as `step_info`, in words.
//!
//! | words | what |
//! | --- | --- |
//! | `0..4` | rows, outputs, outputs with logits, where parts begin or 0 |
//! | `4..4 + 4 * max_rows` | for each row: token, position, slot, where its list of pages begins |
//! | then `max_outputs` | rows with an output: with logits that are wanted, with those to draw from, others |
//! | then | lists of pages, one a sequence of the batch |
//! | then, where rows' parts have a workgroup each | for each row its first part; for each part its row |

use super::attention::{Parts, Shared, Sharing};
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
    pub sharing: Sharing,
}

impl Layout {
    /// Where the number of rows stands.
    pub const ROWS: u32 = 0;
    /// Where the number of outputs with logits stands.
    pub const LOGITS: u32 = 2;
    /// Where it stands where parts begin.
    pub const PARTS: u32 = 3;
    /// Where the rows begin.
    pub const ROWS_AT: u32 = 4;

    /// Where the list of rows with an output begins.
    pub fn outputs_at(&self) -> u32 {
        Layout::ROWS_AT + ROW_WORDS * self.limits.max_rows
    }

    fn lists_at(&self) -> u32 {
        self.outputs_at() + self.limits.max_outputs
    }

    /// Words of the largest step: every row of a sequence of its own, each as long as can be, and as many parts
    /// as there is room for.
    pub fn max_words(&self) -> u32 {
        let list = self.limits.max_sequence_len.div_ceil(PAGE_TOKENS).min(self.limits.num_pages);
        let max_parts = self.sharing.max_parts;
        let parts = if max_parts > 0 { self.limits.max_rows + max_parts } else { 0 };
        self.lists_at() + self.limits.max_rows * list + parts
    }

    /// Writes a step's metadata, and says how its attention is shared out.
    ///
    /// # Panics
    /// When the batch is empty or larger than the limits.
    pub fn fill(&self, batch: &Batch<'_>, words: &mut Vec<u32>) -> Shared {
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
            assert!(row.position < self.limits.max_sequence_len, "{row:?} of {:?}", self.limits);
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
        let shared = self.sharing.of(batch.rows);
        if shared.parts == Parts::Each {
            self.fill_parts(batch.rows, words);
        }
        shared
    }

    fn fill_parts(&self, rows: &[BatchRow], words: &mut Vec<u32>) {
        words[Layout::PARTS as usize] = words.len() as u32;
        let mut first = 0;
        for row in rows {
            words.push(first);
            first += self.sharing.num_parts(row);
        }
        for (row_idx, row) in (0..).zip(rows) {
            words.extend(std::iter::repeat_n(row_idx, self.sharing.num_parts(row) as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Draw;
    use crate::step::Split;

    const LIMITS: StepLimits = StepLimits {
        max_rows: 3,
        max_outputs: 2,
        num_pages: 9,
        max_sequence_len: 64,
        adapter_slots: [0; 4],
        draws: false,
    };

    fn row(token: u32, position: u32, list: usize) -> BatchRow {
        BatchRow { token, position, list, adapter_id: None }
    }

    #[test]
    fn rows_know_their_slots_and_lists() {
        let layout = Layout { limits: LIMITS, sharing: Sharing::new(None, [2, 1], LIMITS, u64::MAX) };
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

    #[test]
    fn parts_know_their_rows() {
        let limits = StepLimits { max_sequence_len: 400, num_pages: 16, ..LIMITS };
        let split = Split { part_keys: 128, workgroups: 8 };
        let sharing = Sharing::new(Some(split), [2, 1], limits, u64::MAX);
        assert_eq!(sharing.max_parts, 3 * 4);
        let layout = Layout { limits, sharing };
        let pages: Vec<u32> = (0..12).collect();
        let rows = [row(7, 256, 0), row(8, 127, 0), row(9, 383, 0)];
        let batch = Batch { rows: &rows, lists: &[&pages], ..Batch::default() };
        let mut words = Vec::new();
        let shared = layout.fill(&batch, &mut words);
        assert_eq!(shared, Shared { parts: Parts::Each, num_parts: 7 });
        assert_eq!(words[..4], [3, 0, 0, 18 + 12]);
        assert_eq!(words[18..30], pages);
        assert_eq!(words[30..], [0, 3, 4, 0, 0, 0, 1, 2, 2, 2]);
        assert!(words.len() <= layout.max_words() as usize);
        // Short rows leave nothing of that.
        let shared = layout.fill(&Batch { rows: &rows[1..2], ..batch }, &mut words);
        assert_eq!(shared, Shared { parts: Parts::One, num_parts: 0 });
        assert_eq!((words[3], words.len()), (0, 30));
    }
}
