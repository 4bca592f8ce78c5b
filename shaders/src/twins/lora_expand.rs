//! The twin of `wgsl/lora_expand.wgsl`.

use super::LoraBuffers;
use crate::lora::MAX_RANK;

/// Adds B y of each row's own adapter to `out`, `[num_rows, out_width]`. `shrunk` is
/// `[num_rows, num_modules, MAX_RANK]`. Sums are f64.
pub fn lora_expand(buffers: LoraBuffers<'_>, shrunk: &[f32], out: &mut [f32]) {
    let num_modules = buffers.shape.num_modules();
    for (row, out) in out.chunks_mut(buffers.shape.out_width as usize).enumerate() {
        for (module, placed) in buffers.shape.modules.iter().enumerate() {
            let Some((rank, _, b)) = buffers.find(row, module) else { continue };
            let y = &shrunk[(row * num_modules + module) * MAX_RANK..][..rank];
            let columns = &mut out[placed.first_column as usize..][..placed.output as usize];
            for (column, out) in columns.iter_mut().enumerate() {
                let row_of_b = b + column * rank;
                let products = y.iter().enumerate().map(|(r, y)| buffers.value(row_of_b + r) * f64::from(*y));
                *out += products.sum::<f64>() as f32;
            }
        }
    }
}
