//! Softmax weights, fast and the same on every machine.
//!
//! A weight is `e^((logit - max) / temperature)`, computed as a power of two:
//! the exponent is split into a whole part, which is added to the float's
//! exponent field, and a fraction in `[-0.5, 0.5]`, for which a polynomial is
//! used. It is plain arithmetic without branches, so loops over it vectorise
//! for baseline x86-64, and no fused operations, so all machines agree.
//!
//! The polynomial of degree 5 interpolates `2^f` at Chebyshev nodes with its
//! value at 0 held at exactly 1; its relative error is below `2.1e-7`. Rounding
//! of the exponent adds at most `2^-24 * 47 * ln 2`, so a weight's relative
//! error is below `3e-6`, and below `4e-7` within one natural unit of the peak.

use std::f32::consts::LN_2;

/// Values processed side by side; a multiple of every vector width in use.
pub(super) const LANES: usize = 16;

/// Weights below `2^-LOWEST` are 0. The tokens left out hold together less than
/// `vocab * e^-32` of the likeliest token's probability, which is under f32's
/// resolution (`2^-24`) for vocabularies of up to four million tokens.
pub(super) const LOWEST: f32 = 46.166_24;

/// Adding this leaves no room for a fraction in a float's mantissa.
const ROUND: f32 = 12_582_912.0;

/// The weight of `logit`; 1 for `max` itself, 0 for NaN, negative infinity and
/// whatever is too unlikely. `scale` is `log2(e) / temperature`, finite.
#[inline(always)]
pub(super) fn weight(logit: f32, max: f32, scale: f32) -> f32 {
    let t = (logit - max) * scale;
    let rounded = t + ROUND;
    let f = t - (rounded - ROUND);
    // Estrin's scheme: shorter chains of operations than Horner's.
    let f2 = f * f;
    let low = 1.0 + f * LN_2;
    let middle = 0.240_223_5 + f * 0.055_503_81;
    let high = 0.009_666_368 + f * 0.001_338_130_2;
    let p = low + f2 * (middle + f2 * high);
    // The low bits of `rounded` are the whole part in two's complement.
    let scaled = p.to_bits().wrapping_add(rounded.to_bits() << 23);
    // A comparison with NaN is false, so NaN weighs nothing.
    let mask = if t >= -LOWEST { u32::MAX } else { 0 };
    f32::from_bits(scaled & mask)
}

/// The sum of the weights of `logits`, in lanes; for short slices.
pub(super) fn sum_weights(logits: &[f32], max: f32, scale: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += weight(logit, max, scale);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane += weight(logit, max, scale);
    }
    let half = std::array::from_fn::<f32, { LANES / 2 }, _>(|idx| lanes[idx] + lanes[idx + LANES / 2]);
    half.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_error_bound() {
        for idx in 0..400_000_u32 {
            let distance = -(idx as f32) * 8e-5;
            let exact = f64::from(distance).exp();
            let scale = std::f32::consts::LOG2_E;
            let error = (f64::from(weight(distance, 0.0, scale)) / exact - 1.0).abs();
            let bound = if distance > -1.0 { 4e-7 } else { 3e-6 };
            assert!(error < bound, "at {distance}: {error}");
        }
    }

    #[test]
    fn odd_values_weigh_nothing_and_the_peak_weighs_one() {
        for scale in [0.0, 1.0, 1.4e6, f32::MAX] {
            assert_eq!(weight(3.5, 3.5, scale), 1.0);
            assert_eq!(weight(f32::NAN, 3.5, scale), 0.0);
            assert_eq!(weight(f32::NEG_INFINITY, 3.5, scale), 0.0);
        }
        assert_eq!(weight(-40.0, 0.0, std::f32::consts::LOG2_E), 0.0);
        assert_eq!(weight(f32::MIN, f32::MAX, 1.0), 0.0);
    }
}
