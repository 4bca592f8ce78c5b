//! How matrices lie on the device, by the type that they have in the file.
//!
//! Blocks of 18, 22 or 210 bytes would have to be read in pieces; here every part of a block stands in a
//! plane of its own, so that each thread reads whole, aligned words. Weights keep their values and nearly
//! their size. Rows stand in panels of [`PANEL_ROWS`]; `wgsl/shared/group.wgsl` says how a panel is laid
//! out.

use quern_gguf::TensorType;

/// Rows that are stored together.
pub const PANEL_ROWS: usize = 8;
/// Columns of a row that are stored together, whatever the type.
pub const GROUP: usize = 32;
/// Groups that share a word of scales in K formats.
pub(crate) const SUPER_GROUPS: usize = 8;
/// Words of scales of a row's superblock: one for the whole and one for each two groups.
pub(crate) const SUPER_WORDS: usize = 5;

/// Where a group's scale stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// There is none: weights stand as they are.
    None,
    /// An f16 for each group.
    Half,
    /// Scale and minimum, both f16, for each group.
    Pair,
    /// d and dmin, then a byte of scale and one of minimum for each group.
    Super,
    /// d as f32, then two signed bytes of scale for each group.
    Six,
}

/// The layout of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The type in the file.
    pub kind: TensorType,
    /// The value of a kernel's axis `QUANT`.
    pub axis: &'static str,
    /// 16-byte vectors of the plane of quants for a row's group.
    pub(crate) vectors: usize,
    /// Words of the plane of upper bits for a row's group.
    pub(crate) high: usize,
    pub(crate) scales: Scales,
}

const FORMATS: &[Format] = &[
    format(TensorType::F32, "f32", 8, 0, Scales::None),
    format(TensorType::F16, "f16", 4, 0, Scales::None),
    format(TensorType::BF16, "bf16", 4, 0, Scales::None),
    format(TensorType::Q4_0, "q4_0", 1, 0, Scales::Half),
    format(TensorType::Q4_1, "q4_1", 1, 0, Scales::Pair),
    format(TensorType::Q5_0, "q5_0", 1, 1, Scales::Half),
    format(TensorType::Q5_1, "q5_1", 1, 1, Scales::Pair),
    format(TensorType::Q8_0, "q8_0", 2, 0, Scales::Half),
    format(TensorType::Q4_K, "q4_k", 1, 0, Scales::Super),
    format(TensorType::Q5_K, "q5_k", 1, 1, Scales::Super),
    format(TensorType::Q6_K, "q6_k", 1, 2, Scales::Six),
];

const fn format(kind: TensorType, axis: &'static str, vectors: usize, high: usize, scales: Scales) -> Format {
    Format { kind, axis, vectors, high, scales }
}

impl Format {
    /// The layout of a type, where there is one.
    #[must_use]
    pub fn of(kind: TensorType) -> Option<Format> {
        FORMATS.iter().find(|format| format.kind == kind).copied()
    }

    /// All layouts.
    #[must_use]
    pub fn all() -> &'static [Format] {
        FORMATS
    }

    /// Words of a panel in the planes of quants, upper bits and scales, for rows of `num_groups` groups.
    #[must_use]
    pub fn panel_words(&self, num_groups: usize) -> [usize; 3] {
        let scales = match self.scales {
            Scales::None => 0,
            Scales::Half => num_groups * PANEL_ROWS / 2,
            Scales::Pair => num_groups * PANEL_ROWS,
            Scales::Super | Scales::Six => num_groups / SUPER_GROUPS * SUPER_WORDS * PANEL_ROWS,
        };
        [num_groups * PANEL_ROWS * 4 * self.vectors, num_groups * PANEL_ROWS * self.high, scales]
    }
}

/// Words of a panel or of several, plane by plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planes {
    /// Numbers, or their lower bits.
    pub quants: Vec<u32>,
    /// Upper bits of numbers of 5 and 6 bits.
    pub highs: Vec<u32>,
    /// Scales and minima.
    pub scales: Vec<u32>,
}
