//! Decoders of ggml's block formats, one block at a time.
//!
//! The operations stand in ggml's order, so that the results are the same to the last bit; the crate that
//! wraps ggml has the test. The layouts: ggml's `ggml-common.h`.

use half::{bf16, f16};
use quern_gguf::TensorType;

/// Decodes one block; the lengths are the type's.
pub(crate) type Block = fn(&[u8], &mut [f32]);

/// The decoder of a type, where there is one.
pub(crate) fn block(kind: TensorType) -> Option<Block> {
    Some(match kind {
        TensorType::F32 => |bytes, out| out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        TensorType::F16 => |bytes, out| out[0] = half(bytes, 0),
        TensorType::BF16 => |bytes, out| out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        TensorType::Q4_0 => q4_0,
        TensorType::Q4_1 => q4_1,
        TensorType::Q5_0 => q5_0,
        TensorType::Q5_1 => q5_1,
        TensorType::Q8_0 => q8_0,
        TensorType::Q2_K => q2_k,
        TensorType::Q3_K => q3_k,
        TensorType::Q4_K => q4_k,
        TensorType::Q5_K => q5_k,
        TensorType::Q6_K => q6_k,
        _ => return None,
    })
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// d, then nibbles: the low ones are elements 0 to 15.
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    let d = half(bytes, 0);
    for (idx, byte) in bytes[2..].iter().enumerate() {
        out[idx] = (i32::from(byte & 15) - 8) as f32 * d;
        out[idx + 16] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

/// d, m, then nibbles.
fn q4_1(bytes: &[u8], out: &mut [f32]) {
    let (d, m) = (half(bytes, 0), half(bytes, 2));
    for (idx, byte) in bytes[4..].iter().enumerate() {
        out[idx] = f32::from(byte & 15) * d + m;
        out[idx + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The fifth bits of both nibbles at `idx`, in place.
fn fifth_bits(bytes: &[u8], at: usize, idx: usize) -> (u8, u8) {
    let bits = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (((bits >> idx) << 4) as u8 & 16, (bits >> (idx + 12)) as u8 & 16)
}

/// d, 32 fifth bits, then nibbles.
fn q5_0(bytes: &[u8], out: &mut [f32]) {
    let d = half(bytes, 0);
    for (idx, byte) in bytes[6..].iter().enumerate() {
        let (low, high) = fifth_bits(bytes, 2, idx);
        out[idx] = (i32::from(byte & 15 | low) - 16) as f32 * d;
        out[idx + 16] = (i32::from(byte >> 4 | high) - 16) as f32 * d;
    }
}

/// d, m, 32 fifth bits, then nibbles.
fn q5_1(bytes: &[u8], out: &mut [f32]) {
    let (d, m) = (half(bytes, 0), half(bytes, 2));
    for (idx, byte) in bytes[8..].iter().enumerate() {
        let (low, high) = fifth_bits(bytes, 4, idx);
        out[idx] = f32::from(byte & 15 | low) * d + m;
        out[idx + 16] = f32::from(byte >> 4 | high) * d + m;
    }
}

/// d, then 32 signed bytes.
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    let d = half(bytes, 0);
    for (out, byte) in out.iter_mut().zip(&bytes[2..]) {
        *out = f32::from(*byte as i8) * d;
    }
}

/// Sixteen bytes of scale and minimum, 64 bytes of four 2-bit numbers, d, dmin.
fn q2_k(bytes: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&bytes[..16], &bytes[16..80]);
    let (d, dmin) = (half(bytes, 80), half(bytes, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[group] & 15), dmin * f32::from(scales[group] >> 4));
        let (start, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
        for (out, quant) in out.iter_mut().zip(&quants[start..]) {
            *out = scale * f32::from(quant >> shift & 3) - min;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of four 2-bit numbers, twelve bytes of 6-bit scales, d.
fn q3_k(bytes: &[u8], out: &mut [f32]) {
    let (thirds, quants, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    let d = half(bytes, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        // The low four bits of scales 0 to 7 and 8 to 15 share bytes; the high two lie in the last four.
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (i32::from(low | high << 4) - 32) as f32;
        let (half_start, shift) = (group % 2 * 16, group % 8 / 2 * 2);
        let mask = 1 << (group / 2);
        let quants = &quants[group / 8 * 32 + half_start..];
        for ((out, quant), third) in out.iter_mut().zip(quants).zip(&thirds[half_start..]) {
            let below = if third & mask == 0 { 4 } else { 0 };
            *out = scale * (i32::from(quant >> shift & 3) - below) as f32;
        }
    }
}

/// The 6-bit scale and minimum of one of eight groups, packed into twelve bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

/// d, dmin, scales and minima, then nibbles: 32 bytes hold two groups of 32.
fn q4_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(bytes, 0), half(bytes, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        let shift = group % 2 * 4;
        for (out, quant) in out.iter_mut().zip(&bytes[16 + group / 2 * 32..]) {
            *out = scale * f32::from(quant >> shift & 15) - min;
        }
    }
}

/// d, dmin, scales and minima, 32 bytes of fifth bits (a bit for each group), then nibbles as above.
fn q5_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(bytes, 0), half(bytes, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        let shift = group % 2 * 4;
        let quants = bytes[48 + group / 2 * 32..].iter().zip(&bytes[16..48]);
        for (out, (quant, fifths)) in out.iter_mut().zip(quants) {
            let fifth = fifths >> group & 1;
            *out = scale * f32::from((quant >> shift & 15) + fifth * 16) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, sixteen signed scales, d.
fn q6_k(bytes: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    let d = half(bytes, 208);
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[part * 64..], &high[part * 32..], &scales[part * 8..]);
        for (idx, out) in out.iter_mut().enumerate() {
            let (quarter, column) = (idx / 32, idx % 32);
            let nibble = low[quarter % 2 * 32 + column] >> (quarter / 2 * 4) & 15;
            let pair = high[column] >> (quarter * 2) & 3;
            let quant = i32::from(nibble | pair << 4) - 32;
            let scale = f32::from(scales[idx / 16] as i8);
            *out = d * scale * quant as f32;
        }
    }
}
