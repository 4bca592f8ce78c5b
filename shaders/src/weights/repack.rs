//! From rows as a file has them to panels as kernels read them.

use half::f16;
use quern_gguf::TensorType;

use super::format::{Format, GROUP, PANEL_ROWS, Planes, SUPER_GROUPS, SUPER_WORDS, Scales};

/// Appends panels of `rows`, which are whole rows of `num_columns` weights as the file has them. The last
/// panel is filled up with zeros.
///
/// # Panics
/// When `rows` are not whole rows, or `num_columns` is not a multiple of [`GROUP`] and of the type's block.
pub fn repack(format: Format, num_columns: usize, rows: &[u8], planes: &mut Planes) {
    let kind = format.kind;
    assert!(num_columns.is_multiple_of(GROUP.max(kind.block_elements() as usize)), "rows are whole groups");
    let row_bytes = num_columns / kind.block_elements() as usize * kind.block_bytes() as usize;
    assert!(rows.len().is_multiple_of(row_bytes), "rows are whole");
    let num_groups = num_columns / GROUP;
    for panel in rows.chunks(row_bytes * PANEL_ROWS) {
        let mut to = Panel::append(format, num_groups, planes);
        for (row_idx, row) in panel.chunks_exact(row_bytes).enumerate() {
            for group_idx in 0..num_groups {
                to.put_group(row_idx, group_idx, row);
            }
        }
    }
}

/// Rows of Q5_0 as Q8_0, with the same values: half as large again, and unpacked in a third of the operations.
///
/// # Panics
/// When `rows` are not whole blocks.
#[must_use]
pub fn widen_q5_0(rows: &[u8]) -> Vec<u8> {
    let (narrow, wide) = (TensorType::Q5_0.block_bytes() as usize, TensorType::Q8_0.block_bytes() as usize);
    assert!(rows.len().is_multiple_of(narrow), "rows are whole blocks");
    let mut out = Vec::with_capacity(rows.len() / narrow * wide);
    for block in rows.chunks_exact(narrow) {
        out.extend_from_slice(&block[..2]);
        out.extend(numbers(TensorType::Q5_0, block, 0).map(|number| number.wrapping_sub(16)));
    }
    out
}

/// The end of each plane: the panel that is being written.
struct Panel<'a> {
    format: Format,
    num_groups: usize,
    quants: &'a mut [u32],
    highs: &'a mut [u32],
    scales: &'a mut [u32],
}

impl<'a> Panel<'a> {
    fn append(format: Format, num_groups: usize, planes: &'a mut Planes) -> Panel<'a> {
        let words = format.panel_words(num_groups);
        let grow = |plane: &'a mut Vec<u32>, words: usize| {
            let start = plane.len();
            plane.resize(start + words, 0);
            &mut plane[start..]
        };
        Panel {
            format,
            num_groups,
            quants: grow(&mut planes.quants, words[0]),
            highs: grow(&mut planes.highs, words[1]),
            scales: grow(&mut planes.scales, words[2]),
        }
    }

