//! Splits text into the words within which byte pairs are merged.
//!
//! Each pre-tokenizer is published as a regular expression with a look-ahead.
//! They are written out by hand here: a backtracking regex engine gives up on
//! long inputs (and the tokenizer library then stops splitting without a word),
//! while these loops are total, linear and several times faster. Where the
//! published expression and llama.cpp differ, llama.cpp is followed: a model
//! must see the same tokens here as in the engine that it was converted for.

use crate::classes::{self, LETTER, MARK, NUMBER, SPACE};

/// How text is split into words, by the family of models that does it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2: words and numbers with an optional space before them.
    Gpt2,
    /// Llama 3: numbers in groups of up to three digits.
    Llama3,
    /// Qwen2, 2.5 and 3: every digit alone.
    Qwen2,
    /// Qwen3.5: as Qwen2, with combining marks counted as letters.
    Qwen35,
}

impl PreTokenizer {
    /// The pre-tokenizer that a GGUF names in `tokenizer.ggml.pre`; `None` for
    /// a name that is not known here.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "mellum" => Self::Gpt2,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "qwen35" => Self::Qwen35,
            _ => return None,
        })
    }

    /// Whether a word that is itself a token is taken whole, without merging.
    pub(crate) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// Whether a text begins with the model's first token unless the file says
    /// otherwise.
    pub(crate) fn adds_bos(self) -> bool {
        self == Self::Llama3
    }

    /// Calls `each` with every word of `text`, in order. The words put together
    /// are the text.
    pub fn split<'a>(self, text: &'a str, mut each: impl FnMut(&'a str)) {
        let mut rest = text;
        while !rest.is_empty() {
            let (word, after) = rest.split_at(self.word_len(rest));
            each(word);
            rest = after;
        }
    }

    /// Length in bytes of the first word of `rest`, which is not empty.
    fn word_len(self, rest: &str) -> usize {
        let c = char_at(rest, 0).expect("the text is not empty");
        if c == '\''
            && let Some(len) = contraction(rest, self != Self::Gpt2)
        {
            return len;
        }
        if self == Self::Gpt2 {
            return gpt2_word(rest, c).unwrap_or_else(|| white_space(rest, false));
        }
        self.word_or_number(rest, c)
            .or_else(|| self.punctuation(rest, c))
            .unwrap_or_else(|| white_space(rest, true))
    }

    /// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}` (`\p{N}{1,3}` for Llama 3).
    fn word_or_number(self, rest: &str, c: char) -> Option<usize> {
        let class = classes::of(c);
        if class & NUMBER != 0 {
            let digits = if self == Self::Llama3 { 3 } else { 1 };
            let in_group = |c: &char| classes::of(*c) & NUMBER != 0;
            return Some(rest.chars().take(digits).take_while(in_group).map(char::len_utf8).sum());
        }
        let letters = self.letters();
        let after_first = c.len_utf8();
        let starts_word = class & letters != 0 || class_at(rest, after_first) & letters != 0;
        (c != '\r' && c != '\n' && starts_word)
            .then(|| run_end(rest, after_first, |c| classes::of(c) & letters != 0))
    }

    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*`.
    fn punctuation(self, rest: &str, c: char) -> Option<usize> {
        let word = SPACE | NUMBER | self.letters();
        let start = usize::from(c == ' ');
        let first = char_at(rest, start)?;
        if classes::of(first) & word != 0 {
            return None;
        }
        let end = run_end(rest, start, |c| classes::of(c) & word == 0);
        Some(run_end(rest, end, |c| c == '\r' || c == '\n'))
    }

    /// What counts as a letter.
    fn letters(self) -> u8 {
        if self == Self::Qwen35 { LETTER | MARK } else { LETTER }
    }
}

/// ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+`.
fn gpt2_word(rest: &str, c: char) -> Option<usize> {
    let start = usize::from(c == ' ');
    let first = classes::of(char_at(rest, start)?);
    if first & SPACE != 0 {
        return None;
    }
    let kind = first & (LETTER | NUMBER);
    let same = |c| classes::of(c) & (LETTER | NUMBER | SPACE) == kind;
    Some(run_end(rest, start, same))
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, in ASCII capitals too if `any_case`.
fn contraction(rest: &str, any_case: bool) -> Option<usize> {
    let lower = |idx: usize| {
        let byte = rest.as_bytes().get(idx).copied()?;
        Some(if any_case { byte.to_ascii_lowercase() } else { byte })
    };
    match (lower(1)?, lower(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        _ => None,
    }
}

/// `\s*[\r\n]+` if `ends_lines`, then `\s+(?!\S)|\s+`. A text that begins with
/// no white space gives its first character.
fn white_space(rest: &str, ends_lines: bool) -> usize {
    let (mut end, mut last_start, mut line_end, mut count) = (0, 0, 0, 0);
    while let Some(c) = char_at(rest, end).filter(|c| classes::of(*c) & SPACE != 0) {
        last_start = end;
        end += c.len_utf8();
        count += 1;
        if c == '\r' || c == '\n' {
            line_end = end;
        }
    }
    if ends_lines && line_end > 0 {
        line_end
    } else if count > 1 && end < rest.len() {
        // The last space belongs to the word that follows.
        last_start
    } else if count > 0 {
        end
    } else {
        char_at(rest, 0).map_or(0, char::len_utf8)
    }
}

/// The end of the run of characters from byte `start` on that satisfy `belongs`.
fn run_end(rest: &str, start: usize, belongs: impl Fn(char) -> bool) -> usize {
    let run = &rest[start..];
    start + run.find(|c| !belongs(c)).unwrap_or(run.len())
}

fn char_at(rest: &str, at: usize) -> Option<char> {
    rest[at..].chars().next()
}

fn class_at(rest: &str, at: usize) -> u8 {
    char_at(rest, at).map_or(0, classes::of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pre: PreTokenizer, text: &str, words: &[&str]) {
        let mut got = Vec::new();
        pre.split(text, |word| got.push(word));
        assert_eq!(got, words, "{pre:?} on {text:?}");
    }

    #[test]
    fn qwen2_splits_words_numbers_and_space() {
        use PreTokenizer::Qwen2;
        check(Qwen2, "Hello world", &["Hello", " world"]);
        check(Qwen2, "I'LL don't", &["I", "'LL", " don", "'t"]);
        check(Qwen2, "x=12;\r\n\ty", &["x", "=", "1", "2", ";\r\n", "\ty"]);
        check(Qwen2, "a   b", &["a", "  ", " b"]);
        check(Qwen2, "a \n \n  b", &["a", " \n \n", " ", " b"]);
        check(Qwen2, "end  ", &["end", "  "]);
        check(Qwen2, " ", &[" "]);
        check(Qwen2, "'", &["'"]);
        check(Qwen2, "e\u{301}x", &["e", "\u{301}x"]);
    }

    #[test]
    fn the_others_differ_where_they_should() {
        check(PreTokenizer::Qwen35, "e\u{301}x", &["e\u{301}x"]);
        check(PreTokenizer::Llama3, "12345", &["123", "45"]);
        check(PreTokenizer::Gpt2, "it's 123\n\n x", &["it", "'s", " 123", "\n\n", " x"]);
        check(PreTokenizer::Gpt2, "I'S", &["I", "'", "S"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "\\PC*|[ \\t\\r\\n'a-zA-Z0-9é\u{301}]*") {
            for pre in [
                PreTokenizer::Gpt2,
                PreTokenizer::Llama3,
                PreTokenizer::Qwen2,
                PreTokenizer::Qwen35,
            ] {
                let mut joined = String::new();
                pre.split(&text, |word| {
                    assert!(!word.is_empty());
                    joined.push_str(word);
                });
                prop_assert_eq!(&joined, &text);
            }
        }
    }
}
