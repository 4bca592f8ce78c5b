//! Random weights and their encodings.

use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::tensor::TensorType;

/// A generator for one tensor of one seed.
pub(super) fn generator(seed: u64, stream_idx: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream_idx);
    generator
}

/// Numbers that are about normally distributed, with mean 0 and standard deviation 1.
pub(super) struct Gaussian(ChaCha8Rng);

impl Gaussian {
    pub(super) fn new(seed: u64, stream_idx: u64) -> Gaussian {
        Gaussian(generator(seed, stream_idx))
    }

    /// The sum of four uniform 16-bit numbers: exact in f32, unlike anything with a logarithm, whose last
    /// bits differ between machines.
    pub(super) fn sample(&mut self) -> f32 {
        const MEAN: i32 = 2 * 65_535;
        const DEVIATION: f32 = 37_837.23;
        let bits = self.0.next_u64();
        let sum: i32 = (0..4).map(|part| (bits >> (16 * part)) as u16 as i32).sum();
        (sum - MEAN) as f32 / DEVIATION
    }
}

pub(super) fn can_encode(kind: TensorType) -> bool {
    use TensorType::{BF16, F16, F32, Q5_0, Q8_0};
    matches!(kind, F32 | F16 | BF16 | Q8_0 | Q5_0)
}

/// Appends a row in the encoding, which must be one of [`can_encode`].
pub(super) fn encode(kind: TensorType, row: &[f32], out: &mut Vec<u8>) {
    match kind {
        TensorType::F32 => out.extend(row.iter().flat_map(|weight| weight.to_le_bytes())),
        TensorType::F16 => out.extend(row.iter().flat_map(|weight| f16::from_f32(*weight).to_le_bytes())),
        TensorType::BF16 => out.extend(row.iter().flat_map(|weight| bf16::from_f32(*weight).to_le_bytes())),
        TensorType::Q8_0 => row.chunks(32).for_each(|block| encode_q8_0(block, out)),
        TensorType::Q5_0 => row.chunks(32).for_each(|block| encode_q5_0(block, out)),
        other => unreachable!("the wish for {other} was refused before"),
    }
}

/// A scale as f16, then 32 signed bytes: the largest magnitude becomes 127.
fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
    out.extend(block.iter().map(|weight| (weight * inverse).round() as i8 as u8));
}

/// A scale as f16, the fifth bits of 32 numbers, then their low four bits, the first sixteen numbers in the
/// low halves: the largest magnitude becomes 0, which stands for -16 scales.
fn encode_q5_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block
        .iter()
        .fold(0f32, |largest, &weight| if weight.abs() > largest.abs() { weight } else { largest });
    let scale = largest / -16.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let numbers: Vec<u8> =
        block.iter().map(|weight| (weight * inverse + 16.5).clamp(0.0, 31.0) as u8).collect();
    let fifth =
        numbers.iter().enumerate().fold(0u32, |bits, (idx, &number)| bits | u32::from(number >> 4) << idx);
    out.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
    out.extend_from_slice(&fifth.to_le_bytes());
    let (low, high) = numbers.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

/// Fills `bytes`, whole blocks, with random weights of about the standard deviation that is asked for.
/// Everything but the scales is uniform, so the divisors below are the standard deviations of a block whose
/// scale is 1.
pub(super) fn fill_blocks(kind: TensorType, deviation: f32, generator: &mut ChaCha8Rng, bytes: &mut [u8]) {
    generator.fill_bytes(bytes);
    for block in bytes.chunks_exact_mut(kind.block_bytes() as usize) {
        // Quants lean half a step to the negative side. A sign for each block evens that out; otherwise the
        // sum of the inputs would swamp everything else from layer to layer.
        let sign = if block[0] & 1 == 0 { 1.0 } else { -1.0 };
        let scale = |unit: f32| f16::from_f32(sign * deviation / unit);
        match kind {
            // d, dmin, twelve bytes of 6-bit scales and minima, then nibbles: d * scale * q - dmin * min. A
            // dmin of 7.5 d, the mean of q, puts the mean of the weights at 0.
            TensorType::Q4_K => {
                block[..2].copy_from_slice(&scale(258.0).to_le_bytes());
                block[2..4].copy_from_slice(&scale(258.0 / 7.5).to_le_bytes());
            }
            // 192 bytes of quants, sixteen signed scales, d: d * scale * (q - 32).
            TensorType::Q6_K => {
                for scale in &mut block[192..208] {
                    *scale = ((*scale & 31) as i8 - 16) as u8;
                }
                block[208..].copy_from_slice(&scale(170.0).to_le_bytes());
            }
            // d, then quants: d * (q - 16).
            TensorType::Q5_0 => block[..2].copy_from_slice(&scale(9.2).to_le_bytes()),
            // d, then signed bytes: d * q.
            TensorType::Q8_0 => block[..2].copy_from_slice(&scale(74.0).to_le_bytes()),
            other => unreachable!("no synthetic model has {other} matrices"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_about_normal() {
        let mut gaussian = Gaussian::new(7, 0);
        let samples: Vec<f32> = (0..100_000).map(|_| gaussian.sample()).collect();
        let mean = samples.iter().sum::<f32>() / 1e5;
        let variance = samples.iter().map(|sample| sample * sample).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn q8_0_loses_less_than_a_step() {
        let mut gaussian = Gaussian::new(7, 1);
        let row: Vec<f32> = (0..64).map(|_| gaussian.sample()).collect();
        let mut bytes = Vec::new();
        encode(TensorType::Q8_0, &row, &mut bytes);
        assert_eq!(bytes.len(), 68);
        for (block, weights) in bytes.chunks(34).zip(row.chunks(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (quant, weight) in block[2..].iter().zip(weights) {
                let back = f32::from(*quant as i8) * scale;
                // Half a step of rounding, and what the scale loses as f16.
                assert!((back - weight).abs() <= 0.51 * scale + weight.abs() * 1e-3, "{back} {weight}");
            }
        }
        bytes.clear();
        encode(TensorType::Q8_0, &[0.0; 32], &mut bytes);
        assert_eq!(bytes, [0; 34]);
    }

    /// The weights of a Q4_K block, after ggml's layout.
    fn decode_q4_k(block: &[u8]) -> Vec<f32> {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let (d, dmin, packed) = (half(0), half(2), &block[4..16]);
        let mut weights = Vec::new();
        for group in 0..8 {
            let (scale, min) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                (
                    (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4),
                    (packed[group + 4] >> 4) | (packed[group] >> 6 << 4),
                )
            };
            for idx in 0..32 {
                let byte = block[16 + group / 2 * 32 + idx];
                let quant = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
                weights.push(d * f32::from(scale) * f32::from(quant) - dmin * f32::from(min));
            }
        }
        weights
    }

    #[test]
    fn random_q4_k_blocks_have_the_deviation_asked_for() {
        let mut bytes = vec![0; 144 * 500];
        fill_blocks(TensorType::Q4_K, 0.02, &mut generator(3, 0), &mut bytes);
        let weights: Vec<f32> = bytes.chunks(144).flat_map(decode_q4_k).collect();
        let count = weights.len() as f32;
        let mean = weights.iter().sum::<f32>() / count;
        let deviation = (weights.iter().map(|weight| weight * weight).sum::<f32>() / count).sqrt();
        assert!(mean.abs() < 0.002, "{mean}");
        assert!((deviation - 0.02).abs() < 0.002, "{deviation}");
    }
}