    /// `row` is the whole row's bytes.
    fn put_group(&mut self, row_idx: usize, group_idx: usize, row: &[u8]) {
        debug_assert!(group_idx < self.num_groups);
        let kind = self.format.kind;
        let in_block = (kind.block_elements() as usize / GROUP).max(1);
        let block_bytes = kind.block_bytes() as usize;
        match kind {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                let bytes = &row[group_idx * GROUP * block_bytes..][..GROUP * block_bytes];
                self.put_bytes(row_idx, group_idx, bytes);
            }
            TensorType::Q8_0 => {
                let block = &row[group_idx * block_bytes..][..block_bytes];
                self.put_bytes(row_idx, group_idx, &block[2..]);
                self.put_scales(row_idx, group_idx, block);
            }
            _ => {
                let block = &row[group_idx / in_block * block_bytes..][..block_bytes];
                let numbers = numbers(kind, block, group_idx % in_block);
                self.put_numbers(row_idx, group_idx, &numbers);
                self.put_scales(row_idx, group_idx, block);
            }
        }
    }

    /// The word of the plane of quants for a row's group.
    fn quant_at(&self, row_idx: usize, group_idx: usize, word_idx: usize) -> usize {
        let vector = group_idx * self.format.vectors + word_idx / 4;
        (vector * PANEL_ROWS + row_idx) * 4 + word_idx % 4
    }

    fn put_bytes(&mut self, row_idx: usize, group_idx: usize, bytes: &[u8]) {
        for (word_idx, word) in bytes.chunks_exact(4).enumerate() {
            let at = self.quant_at(row_idx, group_idx, word_idx);
            self.quants[at] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        }
    }

    /// Four bits a number in the plane of quants, and what is above them in the plane of upper bits.
    fn put_numbers(&mut self, row_idx: usize, group_idx: usize, numbers: &[u8; GROUP]) {
        for (word_idx, eight) in numbers.chunks_exact(8).enumerate() {
            let at = self.quant_at(row_idx, group_idx, word_idx);
            self.quants[at] =
                eight.iter().enumerate().fold(0, |word, (idx, n)| word | u32::from(n & 15) << (4 * idx));
        }
        if self.format.high == 0 {
            return;
        }
        let per_word = GROUP / self.format.high;
        for (word_idx, part) in numbers.chunks_exact(per_word).enumerate() {
            let at = (group_idx * self.format.high + word_idx) * PANEL_ROWS + row_idx;
            let upper = |(idx, n): (usize, &u8)| u32::from(n >> 4) << (idx * self.format.high);
            self.highs[at] = part.iter().enumerate().map(upper).fold(0, |word, bits| word | bits);
        }
    }

    fn put_scales(&mut self, row_idx: usize, group_idx: usize, block: &[u8]) {
        let half = |at: usize| u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
        let (within, in_super) = (group_idx % SUPER_GROUPS, group_idx / SUPER_GROUPS * SUPER_WORDS);
        let super_word = |word: usize| (in_super + word) * PANEL_ROWS + row_idx;
        match self.format.scales {
            Scales::None => {}
            Scales::Half => {
                let at = (group_idx * PANEL_ROWS + row_idx) / 2;
                self.scales[at] |= half(0) << (row_idx % 2 * 16);
            }
            Scales::Pair => self.scales[group_idx * PANEL_ROWS + row_idx] = half(0) | half(2) << 16,
            Scales::Super => {
                self.scales[super_word(0)] = half(0) | half(2) << 16;
                let (scale, min) = scale_and_min(&block[4..16], within);
                let own = u32::from(scale) | u32::from(min) << 8;
                self.scales[super_word(1 + within / 2)] |= own << (within % 2 * 16);
            }
            Scales::Six => {
                self.scales[super_word(0)] = f16::from_bits(half(208) as u16).to_f32().to_bits();
                let own = half(192 + 2 * within);
                self.scales[super_word(1 + within / 2)] |= own << (within % 2 * 16);
            }
        }
    }
}

/// The numbers of a group of a block, without their offset. The layouts: ggml's `ggml-common.h`.
fn numbers(kind: TensorType, block: &[u8], group_idx: usize) -> [u8; GROUP] {
    // Blocks of 32: low nibbles are the first half.
    let nibble = |start: usize, idx: usize| {
        let byte = block[start + idx % 16];
        if idx < 16 { byte & 15 } else { byte >> 4 }
    };
    let fifth = |start: usize, idx: usize| (block[start + idx / 8] >> (idx % 8) & 1) << 4;
    // Blocks of 256: two groups share 32 bytes.
    let shared =
        |start: usize, idx: usize| block[start + group_idx / 2 * 32 + idx] >> (group_idx % 2 * 4) & 15;
    std::array::from_fn(|idx| match kind {
        TensorType::Q4_0 => nibble(2, idx),
        TensorType::Q4_1 => nibble(4, idx),
        TensorType::Q5_0 => nibble(6, idx) | fifth(2, idx),
        TensorType::Q5_1 => nibble(8, idx) | fifth(4, idx),
        TensorType::Q4_K => shared(16, idx),
        TensorType::Q5_K => shared(48, idx) | (block[16 + idx] >> group_idx & 1) << 4,
        TensorType::Q6_K => {
            // Halves of 128 weights are four groups: their low bits lie in 64 bytes, the high ones in 32.
            let (half, quarter) = (group_idx / 4, group_idx % 4);
            let low = block[half * 64 + quarter % 2 * 32 + idx] >> (quarter / 2 * 4) & 15;
            let high = block[128 + half * 32 + idx] >> (2 * quarter) & 3;
            low | high << 4
        }
        other => unreachable!("{other} has no numbers of four bits"),
    })
}

/// The 6-bit scale and minimum of one of eight groups, packed into twelve bytes.
fn scale_and_min(packed: &[u8], group_idx: usize) -> (u8, u8) {
    if group_idx < 4 {
        return (packed[group_idx] & 63, packed[group_idx + 4] & 63);
    }
    let (low, scale_top, min_top) = (packed[group_idx + 4], packed[group_idx - 4], packed[group_idx]);
    (low & 15 | scale_top >> 6 << 4, low >> 4 | min_top >> 6 << 4)
}
