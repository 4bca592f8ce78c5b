//! How a step's attention is shared out among workgroups: one for a whole row, or one for each part of it, so
//! that a single long sequence fills a device. `wgsl/shared/attention.wgsl` says what a part is.
//!
//! What rows give depends on the length of parts, which a runner keeps for life, and on nothing that is decided
//! here for a step.

use super::StepLimits;
use super::dispatch::{Grid, Op, When};
use super::layout::{BatchRow, Layout};
use super::plan::Builder;
use crate::buffers::{Buffer, Use};
use crate::device::{Device, Profile};
use crate::error::DeviceError;

/// Keys of a tile of `attention.wgsl`, and threads of its workgroups.
const TILE: u32 = 128;
/// Workgroups that every device takes in a dispatch, side by side.
const MAX_WORKGROUPS: u64 = 65535;
/// How often parts of a step may fill the device. With 256 workgroups and seven query heads to a key-value head
/// that is 28 MiB of partial results, whatever the length of contexts.
const FILLS: u32 = 16;

/// Which sequences are long, and when their attention is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Keys of a part, a multiple of 128. Where a sequence is longer, the last bits of what its rows give depend
    /// on this.
    pub part_keys: u32,
    /// Workgroups that fill the device. A step is split where its longest row would keep one of them busy for
    /// longer than the step's attention takes, shared out evenly; 0 never splits. What rows give does not depend
    /// on this.
    pub workgroups: u32,
}

impl Split {
    /// What a device gets: `None` on a CPU, where a row is one part however long it is, and attention always one
    /// dispatch.
    ///
    /// On a GPU, parts of 512 keys make a context of 32k into 64 workgroups for each key-value head. With seven
    /// query heads of 64 to each, they write and read again a ninth of what they read of keys and values;
    /// other models' write less. 256 workgroups are two for each core of the largest GPUs.
    #[must_use]
    pub fn of(profile: &Profile) -> Option<Split> {
        (!profile.is_cpu).then_some(Split { part_keys: 512, workgroups: 256 })
    }
}

/// How rows that are longer than a part are taken: the axis `PARTS` of `attention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// There are none.
    One,
    /// A workgroup takes all parts of its row.
    All,
    /// Each part has a workgroup.
    Each,
}

/// How the rows of a step are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    pub parts: Parts,
    /// Parts of all rows where each has a workgroup; else 0.
    pub num_parts: u32,
}

/// Decides it for each step of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sharing {
    split: Option<Split>,
    kv_heads: u32,
    /// Parts that there is room for; 0 where no step is ever split.
    pub max_parts: u32,
}

impl Sharing {
    /// For a model's query heads and key-value heads, and with partial results in `max_bytes` at most.
    ///
    /// # Panics
    /// When parts are not whole tiles.
    pub fn new(
        split: Option<Split>,
        [heads, kv_heads]: [u32; 2],
        limits: StepLimits,
        max_bytes: u64,
    ) -> Sharing {
        let never = Sharing { split, kv_heads, max_parts: 0 };
        let Some(Split { part_keys, workgroups }) = split else { return never };
        assert!(part_keys > 0 && part_keys.is_multiple_of(TILE), "parts of {part_keys} keys are not tiles");
        let longest = limits.max_sequence_len.div_ceil(part_keys);
        if longest <= 1 || workgroups == 0 {
            return never;
        }
        let filling = (u64::from(workgroups) * u64::from(FILLS)).div_ceil(u64::from(kv_heads));
        let max_parts = (u64::from(longest) + filling)
            .min(u64::from(limits.max_rows) * u64::from(longest))
            .min(max_bytes / part_bytes(heads))
            .min(MAX_WORKGROUPS);
        Sharing { max_parts: max_parts as u32, ..never }
    }

    /// Keys of a part.
    fn part_keys(&self) -> u32 {
        self.split.map_or(u32::MAX, |split| split.part_keys)
    }

    /// Parts of a row.
    pub fn num_parts(&self, row: &BatchRow) -> u32 {
        row.position / self.part_keys() + 1
    }

    /// How these rows are taken.
    pub fn of(&self, rows: &[BatchRow]) -> Shared {
        let lens = rows.iter().map(|row| u64::from(row.position) + 1);
        let longest = lens.clone().max().unwrap_or(0);
        if longest <= u64::from(self.part_keys()) {
            return Shared { parts: Parts::One, num_parts: 0 };
        }
        let num_parts: u64 = rows.iter().map(|row| u64::from(self.num_parts(row))).sum();
        let workgroups = self.split.map_or(0, |split| u64::from(split.workgroups));
        let is_uneven = longest * workgroups > lens.sum::<u64>() * u64::from(self.kv_heads);
        if is_uneven && num_parts <= u64::from(self.max_parts) {
            return Shared { parts: Parts::Each, num_parts: num_parts as u32 };
        }
        Shared { parts: Parts::All, num_parts: 0 }
    }
}

/// Bytes that a part leaves: pairs of f32, `[heads, TILE + 1]`.
fn part_bytes(heads: u32) -> u64 {
    u64::from(heads) * u64::from(TILE + 1) * 8
}

/// What parts leave for `attention_merge`, `[max_parts, heads, TILE + 1, 2]`, where steps are ever split. Layers
/// use it one after the other.
#[derive(Debug)]
pub(super) struct Partials(Option<Buffer>);

