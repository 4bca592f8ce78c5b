//! How rows of numbers become bytes and back.
//!
//! [`Plain`] decodes the common types and encodes the simple ones in Rust alone. All others come from a
//! codec that wraps ggml's own quantisers, which this crate knows only by the trait.

use half::{bf16, f16};
use quern_gguf::TensorType;
use thiserror::Error;

use crate::decode;

/// Turns rows into bytes and back. It may be shared by threads.
pub trait Codec: Sync {
    /// Decodes whole blocks: `bytes` are exactly those of `out.len()` elements.
    ///
    /// # Errors
    ///
    /// `CannotDecode` or `WrongSize`.
    fn decode(&self, kind: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError>;

    /// Encodes whole rows of `row_len` into `out`, which has exactly their size. `importance` weighs the
    /// columns of a row, for types that can use it.
    ///
    /// # Errors
    ///
    /// `CannotEncode`, `WrongSize`, or `NotFinite`.
    fn encode(
        &self,
        kind: TensorType,
        rows: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), CodecError>;

    /// Whether [`Codec::encode`] knows the type.
    fn can_encode(&self, kind: TensorType) -> bool;
}

/// Why rows could not be decoded or encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The type is not one that can be decoded.
    #[error("{0} cannot be decoded")]
    CannotDecode(TensorType),
    /// The type is not one that can be encoded.
    #[error("{0} cannot be encoded")]
    CannotEncode(TensorType),
    /// Numbers and bytes do not belong together, or rows are not whole blocks.
    #[error("{num_elements} elements of {kind} do not take {num_bytes} bytes")]
    WrongSize {
        /// The type.
        kind: TensorType,
        /// How many numbers there are.
        num_elements: usize,
        /// How many bytes there are.
        num_bytes: usize,
    },
    /// A number is none, or too large for the type.
    #[error("a NaN, an infinity, or a number too large for {0}")]
    NotFinite(TensorType),
}

/// What Rust alone can do: decodes F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K; encodes F32, F16, BF16
/// and Q8_0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Codec for Plain {
    fn decode(&self, kind: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
        check_sizes(kind, out.len(), bytes.len())?;
        let block = decode::block(kind).ok_or(CodecError::CannotDecode(kind))?;
        let blocks = bytes.chunks_exact(kind.block_bytes() as usize);
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(kind.block_elements() as usize)) {
            block(bytes, out);
        }
        Ok(())
    }

    fn encode(
        &self,
        kind: TensorType,
        rows: &[f32],
        _row_len: usize,
        _importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        check_sizes(kind, rows.len(), out.len())?;
        if !self.can_encode(kind) {
            return Err(CodecError::CannotEncode(kind));
        }
        check_numbers(kind, rows)?;
        match kind {
            TensorType::F32 => put(out, rows, f32::to_le_bytes),
            TensorType::F16 => put(out, rows, |value| f16::from_f32(value).to_le_bytes()),
            TensorType::BF16 => put(out, rows, |value| bf16::from_f32(value).to_le_bytes()),
            _ => {
                let blocks = out.chunks_exact_mut(34);
                blocks.zip(rows.chunks_exact(32)).for_each(|(out, block)| encode_q8_0(block, out));
            }
        }
        Ok(())
    }

    fn can_encode(&self, kind: TensorType) -> bool {
        matches!(kind, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0)
    }
}

/// Holds a number of elements against a number of bytes.
///
/// # Errors
///
/// `WrongSize`.
pub fn check_sizes(kind: TensorType, num_elements: usize, num_bytes: usize) -> Result<(), CodecError> {
    let (elements, bytes) = (kind.block_elements() as usize, kind.block_bytes() as usize);
    let fits = num_elements.is_multiple_of(elements) && num_elements / elements * bytes == num_bytes;
    fits.then_some(()).ok_or(CodecError::WrongSize { kind, num_elements, num_bytes })
}

/// Refuses numbers that are none, and those that the type would turn into infinities.
///
/// # Errors
///
/// `NotFinite`.
pub fn check_numbers(kind: TensorType, rows: &[f32]) -> Result<(), CodecError> {
    // Half precision rounds from here on to infinity; blocks have their scales in it, but divide first.
    let limit = match kind {
        TensorType::F16 => 65_520.0,
        TensorType::BF16 => 3.395e38,
        _ => f32::MAX,
    };
    let good = rows.iter().all(|value| value.abs() < limit || value.abs() == limit && limit == f32::MAX);
    good.then_some(()).ok_or(CodecError::NotFinite(kind))
}

fn put<const N: usize>(out: &mut [u8], rows: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
    out.chunks_exact_mut(N).zip(rows).for_each(|(out, value)| out.copy_from_slice(&bytes(*value)));
}

/// A scale as f16, then 32 signed bytes: the largest magnitude becomes 127.
fn encode_q8_0(block: &[f32], out: &mut [u8]) {
    let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (out, value) in out[2..].iter_mut().zip(block) {
        *out = (value * inverse).round() as i8 as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_types_come_back() {
        let rows: Vec<f32> = (0..64).map(|idx| (idx as f32 - 31.5) / 8.0).collect();
        for kind in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
            let size = kind.size_bytes(&[64]).unwrap() as usize;
            let (mut bytes, mut back) = (vec![0; size], vec![0.0; 64]);
            Plain.encode(kind, &rows, 64, None, &mut bytes).unwrap();
            Plain.decode(kind, &bytes, &mut back).unwrap();
            let worst = rows.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let allowed = if kind == TensorType::Q8_0 { 0.02 } else { 0.0 };
            assert!(worst <= allowed, "{kind}: {worst}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut out = [0; 2];
        let encode = |kind, value: f32, out: &mut [u8]| Plain.encode(kind, &[value], 1, None, out);
        let too_large = Err(CodecError::NotFinite(TensorType::F16));
        assert_eq!(encode(TensorType::F16, f32::NAN, &mut out), too_large);
        assert_eq!(encode(TensorType::F16, 65_520.0, &mut out), too_large);
        assert_eq!(encode(TensorType::F16, 65_519.0, &mut out), Ok(()));
        assert_eq!(encode(TensorType::BF16, 3.4e38, &mut out), Err(CodecError::NotFinite(TensorType::BF16)));
        assert_eq!(encode(TensorType::F32, f32::MAX, &mut [0; 4]), Ok(()));
        assert!(matches!(encode(TensorType::Q8_0, 1.0, &mut out), Err(CodecError::WrongSize { .. })));
        let mut block = [0; 144];
        let refused = Plain.encode(TensorType::Q4_K, &[0.0; 256], 256, None, &mut block);
        assert_eq!(refused, Err(CodecError::CannotEncode(TensorType::Q4_K)));
        assert_eq!(
            Plain.decode(TensorType::IQ2_XXS, &[0; 66], &mut [0.0; 256]),
            Err(CodecError::CannotDecode(TensorType::IQ2_XXS))
        );
    }
}
