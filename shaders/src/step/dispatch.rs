//! One dispatch of a step, made when the model was loaded and encoded in each step.

use std::sync::Arc;

use super::attention::Parts;
use super::inputs::Copied;
use super::plan::Counts;
use crate::kernels::{Bound, Kernel};

/// A variant of a product.
#[derive(Debug)]
pub(super) struct Variant {
    /// Taken up to so many columns; the last variant for all more.
    pub up_to: u32,
    /// Columns of a workgroup.
    pub cols: u32,
    /// Panels of a workgroup.
    pub panels: u32,
    /// Whether it is `matmul_tile`.
    pub is_tile: bool,
}

/// A variant of `matmul`.
const fn few(up_to: u32, cols: u32, panels: u32) -> Variant {
    Variant { up_to, cols, panels, is_tile: false }
}

/// Rows up to which products take a few columns at a time: more fill a device with tiles.
pub(super) const FEW_ROWS: u32 = 32;

/// Where threads do not share what they read. Up to four tiles of eight columns read weights again rather than
/// leave most of a GPU without a workgroup, as the few of `matmul_tile` would.
const ON_GPU: &[Variant] = &[
    few(1, 1, 1),
    few(2, 2, 1),
    few(4, 4, 1),
    few(FEW_ROWS, 8, 1),
    Variant { up_to: u32::MAX, cols: 32, panels: 8, is_tile: true },
];

/// Where they do. The last is for CPUs, which take longer to load and unpack weights than to multiply them.
const ON_CPU: &[Variant] =
    &[few(1, 1, 16), few(2, 2, 16), few(4, 4, 16), few(8, 8, 16), few(u32::MAX, 16, 16)];

/// The variants of a product, by whether threads share what they read and whether weights are textures.
pub(super) fn variants(shares: bool, in_texels: bool) -> &'static [Variant] {
    match (shares, in_texels) {
        (false, _) => ON_GPU,
        (true, true) => ON_CPU,
        // Threads of other devices have no room for sixteen columns' sums.
        (true, false) => &ON_CPU[..4],
    }
}

/// How many workgroups a dispatch has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grid {
    /// One for each row, and so many beside it.
    Rows(u32),
    /// So many for each row.
    Each(u32),
    /// As many as the variant needs for so many panels and the columns.
    Product(u32, &'static [Variant]),
    /// As many as there are tiles of so many panels and columns.
    Tiles { panels: u32, panels_each: u32, cols_each: u32 },
    /// So many for each row and each of so many modules.
    Modules(u32, u32),
    /// One for each part of a row's keys, and so many beside it.
    Parts(u32),
}

/// Which steps a dispatch is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// Those with adapters.
    Adapters,
    /// Those whose attention takes rows in this way.
    Attention(Parts),
    /// Those with up to [`FEW_ROWS`] rows.
    FewRows,
    /// Those with more.
    ManyRows,
}

/// One dispatch of a step.
#[derive(Debug)]
pub(super) struct Op {
    /// One, or one for each variant of a product.
    pub kernels: Vec<Arc<Kernel>>,
    pub bound: Bound,
    pub grid: Grid,
    /// What is copied to a texture before.
    pub copied: Option<Copied>,
    pub when: When,
}

impl Op {
    /// One that all steps have.
    pub fn new(kernels: Vec<Arc<Kernel>>, bound: Bound, grid: Grid) -> Op {
        Op { kernels, bound, grid, copied: None, when: When::Always }
    }

    /// Whether a step has it.
    pub fn is_in(&self, counts: Counts, with_adapters: bool) -> bool {
        match self.when {
            When::Always => true,
            When::Adapters => with_adapters,
            When::Attention(wanted) => wanted == counts.shared.parts,
            When::FewRows => counts.rows <= FEW_ROWS,
            When::ManyRows => counts.rows > FEW_ROWS,
        }
    }

    /// What it is dispatched for in a step: rows, or parts of rows.
    pub fn num_rows(&self, counts: Counts) -> u32 {
        if matches!(self.grid, Grid::Parts(_)) { counts.shared.num_parts } else { counts.rows }
    }

    /// The variant for so many rows, and its workgroups.
    pub fn dispatch(&self, num_rows: u32) -> (&Kernel, [u32; 3]) {
        match self.grid {
            Grid::Rows(beside) | Grid::Parts(beside) => (&self.kernels[0], [num_rows, beside, 1]),
            Grid::Each(count) => (&self.kernels[0], [count, num_rows, 1]),
            Grid::Modules(count, modules) => (&self.kernels[0], [count, num_rows, modules]),
            Grid::Tiles { panels, panels_each, cols_each } => {
                (&self.kernels[0], [panels.div_ceil(panels_each), num_rows.div_ceil(cols_each), 1])
            }
            Grid::Product(panels, variants) => {
                let fits = variants.iter().position(|variant| num_rows <= variant.up_to);
                let idx = fits.unwrap_or(variants.len() - 1);
                let variant = &variants[idx];
                let workgroups = [panels.div_ceil(variant.panels), num_rows.div_ceil(variant.cols), 1];
                (&self.kernels[idx], workgroups)
            }
        }
    }

    /// Makes the copy that it wants, outside of any pass.
    pub fn copy(&self, encoder: &mut wgpu::CommandEncoder, num_rows: u32) {
        if let Some(copied) = &self.copied {
            copied.encode(encoder, num_rows);
        }
    }

    /// Puts it into a pass.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, num_rows: u32) {
        let (kernel, [x, y, z]) = self.dispatch(num_rows);
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &self.bound.0, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}