impl Partials {
    pub fn new(device: &Device, heads: u32, max_parts: u32) -> Result<Partials, DeviceError> {
        let bytes = u64::from(max_parts) * part_bytes(heads);
        let buffer = || Buffer::new(device, "partial results of attention", bytes, Use::Storage);
        Ok(Partials((max_parts > 0).then(buffer).transpose()?))
    }

    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, Buffer::size_bytes)
    }
}

impl Builder<'_> {
    /// A layer's attention, in each way that a step may take it.
    pub(super) fn attention(&self, idx: usize, ops: &mut Vec<Op>) -> Result<(), DeviceError> {
        let (memory, shape) = (self.memory, &self.model.shape);
        let sharing = &self.layout.sharing;
        let dim = shape.head_dim.to_string();
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let params = [
            shape.heads,
            shape.kv_heads,
            Layout::ROWS_AT,
            scale.to_bits(),
            sharing.part_keys(),
            Layout::ROWS,
            Layout::PARTS,
        ];
        let out = ("out", memory.attended.whole());
        let mut op = |parts, kernel, bindings: &[_], grid| -> Result<(), DeviceError> {
            let op = self.op(vec![kernel], &params, bindings, grid)?;
            ops.push(Op { when: When::Attention(parts), ..op });
            Ok(())
        };
        let kernel = |parts| {
            let group = shape.group().to_string();
            let axes = [("DIM", &*dim), ("GROUP", &*group), ("SHARE", self.share()), ("PARTS", parts)];
            self.kernel("attention", &axes)
        };
        let bindings = |to| [("qkv", memory.qkv.whole()), ("kv", memory.kv[idx].whole()), to];
        op(Parts::One, kernel("one")?, &bindings(out.clone()), Grid::Rows(shape.kv_heads))?;
        if self.layout.limits.max_sequence_len > sharing.part_keys() {
            op(Parts::All, kernel("all")?, &bindings(out.clone()), Grid::Rows(shape.kv_heads))?;
        }
        if let Some(partials) = &memory.partials.0 {
            let partials = ("partials", partials.whole());
            op(Parts::Each, kernel("each")?, &bindings(partials.clone()), Grid::Parts(shape.kv_heads))?;
            let merge = self.kernel("attention_merge", &[("DIM", &*dim)])?;
            op(Parts::Each, merge, &[partials, out], Grid::Rows(shape.heads))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StepLimits = StepLimits {
        max_rows: 64,
        max_outputs: 1,
        num_pages: 1,
        max_sequence_len: 32 << 10,
        adapter_slots: [0; 4],
        draws: false,
    };

    const SPLIT: Split = Split { part_keys: 512, workgroups: 256 };

    fn sharing(split: Split, limits: StepLimits, max_bytes: u64) -> Sharing {
        Sharing::new(Some(split), [14, 2], limits, max_bytes)
    }

    #[track_caller]
    fn check(sharing: Sharing, lens: &[u32], parts: Parts, num_parts: u32) {
        let row = |len: &u32| BatchRow { token: 0, position: len - 1, list: 0, adapter_id: None };
        let rows: Vec<BatchRow> = lens.iter().map(row).collect();
        assert_eq!(sharing.of(&rows), Shared { parts, num_parts }, "{lens:?}");
    }

    #[test]
    fn long_rows_are_split_where_the_device_is_not_full() {
        let sharing = sharing(SPLIT, LIMITS, u64::MAX);
        check(sharing, &[1, 512, 512], Parts::One, 0);
        check(sharing, &[513], Parts::Each, 2);
        check(sharing, &[1, 1024, 1025], Parts::Each, 1 + 2 + 3);
        // Two key-value heads: 128 such rows fill the device, and 127 do not.
        check(sharing, &[600; 127], Parts::Each, 254);
        check(sharing, &[600; 128], Parts::All, 0);
        // However many there are, one among them that is much longer makes all others wait.
        check(sharing, &[&[5; 500], [32 << 10].as_slice()].concat(), Parts::Each, 500 + 64);
    }

    #[test]
    fn what_has_no_room_is_not_split() {
        let part = part_bytes(14);
        assert_eq!(part, 14 * 129 * 2 * 4);
        // 16 devices full of workgroups, and the longest row beside them.
        assert_eq!(sharing(SPLIT, LIMITS, u64::MAX).max_parts, 16 * 128 + 64);
        let small = sharing(SPLIT, LIMITS, 5 * part + 7);
        assert_eq!(small.max_parts, 5);
        check(small, &[512 * 5], Parts::Each, 5);
        check(small, &[512 * 5, 1], Parts::All, 0);
        assert_eq!(sharing(SPLIT, StepLimits { max_rows: 2, ..LIMITS }, u64::MAX).max_parts, 2 * 64);
        // Nothing is kept where nothing is split.
        assert_eq!(sharing(SPLIT, StepLimits { max_sequence_len: 512, ..LIMITS }, u64::MAX).max_parts, 0);
        let never = sharing(Split { workgroups: 0, ..SPLIT }, LIMITS, u64::MAX);
        assert_eq!(never.max_parts, 0);
        check(never, &[513], Parts::All, 0);
        check(Sharing::new(None, [14, 2], LIMITS, u64::MAX), &[32 << 10], Parts::One, 0);
    }
}
