//! Which model a request names, where a workload spreads its requests over several: adapters of one base, most
//! of the time.
//!
//! The choice depends on the run's seed and the prompt's number alone, so that every server is asked the same.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// The table `[models]` of a workload.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelMix {
    /// The models, the most wanted first. `{n}` in a name stands for the numbers below `count`.
    names: Vec<String>,
    /// How many models each name with `{n}` stands for.
    #[serde(default = "one")]
    count: usize,
    /// The exponent of Zipf's law: the k-th model is asked 1/k^zipf times as often as the first; 0 asks all alike.
    #[serde(default)]
    zipf: f64,
}

fn one() -> usize {
    1
}

impl ModelMix {
    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// The key at fault, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.names.is_empty() || self.names.iter().any(String::is_empty) {
            return Err(("names", "must name at least one model".to_owned()));
        }
        if !(1..=100_000).contains(&self.count) {
            return Err(("count", "must lie between 1 and 100000".to_owned()));
        }
        if !(0.0..=10.0).contains(&self.zipf) {
            return Err(("zipf", "must lie between 0 and 10".to_owned()));
        }
        Ok(())
    }

    /// All models in their order.
    pub fn all(&self) -> Vec<String> {
        let of = |name: &String| -> Vec<String> {
            match name.contains("{n}") {
                true => (0..self.count).map(|n| name.replace("{n}", &n.to_string())).collect(),
                false => vec![name.clone()],
            }
        };
        self.names.iter().flat_map(of).collect()
    }

    /// The model of a prompt.
    pub fn of(&self, seed: u64, prompt_idx: u64) -> String {
        let mut all = self.all();
        // A stream of its own: the prompts' choices stay what they are.
        let mut random = ChaCha8Rng::seed_from_u64(seed.rotate_left(17));
        random.set_stream(prompt_idx);
        all.swap_remove(draw_by_zipf(all.len(), self.zipf, random.random()))
    }
}

/// A place below `count`, which is above 0, by Zipf's law: the k-th is as likely as the first, over k^zipf.
/// `chance` is drawn evenly from 0 to 1.
pub(crate) fn draw_by_zipf(count: usize, zipf: f64, chance: f64) -> usize {
    let weight = |place: usize| ((place + 1) as f64).powf(-zipf);
    let mut left = chance * (0..count).map(weight).sum::<f64>();
    let place = (0..count).find(|place| {
        left -= weight(*place);
        left < 0.0
    });
    // Sums of many small numbers may fall short by a rounding.
    place.unwrap_or(count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(names: &[&str], count: usize, zipf: f64) -> ModelMix {
        ModelMix { names: names.iter().map(|&name| name.to_owned()).collect(), count, zipf }
    }

    fn shares(mix: &ModelMix, num_prompts: u64) -> Vec<f64> {
        let all = mix.all();
        let mut counts = vec![0u32; all.len()];
        for prompt_idx in 0..num_prompts {
            let model = mix.of(5, prompt_idx);
            counts[all.iter().position(|other| *other == model).unwrap()] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / num_prompts as f64).collect()
    }

    #[test]
    fn names_with_a_number_stand_for_many() {
        assert_eq!(mix(&["base", "a-{n}"], 3, 0.0).all(), ["base", "a-0", "a-1", "a-2"]);
    }

    #[test]
    fn models_are_asked_as_often_as_zipfs_law_says() {
        let shares = shares(&mix(&["m{n}"], 4, 1.0), 20_000);
        let total = 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0;
        for (place, share) in shares.iter().enumerate() {
            let expected = 1.0 / (place + 1) as f64 / total;
            assert!((share - expected).abs() < 0.02, "model {place}: {share} for {expected}");
        }
    }

    #[test]
    fn without_an_exponent_all_are_asked_alike_and_a_seed_repeats() {
        let even = mix(&["m{n}"], 5, 0.0);
        assert!(shares(&even, 10_000).iter().all(|share| (share - 0.2).abs() < 0.03));
        let choices = |seed| (0..50).map(|idx| even.of(seed, idx)).collect::<Vec<_>>();
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, key) in
            [(mix(&[], 1, 0.0), "names"), (mix(&["a"], 0, 0.0), "count"), (mix(&["a"], 1, -1.0), "zipf")]
        {
            assert_eq!(bad.validate().unwrap_err().0, key);
        }
        assert!(mix(&["a"], 1, f64::NAN).validate().is_err());
    }
}
