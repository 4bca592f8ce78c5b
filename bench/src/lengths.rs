//! Lengths drawn from a distribution: words of a prompt, tokens of an answer.
//!
//! A length depends on the run's seed and the prompt's number alone, so that every server is asked the same.

use rand::distr::weighted::WeightedIndex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, LogNormal, Normal};
use serde::Deserialize;

/// Longest length of a distribution without an end, unless the workload says another.
const DEFAULT_MAX: u32 = 100_000;

/// How lengths are spread. Reading one checks it: a length is at least 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawLengths")]
pub struct Lengths {
    spread: Spread,
    min: u32,
    max: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum Spread {
    Uniform,
    Normal(Normal<f64>),
    LogNormal(LogNormal<f64>),
    Histogram(Vec<u32>, WeightedIndex<f64>),
}

/// As a workload writes it.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number, [shortest, longest], or a table with one of uniform = [shortest, longest], \
                 normal = [mean, deviation], lognormal = [median, sigma] and histogram = [[length, weight], …], \
                 and with min and max if need be"
)]
enum RawLengths {
    Constant(u32),
    Range([u32; 2]),
    Table(RawTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    uniform: Option<[u32; 2]>,
    normal: Option<[f64; 2]>,
    lognormal: Option<[f64; 2]>,
    histogram: Option<Vec<(u32, f64)>>,
    min: Option<u32>,
    max: Option<u32>,
}

impl TryFrom<RawLengths> for Lengths {
    type Error = String;

    fn try_from(raw: RawLengths) -> Result<Self, String> {
        match raw {
            RawLengths::Constant(length) => Self::uniform(length, length),
            RawLengths::Range([min, max]) => Self::uniform(min, max),
            RawLengths::Table(table) => table.resolve(),
        }
    }
}

impl RawTable {
    fn resolve(self) -> Result<Lengths, String> {
        let (min, max) = (self.min.unwrap_or(1), self.max.unwrap_or(DEFAULT_MAX));
        if min == 0 || max < min {
            return Err("min must be at least 1, and max at least min".to_owned());
        }
        let spread = match (self.uniform, self.normal, self.lognormal, self.histogram) {
            (Some([min, max]), None, None, None) => return Lengths::uniform(min, max),
            (None, Some([mean, deviation]), None, None) if deviation >= 0.0 => {
                Spread::Normal(Normal::new(mean, deviation).map_err(|error| error.to_string())?)
            }
            (None, None, Some([median, sigma]), None) if median > 0.0 && sigma >= 0.0 => {
                Spread::LogNormal(LogNormal::new(median.ln(), sigma).map_err(|error| error.to_string())?)
            }
            (None, None, None, Some(bars)) if bars.iter().all(|(length, _)| *length > 0) => {
                let weights = WeightedIndex::new(bars.iter().map(|(_, weight)| *weight));
                let weights = weights.map_err(|error| format!("the histogram's weights: {error}"))?;
                Spread::Histogram(bars.into_iter().map(|(length, _)| length).collect(), weights)
            }
            _ => {
                return Err(
                    "give exactly one of uniform, normal, lognormal and histogram; deviations must not \
                            be negative, medians and lengths must be above 0"
                        .to_owned(),
                );
            }
        };
        Ok(Lengths { spread, min, max })
    }
}

impl Lengths {
    /// Equal chances for every length from `min` to `max`.
    ///
    /// # Errors
    /// When `min` is 0 or above `max`.
    pub fn uniform(min: u32, max: u32) -> Result<Self, String> {
        match min == 0 || max < min {
            true => Err("must be at least 1, and the longest at least the shortest".to_owned()),
            false => Ok(Self { spread: Spread::Uniform, min, max }),
        }
    }

    /// The length of a prompt or of its answer. Lengths beyond `min` and `max` become these.
    pub fn of(&self, seed: u64, prompt_idx: u64) -> u32 {
        if self.min == self.max {
            return self.min;
        }
        // A stream of its own: the prompts' other choices stay what they are.
        let mut random = ChaCha8Rng::seed_from_u64(seed.rotate_left(31));
        random.set_stream(prompt_idx);
        let drawn = match &self.spread {
            Spread::Uniform => return random.random_range(self.min..=self.max),
            Spread::Normal(normal) => normal.sample(&mut random),
            Spread::LogNormal(lognormal) => lognormal.sample(&mut random),
            Spread::Histogram(lengths, weights) => f64::from(lengths[weights.sample(&mut random)]),
        };
        // The cast keeps what is out of range at its ends.
        (drawn.round() as u32).clamp(self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Line {
        length: Lengths,
    }

    fn read(value: &str) -> Result<Lengths, String> {
        let line = toml::from_str::<Line>(&format!("length = {value}"));
        line.map(|line| line.length).map_err(|error| error.to_string())
    }

    fn draw(value: &str) -> Vec<f64> {
        let lengths = read(value).unwrap();
        (0..20_000).map(|idx| f64::from(lengths.of(7, idx))).collect()
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= expected * 0.03
    }

    #[test]
    fn each_distribution_has_its_mean_and_its_width() {
        assert!(draw("64").iter().all(|length| *length == 64.0));
        let uniform = draw("[10, 30]");
        assert!(uniform.iter().all(|length| (10.0..=30.0).contains(length)) && is_near(mean(&uniform), 20.0));
        let normal = draw("{ normal = [200, 20] }");
        let centre = mean(&normal);
        let deviation = mean(&normal.iter().map(|x| (x - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        assert!(is_near(centre, 200.0) && is_near(deviation, 20.0), "{centre} ± {deviation}");
        let mut lognormal = draw("{ lognormal = [100, 0.5] }");
        assert!(is_near(mean(&lognormal), 100.0 * 0.125f64.exp()), "{}", mean(&lognormal));
        lognormal.sort_by(f64::total_cmp);
        assert!(is_near(lognormal[10_000], 100.0));
        let histogram = draw("{ histogram = [[16, 3], [512, 1.0]] }");
        let short = histogram.iter().filter(|length| **length == 16.0).count();
        assert!(is_near(short as f64, 15_000.0));
        assert!(histogram.iter().all(|length| [16.0, 512.0].contains(length)));
    }

    #[test]
    fn lengths_stay_inside_their_bounds_and_repeat_by_seed() {
        let bounded = draw("{ normal = [5, 100], min = 3, max = 50 }");
        assert!(bounded.contains(&3.0) && bounded.contains(&50.0));
        assert!(bounded.iter().all(|length| (3.0..=50.0).contains(length)));
        let lengths = read("[1, 1000]").unwrap();
        let of_seed = |seed| (0..20).map(|idx| lengths.of(seed, idx)).collect::<Vec<_>>();
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1), of_seed(2));
    }

    #[test]
    fn mistakes_are_told_with_what_would_do() {
        for bad in ["0", "[5, 4]", "{ normal = [5, -1] }", "{ lognormal = [0, 1] }", "{ uniform = [0, 4] }"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let both = read("{ normal = [5, 1], uniform = [1, 2] }").unwrap_err();
        assert!(both.contains("exactly one of"), "{both}");
        let empty = read("{ histogram = [] }").unwrap_err();
        assert!(empty.contains("histogram"), "{empty}");
        let unknown = read("{ pareto = 3 }").unwrap_err();
        assert!(unknown.contains("line 1") && unknown.contains("lognormal = [median, sigma]"), "{unknown}");
    }
}
