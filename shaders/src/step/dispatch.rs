//! One dispatch of a step, made when the model was loaded and encoded in each step.

use std::sync::Arc;

use super::attention::Parts;
use super::inputs::Copied;
use super::plan::Counts;
use crate::kernels::{Bound, Kernel};

/// The numbers of columns that there are variants of `matmul` for. The last is for CPUs, where loading and
/// unpacking weights takes longer than multiplying them; GPUs' threads have no room for so many sums.
pub(super) const COLS: [u32; 5] = [1, 2, 4, 8, 16];

/// How many workgroups a dispatch has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grid {
    /// One for each row, and so many beside it.
    Rows(u32),
    /// So many for each row.
    Each(u32),
    /// So many for each tile of columns.
    Panels(u32),
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
}

/// One dispatch of a step.
#[derive(Debug)]
pub(super) struct Op {
    /// One variant, or one for each of the first of [`COLS`].
    pub kernels: Vec<Arc<Kernel>>,
    pub bound: Bound,
    pub grid: Grid,
    /// What is copied to a texture before.
    pub copied: Option<Copied>,
    pub when: When,
}

impl Op {
    /// Whether a step has it.
    pub fn is_in(&self, parts: Parts, with_adapters: bool) -> bool {
        match self.when {
            When::Always => true,
            When::Adapters => with_adapters,
            When::Attention(wanted) => wanted == parts,
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
            Grid::Panels(count) => {
                let cols = &COLS[..self.kernels.len()];
                let variant = cols.iter().position(|cols| *cols >= num_rows).unwrap_or(cols.len() - 1);
                (&self.kernels[variant], [count, num_rows.div_ceil(cols[variant]), 1])
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
