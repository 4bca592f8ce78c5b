//! The twin of `wgsl/lora_shrink.wgsl`.

use half::f16;

use crate::lora::{LoraShape, MAX_RANK, NO_SLOT, SLOT_WORDS};

/// What the LoRA kernels read besides activations; see `wgsl/shared/lora.wgsl`.
#[derive(Debug, Clone, Copy)]
pub struct LoraBuffers<'a> {
    /// The modules.
    pub shape: &'a LoraShape,
    /// [`LoraBook::table`](crate::lora::LoraBook::table).
    pub slots: &'a [u32],
    /// `[num_rows]`, a slot or [`NO_SLOT`].
    pub row_slots: &'a [u32],
    /// One layer's pool.
    pub pool: &'a [u32],
}

impl LoraBuffers<'_> {
    /// Rank and place of A and B, in values, where the row's adapter changes the module.
    pub(super) fn find(&self, row: usize, module: usize) -> Option<(usize, usize, usize)> {
        let slot_idx = self.row_slots[row];
        if slot_idx == NO_SLOT {
            return None;
        }
        let [start, rank, modules, _] = self.slots.as_chunks::<SLOT_WORDS>().0[slot_idx as usize];
        let module = self.shape.modules[module];
        if (modules >> module.module_idx) & 1 == 0 {
            return None;
        }
        let start_of_a = start + rank / 8 * module.start;
        let start_of_b = start_of_a + rank * self.shape.input_units();
        Some((rank as usize, start_of_a as usize * 8, start_of_b as usize * 8))
    }

    pub(super) fn value(&self, idx: usize) -> f64 {
        f16::from_bits((self.pool[idx / 2] >> (idx % 2 * 16)) as u16).to_f64()
    }
}

/// Writes A x of each row's own adapter to `shrunk`, `[num_rows, num_modules, MAX_RANK]`, and leaves the
/// rest of it as it is. `x` is `[num_rows, input]`. Sums are f64.
pub fn lora_shrink(buffers: LoraBuffers<'_>, x: &[f32], shrunk: &mut [f32]) {
    let (input, num_modules) = (buffers.shape.input as usize, buffers.shape.num_modules());
    for (row, x) in x.chunks(input).enumerate() {
        for module in 0..num_modules {
            let Some((rank, a, _)) = buffers.find(row, module) else { continue };
            for rank_idx in 0..rank {
                let row_of_a = a + rank_idx * input.next_multiple_of(8);
                let products = x.iter().enumerate().map(|(k, x)| buffers.value(row_of_a + k) * f64::from(*x));
                shrunk[(row * num_modules + module) * MAX_RANK + rank_idx] = products.sum::<f64>() as f32;
            }
        }
    }
}
