//! An adapter's matrices as the bytes of a slot.
//!
//! A slot holds its modules one after another; each is A, `[rank, padded input]`, and then B,
//! `[output, rank]`, both row-major in f16 and filled up with zeros.

use half::f16;

use super::{LoraBook, LoraError, LoraMatrices, LoraModule};

/// All modules of one layer, two values a word.
pub(super) fn pack_layer(
    book: &LoraBook,
    slot_rank: u32,
    layer_idx: u32,
    matrices: &[LoraMatrices<'_>],
) -> Result<Vec<u32>, LoraError> {
    let mut values = Vec::with_capacity(book.slot_units(slot_rank) as usize * 8);
    for (module_idx, module) in book.modules.iter().enumerate() {
        let place = (layer_idx, module_idx as u32);
        let num_values = (module.padded_input() + module.output) as usize * slot_rank as usize;
        match matrices.iter().find(|pair| (pair.layer_idx, pair.module_idx) == place) {
            Some(pair) => pack_module(module, slot_rank, pair, &mut values)?,
            None => values.resize(values.len() + num_values, f16::ZERO),
        }
    }
    let (pairs, _) = values.as_chunks::<2>();
    Ok(pairs.iter().map(|[low, high]| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16).collect())
}

fn pack_module(
    module: &LoraModule,
    slot_rank: u32,
    pair: &LoraMatrices<'_>,
    values: &mut Vec<f16>,
) -> Result<(), LoraError> {
    let (rank, slot_rank) = (pair.rank as usize, slot_rank as usize);
    let (factor_a, factor_b) = balance(pair);
    let packed = |which, value: f32, factor: f64| {
        let stored = f16::from_f64(f64::from(value) * factor);
        let refused = LoraError::OutOfRange { layer_idx: pair.layer_idx, module: module.name, which, value };
        if stored.is_finite() { Ok(stored) } else { Err(refused) }
    };
    for row in pair.a.chunks(module.input as usize) {
        let start = values.len();
        for &value in row {
            values.push(packed("A", value, factor_a)?);
        }
        values.resize(start + module.padded_input() as usize, f16::ZERO);
    }
    let num_missing = (slot_rank - rank) * module.padded_input() as usize;
    values.resize(values.len() + num_missing, f16::ZERO);
    for row in pair.b.chunks(rank) {
        let start = values.len();
        for &value in row {
            values.push(packed("B", value, factor_b * f64::from(pair.scale))?);
        }
        values.resize(start + slot_rank, f16::ZERO);
    }
    Ok(())
}

/// Factors for A and B, powers of two with the product 1, that bring their largest values to about the same
/// size. A trained B is often so small that f16 would keep but a few of its bits.
fn balance(pair: &LoraMatrices<'_>) -> (f64, f64) {
    let largest =
        |values: &[f32]| values.iter().fold(0.0, |max, value| f64::max(max, f64::from(value.abs())));
    let (a, b) = (largest(pair.a), largest(pair.b) * f64::from(pair.scale.abs()));
    let exponent = ((a.log2() - b.log2()) / 2.0).round();
    // One of them is all zeros, or holds an infinity that is refused later.
    if !exponent.is_finite() {
        return (1.0, 1.0);
    }
    ((-exponent).exp2(), exponent.exp2())
}
