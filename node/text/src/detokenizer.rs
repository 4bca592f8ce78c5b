//! Tokens to text as they are drawn, never cutting a character in two.

use crate::Tokenizer;
use quern_engine::TokenId;
use std::sync::Arc;

/// Turns one sequence's tokens into text, one by one.
///
/// The pieces put together are the text that [`Tokenizer::decode`] gives for
/// all tokens at once.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The beginning of a character whose end has not come yet: 3 bytes at most.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the beginning of a text; `skip_special` leaves control
    /// tokens out.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new() }
    }

    /// The text that is certain after one more token. Bytes that can no longer
    /// become a character come out as U+FFFD.
    pub fn push(&mut self, token: TokenId) -> String {
        if self.skip_special && self.tokenizer.is_special(token) {
            return String::new();
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(token));
        take_complete(&mut self.pending)
    }

    /// What is left at the end: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Takes all but an unfinished last character out of `pending`.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            break;
        }
        let is_last = taken + invalid.len() == pending.len();
        if is_last && may_become_a_character(invalid) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    pending.drain(..taken);
    text
}

fn may_become_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::take_complete;
    use proptest::prelude::*;

    fn feed(pieces: &[Vec<u8>]) -> String {
        let (mut pending, mut text) = (Vec::new(), String::new());
        for piece in pieces {
            pending.extend_from_slice(piece);
            text += &take_complete(&mut pending);
            assert!(pending.len() < 4);
        }
        text + &String::from_utf8_lossy(&pending)
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut pending = b"a\xF0\x9F\x98".to_vec();
        assert_eq!(take_complete(&mut pending), "a");
        pending.push(0x80);
        assert_eq!(take_complete(&mut pending), "😀");
        pending.extend_from_slice(b"\xF0\x9Fx");
        assert_eq!(take_complete(&mut pending), "\u{FFFD}x");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_lossy_text(
            pieces in prop::collection::vec(
                prop::collection::vec(prop_oneof![any::<u8>(), 0x80..=0xBFu8, 0xE0..=0xF5u8], 0..5),
                0..40,
            )
        ) {
            let whole: Vec<u8> = pieces.concat();
            prop_assert_eq!(feed(&pieces), String::from_utf8_lossy(&whole));
        }
    }
}
