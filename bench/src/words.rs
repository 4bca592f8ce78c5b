//! The words of a text, to cut slices from.

use rand::Rng;

/// A text's words in their order; at least one.
#[derive(Debug)]
pub(crate) struct Words(Vec<String>);

impl Words {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.split_whitespace().map(str::to_owned).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many words from a random place. A slice longer than the text goes on at the text's beginning.
    pub(crate) fn slice(&self, num_words: usize, random: &mut impl Rng) -> String {
        let all = &self.0;
        let last_start = all.len().checked_sub(num_words).unwrap_or(all.len() - 1);
        let start = random.random_range(0..=last_start);
        let words: Vec<&str> =
            (start..start + num_words).map(|place| all[place % all.len()].as_str()).collect();
        words.join(" ")
    }
}
