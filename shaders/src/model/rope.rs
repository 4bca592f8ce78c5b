//! Rotary positions: the angle of each pair of dimensions at each position, as the file says.

use std::f64::consts::PI;

use quern_gguf::Gguf;

use super::ModelError;

/// How positions become angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub base: f32,
    /// What a longer context than the trained one does to them.
    pub scaling: Scaling,
}

/// How frequencies are changed for contexts longer than the trained one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Positions are divided by the factor.
    Linear {
        /// By how much.
        factor: f32,
    },
    /// YaRN: low frequencies are divided, high ones stay, and values grow a little.
    /// See <https://arxiv.org/abs/2309.00071>.
    Yarn {
        /// By how much low frequencies are divided.
        factor: f32,
        /// The length before it was stretched, in tokens.
        original_len: u32,
    },
}

/// Turns within the original length from which a frequency counts as high, and below which as low.
const YARN_TURNS: [f64; 2] = [32.0, 1.0];

impl Rope {
    pub(super) fn read(gguf: &Gguf, arch: &str, trained_len: u32) -> Result<Rope, ModelError> {
        let key = |name: &str| format!("{arch}.rope.{name}");
        let has = |name: &str| gguf.get(&key(name)).is_some();
        let base = if has("freq_base") { gguf.f32(&key("freq_base"))? } else { 10_000.0 };
        let kind = if has("scaling.type") { gguf.str(&key("scaling.type"))? } else { "none" };
        let factor = || gguf.f32(&key("scaling.factor"));
        let scaling = match kind {
            "none" => Scaling::None,
            "linear" => Scaling::Linear { factor: factor()? },
            "yarn" => {
                let at = "scaling.original_context_length";
                let original_len = if has(at) { gguf.u32(&key(at))? } else { trained_len };
                Scaling::Yarn { factor: factor()?, original_len }
            }
            other => return Err(ModelError::RopeScaling { found: other.to_owned() }),
        };
        Ok(Rope { base, scaling })
    }

    /// Cosine and sine of each pair at each position: `[positions, dim / 2, 2]`.
    ///
    /// Computed here and not on the device, whose sines are only good for small angles.
    #[must_use]
    pub fn turns(&self, dim: u32, positions: u32) -> Vec<[f32; 2]> {
        let frequencies: Vec<f64> = (0..dim / 2).map(|pair| self.frequency(dim, pair)).collect();
        let size = match self.scaling {
            Scaling::Yarn { factor, .. } => 1.0 + 0.1 * f64::from(factor).ln(),
            _ => 1.0,
        };
        let turn = |position: u32| {
            let angles = frequencies.iter().map(move |frequency| f64::from(position) * frequency);
            angles.map(move |angle| [(size * angle.cos()) as f32, (size * angle.sin()) as f32])
        };
        (0..positions).flat_map(turn).collect()
    }

    /// The angle that one position turns a pair by.
    fn frequency(&self, dim: u32, pair: u32) -> f64 {
        let base = f64::from(self.base);
        let frequency = base.powf(-2.0 * f64::from(pair) / f64::from(dim));
        match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / f64::from(factor),
            Scaling::Yarn { factor, original_len } => {
                // The pair that turns so many times within the original length.
                let pair_of = |turns: f64| {
                    f64::from(dim) * (f64::from(original_len) / (turns * 2.0 * PI)).ln() / (2.0 * base.ln())
                };
                let [high, low] = YARN_TURNS.map(pair_of);
                let (high, low) = (high.floor().max(0.0), low.ceil().min(f64::from(dim - 1)));
                let part = ((f64::from(pair) - high) / (low - high).max(0.001)).clamp(0.0, 1.0);
                frequency * (1.0 - part) + frequency / f64::from(factor) * part
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scaling: Scaling, position: u32, pair: usize, angle: f64, size: f64) {
        let turns = Rope { base: 10_000.0, scaling }.turns(64, position + 1);
        let [cos, sin] = turns[position as usize * 32 + pair].map(f64::from);
        assert!((cos - size * angle.cos()).abs() < 1e-6, "{cos} {}", size * angle.cos());
        assert!((sin - size * angle.sin()).abs() < 1e-6, "{sin} {}", size * angle.sin());
    }

    #[test]
    fn angles_grow_with_positions_and_shrink_with_pairs() {
        check(Scaling::None, 0, 7, 0.0, 1.0);
        check(Scaling::None, 3, 0, 3.0, 1.0);
        check(Scaling::None, 1000, 8, 1000.0 / 10.0, 1.0);
        check(Scaling::Linear { factor: 4.0 }, 1000, 8, 25.0, 1.0);
    }

    #[test]
    fn yarn_keeps_high_frequencies_and_divides_low_ones() {
        let yarn = Scaling::Yarn { factor: 4.0, original_len: 32_768 };
        let size = 1.0 + 0.1 * 4f64.ln();
        check(yarn, 5, 0, 5.0, size);
        check(yarn, 40_000, 31, 40_000.0 * 10_000f64.powf(-62.0 / 64.0) / 4.0, size);
    }
}
