//! Shared prefixes: long beginnings that many prompts have in common, as documents, tools or few-shot examples are.
//!
//! Which prefix a prompt has depends on the run's seed and the prompt's number alone; the prefixes themselves
//! depend on the seed, so that no cache knows them from an earlier run.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::mix::draw_by_zipf;
use crate::words::Words;

/// The table `shared` of a workload's prompts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefixes {
    /// How many different prefixes there are.
    pub count: usize,
    /// How long each is, in words of the text.
    pub words: usize,
    /// The text file they are cut from; the prompts' own if not given.
    pub text: Option<String>,
    /// The exponent of Zipf's law: the k-th prefix is used 1/k^zipf times as often as the first; 0 uses all alike.
    #[serde(default)]
    pub zipf: f64,
}

impl SharedPrefixes {
    /// Says which key is wrong, and why.
    pub(crate) fn validate(&self, has_own_text: bool) -> Result<(), (&'static str, String)> {
        if !(1..=100_000).contains(&self.count) {
            return Err(("count", "must lie between 1 and 100000".to_owned()));
        }
        if !(1..=1_000_000).contains(&self.words) {
            return Err(("words", "must lie between 1 and 1000000".to_owned()));
        }
        if !(0.0..=10.0).contains(&self.zipf) {
            return Err(("zipf", "must lie between 0 and 10".to_owned()));
        }
        match has_own_text || self.text.is_some() {
            true => Ok(()),
            false => Err(("text", "name a text file to cut the prefixes from".to_owned())),
        }
    }

    /// The prefix of a prompt.
    pub(crate) fn of(&self, words: &Words, seed: u64, prompt_idx: u64) -> String {
        // Streams of their own: the prompts' other choices stay what they are.
        let mut random = ChaCha8Rng::seed_from_u64(seed.rotate_left(7));
        random.set_stream(prompt_idx);
        let place = draw_by_zipf(self.count, self.zipf, random.random());
        let mut random = ChaCha8Rng::seed_from_u64(seed.rotate_left(11));
        random.set_stream(place as u64);
        // Numbers first, so that two prefixes part at their first token.
        format!("{:06} {} ", random.random_range(0..1_000_000), words.slice(self.words, &mut random))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn prompts_share_as_many_prefixes_as_asked_for() {
        let shared = SharedPrefixes { count: 4, words: 30, text: None, zipf: 1.0 };
        let text: Vec<String> = (0..100).map(|word| format!("w{word}")).collect();
        let words = Words::new(&text.join(" "));
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for idx in 0..4000 {
            let prefix = shared.of(&words, 3, idx);
            assert_eq!(prefix.split_whitespace().count(), 31);
            *counts.entry(prefix).or_default() += 1;
        }
        assert_eq!(counts.len(), 4);
        let beginnings: std::collections::BTreeSet<&str> = counts.keys().map(|prefix| &prefix[..6]).collect();
        assert_eq!(beginnings.len(), 4);
        // By Zipf's law the first of four is used 12/25 of the time.
        let most = *counts.values().max().unwrap();
        assert!((1820..2020).contains(&most), "{most}");
        assert!(!counts.contains_key(&shared.of(&words, 4, 0)), "another run has other prefixes");
    }

    #[test]
    fn mistakes_name_their_key() {
        let good = SharedPrefixes { count: 1, words: 1, text: None, zipf: 0.0 };
        assert_eq!(good.validate(true), Ok(()));
        let key_of = |bad: SharedPrefixes| bad.validate(true).unwrap_err().0;
        assert_eq!(good.validate(false).unwrap_err().0, "text");
        assert_eq!(key_of(SharedPrefixes { count: 0, ..good.clone() }), "count");
        assert_eq!(key_of(SharedPrefixes { words: 0, ..good.clone() }), "words");
        assert_eq!(key_of(SharedPrefixes { zipf: -1.0, ..good }), "zipf");
    }
}
