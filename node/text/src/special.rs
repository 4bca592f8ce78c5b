//! Finds special tokens that are written out in a text.
//!
//! The order is llama.cpp's: the longest token first, and each takes all its
//! occurrences, from the left, in what the tokens before it left over.

use quern_engine::TokenId;

/// A piece of a text, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    /// Ordinary text.
    Text(&'a str),
    /// A special token that was written out.
    Token(TokenId),
}

/// One special token.
#[derive(Debug, Clone)]
pub(crate) struct SpecialToken {
    pub(crate) id: TokenId,
    pub(crate) text: String,
    /// Whether it is only ever a token when control tokens are asked for.
    pub(crate) control: bool,
}

/// All special tokens of a vocabulary.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    /// The longest first.
    tokens: Vec<SpecialToken>,
    /// For each first byte, which tokens begin with it.
    by_first_byte: Vec<Vec<u32>>,
}

impl SpecialTokens {
    pub(crate) fn new(mut tokens: Vec<SpecialToken>) -> Self {
        tokens.retain(|token| !token.text.is_empty());
        tokens.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        let mut by_first_byte = vec![Vec::new(); 256];
        for (idx, token) in tokens.iter().enumerate() {
            by_first_byte[usize::from(token.text.as_bytes()[0])].push(idx as u32);
        }
        Self { tokens, by_first_byte }
    }

    /// The texts of all control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|token| token.control).map(|token| token.text.as_str())
    }

    /// Splits `text` at its special tokens; control tokens count only with
    /// `parse_control`.
    pub(crate) fn partition<'a>(&self, text: &'a str, parse_control: bool) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        for idx in self.present(text) {
            let token = &self.tokens[idx];
            if parse_control || !token.control {
                fragments = split_at(&fragments, token);
            }
        }
        fragments
    }

    /// Which tokens occur in `text` at all, the longest first: nearly always
    /// none or few, so that the passes over the fragments are few.
    fn present(&self, text: &str) -> Vec<usize> {
        let bytes = text.as_bytes();
        let mut found = vec![false; self.tokens.len()];
        for (at, byte) in bytes.iter().enumerate() {
            for &idx in &self.by_first_byte[usize::from(*byte)] {
                let idx = idx as usize;
                if !found[idx] && bytes[at..].starts_with(self.tokens[idx].text.as_bytes()) {
                    found[idx] = true;
                }
            }
        }
        (0..found.len()).filter(|idx| found[*idx]).collect()
    }
}

fn split_at<'a>(fragments: &[Fragment<'a>], token: &SpecialToken) -> Vec<Fragment<'a>> {
    let mut out = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(mut rest) = *fragment else {
            out.push(*fragment);
            continue;
        };
        while let Some(at) = rest.find(&token.text) {
            if at > 0 {
                out.push(Fragment::Text(&rest[..at]));
            }
            out.push(Fragment::Token(token.id));
            rest = &rest[at + token.text.len()..];
        }
        if !rest.is_empty() {
            out.push(Fragment::Text(rest));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> SpecialTokens {
        let token = |id, text: &str, control| SpecialToken { id, text: text.to_owned(), control };
        SpecialTokens::new(vec![token(1, "<a>", true), token(2, "<a><b>", false), token(3, "<b>", false)])
    }

    #[test]
    fn the_longest_token_goes_first() {
        use Fragment::{Text, Token};
        let got = tokens().partition("x<a><b>y<a><b", true);
        assert_eq!(got, [Text("x"), Token(2), Text("y"), Token(1), Text("<b")]);
    }

    #[test]
    fn control_tokens_stay_text_unless_asked_for() {
        use Fragment::{Text, Token};
        let got = tokens().partition("<a> <b>", false);
        assert_eq!(got, [Text("<a> "), Token(3)]);
        assert_eq!(tokens().partition("", true), []);
    }
}
