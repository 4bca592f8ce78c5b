//! Finds stop strings in text that comes in pieces.
//!
//! Each stop string is followed by an automaton of Knuth, Morris and Pratt over
//! bytes: its state is how much of the string the text so far ends with. The
//! longest state is what must be held back. The match that ends first wins, and
//! of those the one that begins first, so the result does not depend on how the
//! text was cut.

use std::sync::Arc;

/// The stop strings of a request, prepared once for all of its choices.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

#[derive(Debug)]
struct Pattern {
    /// The string's place in the request.
    idx: usize,
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper border of the first `n + 1` bytes.
    fallback: Vec<usize>,
}

/// What a piece of text brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStep {
    /// Text that is certain not to belong to a stop string.
    pub text: String,
    /// The stop string that was found, by its place in the request. The text
    /// before it has been given out; nothing more will be.
    pub matched: Option<usize>,
}

impl StopStrings {
    /// Prepares stop strings; empty ones are never found.
    pub fn new(strings: Vec<String>) -> Self {
        let patterns = strings.into_iter().enumerate();
        let patterns = patterns.filter(|(_, string)| !string.is_empty());
        Self { patterns: patterns.map(|(idx, string)| Pattern::new(idx, string)).collect() }
    }

    /// A matcher at the beginning of a text.
    pub fn matcher(&self) -> StopMatcher {
        StopMatcher {
            states: vec![0; self.patterns.len()],
            patterns: Arc::clone(&self.patterns),
            held: String::new(),
            matched: None,
        }
    }
}

impl Pattern {
    fn new(idx: usize, string: String) -> Self {
        let bytes = string.into_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut border = 0;
        for at in 1..bytes.len() {
            while border > 0 && bytes[at] != bytes[border] {
                border = fallback[border - 1];
            }
            border += usize::from(bytes[at] == bytes[border]);
            fallback[at] = border;
        }
        Self { idx, bytes, fallback }
    }

    /// How much of the string the text ends with after one more byte, given
    /// that it ended with `state` bytes of it, fewer than all.
    fn advance(&self, mut state: usize, byte: u8) -> usize {
        while state > 0 && self.bytes[state] != byte {
            state = self.fallback[state - 1];
        }
        state + usize::from(self.bytes[state] == byte)
    }
}

/// Looks for stop strings in one text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Arc<[Pattern]>,
    states: Vec<usize>,
    /// Text that may be the beginning of a stop string.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// Takes the next piece of text and gives out what is certain.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.matched.is_some() {
            return StopStep { text: String::new(), matched: self.matched };
        }
        let held_before = self.held.len();
        self.held.push_str(piece);
        for at in held_before..self.held.len() {
            if let Some((idx, len)) = self.advance(self.held.as_bytes()[at]) {
                self.matched = Some(idx);
                self.held.truncate(at + 1 - len);
                return StopStep { text: std::mem::take(&mut self.held), matched: self.matched };
            }
        }
        let hold = self.states.iter().copied().max().unwrap_or(0);
        // A stop string begins with a whole character, so this is a border of one.
        let rest = self.held.split_off(self.held.len() - hold);
        StopStep { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        self.states.fill(0);
        std::mem::take(&mut self.held)
    }

    /// Moves every automaton; gives the string that is complete now, if any,
    /// and its length. The longest began first.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for (pattern, state) in self.patterns.iter().zip(&mut self.states) {
            *state = pattern.advance(*state, byte);
            if *state == pattern.bytes.len() && found.is_none_or(|(_, len)| *state > len) {
                found = Some((pattern.idx, *state));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[String], pieces: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopStrings::new(stops.to_vec()).matcher();
        let mut text = String::new();
        for piece in pieces {
            let step = matcher.push(piece);
            text += &step.text;
            if step.matched.is_some() {
                return (text, step.matched);
            }
        }
        (text + &matcher.finish(), None)
    }

    /// The definition: the match that ends first, and of those the longest.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in text.char_indices().map(|(at, c)| at + c.len_utf8()) {
            let complete = stops.iter().enumerate();
            let complete = complete.filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(*stop));
            let found = complete.min_by_key(|(idx, stop)| (usize::MAX - stop.len(), *idx));
            if let Some((idx, stop)) = found {
                return (text[..end - stop.len()].to_owned(), Some(idx));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn a_possible_beginning_is_held_back() {
        let mut matcher = StopStrings::new(vec!["END".into()]).matcher();
        assert_eq!(matcher.push("the E").text, "the ");
        assert_eq!(matcher.push("N").text, "");
        assert_eq!(matcher.push("x").text, "ENx");
        let step = matcher.push("EEND of");
        assert_eq!((step.text.as_str(), step.matched), ("E", Some(0)));
        assert_eq!(matcher.push("more").text, "");
    }

    proptest! {
        #[test]
        fn it_finds_what_a_naive_search_finds(
            stops in prop::collection::vec("[abé]{0,5}", 0..4),
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        ) {
            prop_assert_eq!(run(&stops, &pieces), naive(&stops, &pieces.concat()));
        }

        #[test]
        fn only_a_prefix_of_a_stop_string_is_ever_held(
            stops in prop::collection::vec("[ab]{1,6}", 1..4),
            pieces in prop::collection::vec("[ab]{0,4}", 0..12),
        ) {
            let mut matcher = StopStrings::new(stops.clone()).matcher();
            for piece in &pieces {
                if matcher.push(piece).matched.is_some() {
                    break;
                }
                prop_assert!(stops.iter().any(|stop| stop.starts_with(&matcher.held)));
            }
        }
    }
}
