//! The twin of `wgsl/shared/group.wgsl`: a weight from the planes.

use half::{bf16, f16};
use quern_gguf::TensorType;

use crate::weights::format::{Format, GROUP, PANEL_ROWS, Planes, SUPER_GROUPS, SUPER_WORDS, Scales};

/// 32 weights of one row before scaling, with what scales them: the first 16 by `scale[0]`, the others by
/// `scale[1]`; `least` is added to all.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The weights before scaling.
    pub numbers: [f32; GROUP],
    /// What they are multiplied by.
    pub scale: [f32; 2],
    /// What is added then.
    pub least: f32,
}

impl Group {
    /// Reads the group of one row of planes whose rows have `num_groups`.
    #[must_use]
    pub fn read(format: Format, num_groups: usize, planes: &Planes, row: usize, group_idx: usize) -> Group {
        let (panel, row) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let at = panel * num_groups + group_idx;
        let word = |idx: usize| {
            let vector = (at * format.vectors + idx / 4) * PANEL_ROWS + row;
            planes.quants[vector * 4 + idx % 4]
        };
        let half = |word: u32, idx: usize| f16::from_bits((word >> (16 * (idx % 2))) as u16).to_f32();
        let upper = |idx: usize| {
            if format.high == 0 {
                return 0;
            }
            let per_word = GROUP / format.high;
            let word = planes.highs[(at * format.high + idx / per_word) * PANEL_ROWS + row];
            (word >> (idx % per_word * format.high) & ((1 << format.high) - 1)) << 4
        };
        let offset = match format.kind {
            TensorType::Q4_0 => 8,
            TensorType::Q5_0 => 16,
            TensorType::Q6_K => 32,
            _ => 0,
        };
        let numbers = std::array::from_fn(|idx| match format.kind {
            TensorType::F32 => f32::from_bits(word(idx)),
            TensorType::F16 => half(word(idx / 2), idx),
            TensorType::BF16 => bf16::from_bits((word(idx / 2) >> (16 * (idx % 2))) as u16).to_f32(),
            TensorType::Q8_0 => f32::from((word(idx / 4) >> (8 * (idx % 4))) as i8),
            _ => ((word(idx / 8) >> (4 * (idx % 8)) & 15 | upper(idx)) as i32 - offset) as f32,
        });
        let super_at = (panel * (num_groups / SUPER_GROUPS) + group_idx / SUPER_GROUPS) * SUPER_WORDS;
        let within = group_idx % SUPER_GROUPS;
        let super_word = |idx: usize| planes.scales[(super_at + idx) * PANEL_ROWS + row];
        let own = |idx: usize| super_word(1 + within / 2) >> (within % 2 * 16 + 8 * idx);
        let (scale, least) = match format.scales {
            Scales::None => ([1.0; 2], 0.0),
            Scales::Half => ([half(planes.scales[at * PANEL_ROWS / 2 + row / 2], row); 2], 0.0),
            Scales::Pair => {
                let pair = planes.scales[at * PANEL_ROWS + row];
                ([half(pair, 0); 2], half(pair, 1))
            }
            Scales::Super => {
                let (d, dmin) = (half(super_word(0), 0), half(super_word(0), 1));
                ([d * (own(0) & 255) as f32; 2], -(dmin * (own(1) & 255) as f32))
            }
            Scales::Six => {
                let d = f32::from_bits(super_word(0));
                ([d * f32::from(own(0) as i8), d * f32::from(own(1) as i8)], 0.0)
            }
        };
        Group { numbers, scale, least }
    }

    /// The weights' values.
    #[must_use]
    pub fn values(&self) -> [f32; GROUP] {
        std::array::from_fn(|idx| self.numbers[idx] * self.scale[idx / 16] + self.least)
    }
}
