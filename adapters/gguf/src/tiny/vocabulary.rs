//! A byte-level BPE vocabulary in GPT-2's style under Qwen's rules of splitting text.
//!
//! The small one has all bytes, the merges that build a few dozen common words, and the control tokens of a
//! chat. The full one has as many tokens as the real models, with the control tokens at their real places;
//! its merges build groups of letters, so that text becomes tokens at about the usual rate.

use std::collections::{HashMap, HashSet};

use crate::error::Problem;
use crate::value::ByteStrings;
use crate::writer::GgufWriter;

const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// The numbers of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

const SMALL_SPECIALS: &[(&str, i32)] = &[
    ("<|endoftext|>", CONTROL),
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("<tool_call>", USER_DEFINED),
    ("</tool_call>", USER_DEFINED),
];

/// In the order of the real models, where the first one has this id.
const FULL_FIRST_SPECIAL: usize = 151_643;
const FULL_SPECIALS: &[(&str, i32)] = &[
    ("<|endoftext|>", CONTROL),
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("<|object_ref_start|>", CONTROL),
    ("<|object_ref_end|>", CONTROL),
    ("<|box_start|>", CONTROL),
    ("<|box_end|>", CONTROL),
    ("<|quad_start|>", CONTROL),
    ("<|quad_end|>", CONTROL),
    ("<|vision_start|>", CONTROL),
    ("<|vision_end|>", CONTROL),
    ("<|vision_pad|>", CONTROL),
    ("<|image_pad|>", CONTROL),
    ("<|video_pad|>", CONTROL),
    ("<tool_call>", USER_DEFINED),
    ("</tool_call>", USER_DEFINED),
    ("<|fim_prefix|>", USER_DEFINED),
    ("<|fim_middle|>", USER_DEFINED),
    ("<|fim_suffix|>", USER_DEFINED),
    ("<|fim_pad|>", USER_DEFINED),
    ("<|repo_name|>", USER_DEFINED),
    ("<|file_sep|>", USER_DEFINED),
];

/// What the small vocabulary's merges build, parted by line ends; a leading space belongs to the word.
const WORDS: &[&str] = &[
    " the",
    " a",
    " to",
    " of",
    " and",
    " in",
    " is",
    " it",
    " you",
    " that",
    " for",
    " on",
    " with",
    " are",
    " was",
    " this",
    " not",
    " have",
    " be",
    " can",
    " what",
    " how",
    " your",
    " from",
    " will",
    " about",
    " there",
    " answer",
    " question",
    " weather",
    " city",
    " time",
    " number",
    " order",
    " help",
    " please",
    "The",
    "What",
    "How",
    "You",
    "Hello",
    "name",
    "arguments",
    "true",
    "false",
    "null",
    "type",
    "string",
    "function",
    "return",
    "assistant",
    "system",
    "user",
    "tool",
    "ing",
    "tion",
    "er",
    "ly",
    "ed",
    "{\"",
    "\":",
    "\",",
    "\"}",
    "},",
    "],",
    "():",
    "==",
    "->",
    "=>",
    "//",
    "\n\n",
    "  ",
    "    ",
    "...",
    "ä",
    "ö",
    "ü",
    "é",
    "ß",
    "你",
    "好",
    "，",
    "。",
    "で",
    "す",
    "п",
    "р",
    "и",
    "в",
    "е",
    "т",
    "🙂",
];

/// Letters with the most frequent in English first.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";

pub(super) struct Vocabulary {
    tokens: ByteStrings,
    kinds: Vec<i32>,
    merges: ByteStrings,
    first_special: usize,
}

impl Vocabulary {
    /// 256 bytes, a few hundred merges, five special tokens.
    pub(super) fn small() -> Vocabulary {
        let mut learner = Learner::new();
        for word in WORDS {
            learner.learn(word);
        }
        learner.finish(SMALL_SPECIALS)
    }

    /// As the real models' vocabularies in size and in the places of the special tokens.
    pub(super) fn full(num_tokens: usize) -> Vocabulary {
        let mut learner = Learner::new();
        for word in WORDS.iter().filter(|word| !word.contains(|char: char| char.is_ascii_alphabetic())) {
            learner.learn(word);
        }
        learner.learn_letter_groups(FULL_FIRST_SPECIAL);
        let mut vocabulary = learner.finish(FULL_SPECIALS);
        for idx in vocabulary.len()..num_tokens {
            vocabulary.tokens.push(format!("[PAD{idx}]").as_bytes());
            vocabulary.kinds.push(UNUSED);
        }
        vocabulary
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the token is not made of bytes.
    pub(super) fn is_special(&self, token_idx: usize) -> bool {
        token_idx >= self.first_special
    }

    /// Writes all keys that begin with `tokenizer.`.
    pub(super) fn write_keys(&self, writer: &mut GgufWriter) -> Result<(), Problem> {
        let id = |text: &str| {
            let place = self.tokens.iter().position(|token| token == text.as_bytes());
            place.expect("every vocabulary has the chat's control tokens") as u32
        };
        writer.set("tokenizer.ggml.model", "gpt2")?;
        writer.set("tokenizer.ggml.pre", "qwen2")?;
        writer.set("tokenizer.ggml.tokens", self.tokens.clone())?;
        writer.set("tokenizer.ggml.token_type", self.kinds.clone())?;
        writer.set("tokenizer.ggml.merges", self.merges.clone())?;
        writer.set("tokenizer.ggml.eos_token_id", id("<|im_end|>"))?;
        writer.set("tokenizer.ggml.padding_token_id", id("<|endoftext|>"))?;
        writer.set("tokenizer.ggml.bos_token_id", id("<|endoftext|>"))?;
        writer.set("tokenizer.ggml.add_bos_token", false)?;
        writer.set("tokenizer.chat_template", CHAT_TEMPLATE)
    }
}

/// Collects tokens and merges in the order of their rank.
struct Learner {
    tokens: Vec<String>,
    known: HashSet<String>,
    ranks: HashMap<(String, String), usize>,
    merges: ByteStrings,
}

impl Learner {
    fn new() -> Learner {
        let mut learner = Learner {
            tokens: Vec::new(),
            known: HashSet::new(),
            ranks: HashMap::new(),
            merges: ByteStrings::new(),
        };
        // GPT-2 lists the bytes that have a visible character of their own first.
        let bytes = (0..=255u8).filter(|&byte| is_visible(byte));
        for byte in bytes.chain((0..=255).filter(|&byte| !is_visible(byte))) {
            learner.add_token(byte_char(byte).to_string());
        }
        learner
    }

    fn add_token(&mut self, token: String) {
        if self.known.insert(token.clone()) {
            self.tokens.push(token);
        }
    }

    fn add_merge(&mut self, left: &str, right: &str) {
        let pair = (left.to_owned(), right.to_owned());
        let rank = self.ranks.len();
        if self.ranks.insert(pair, rank).is_none() {
            self.merges.push(format!("{left} {right}").as_bytes());
            self.add_token(format!("{left}{right}"));
        }
    }

    /// Applies the merges that are known, as a tokenizer would, and adds those that are then missing to make
    /// the word one token.
    fn learn(&mut self, word: &str) {
        let mut pieces: Vec<String> = word.bytes().map(|byte| byte_char(byte).to_string()).collect();
        while pieces.len() > 1 {
            let rank = |idx: &usize| self.ranks.get(&(pieces[*idx].clone(), pieces[idx + 1].clone()));
            let best = (0..pieces.len() - 1).filter(|idx| rank(idx).is_some()).min_by_key(|idx| rank(idx));
            let idx = best.unwrap_or_else(|| {
                let (left, right) = (pieces[0].clone(), pieces[1].clone());
                self.add_merge(&left, &right);
                0
            });
            let right = pieces.remove(idx + 1);
            pieces[idx].push_str(&right);
        }
    }

    /// Groups of two to four letters, with and without a space before them, the likely ones first, until
    /// there are `num_tokens`.
    fn learn_letter_groups(&mut self, num_tokens: usize) {
        let letters: Vec<String> = LETTERS.chars().map(String::from).collect();
        let space = byte_char(b' ').to_string();
        let pairs: Vec<String> =
            diagonally(letters.len()).map(|(a, b)| format!("{}{}", letters[a], letters[b])).collect();
        for letter in &letters {
            self.add_merge(&space, letter);
        }
        for pair in &pairs {
            let (left, right) = pair.split_at(1);
            self.add_merge(left, right);
        }
        for pair in &pairs {
            for letter in &letters {
                self.add_merge(&format!("{space}{letter}"), pair);
                self.add_merge(letter, pair);
            }
            self.add_merge(&space, pair);
        }
        for (a, b) in diagonally(pairs.len()) {
            for left in [format!("{space}{}", pairs[a]), pairs[a].clone()] {
                if self.tokens.len() == num_tokens {
                    return;
                }
                self.add_merge(&left, &pairs[b]);
            }
        }
    }

    fn finish(self, specials: &[(&str, i32)]) -> Vocabulary {
        let first_special = self.tokens.len();
        let mut tokens: ByteStrings = self.tokens.iter().collect();
        let mut kinds = vec![NORMAL; first_special];
        for (text, kind) in specials {
            tokens.push(text.as_bytes());
            kinds.push(*kind);
        }
        Vocabulary { tokens, kinds, merges: self.merges, first_special }
    }
}

/// All pairs of indices below `len`, those with the smallest sum first.
fn diagonally(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..2 * len - 1)
        .flat_map(move |sum| (0..=sum).map(move |a| (a, sum - a)))
        .filter(move |&(a, b)| a < len && b < len)
}

fn is_visible(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// GPT-2's character for a byte: itself where it is visible, the next one from U+0100 on where it is not.
fn byte_char(byte: u8) -> char {
    if is_visible(byte) {
        return char::from(byte);
    }
    let num_before = (0..byte).filter(|&other| !is_visible(other)).count() as u32;
    char::from_u32(0x100 + num_before).expect("68 characters from U+0100 on are all valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_characters_of_gpt2() {
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(byte_char(b'A'), 'A');
        assert_eq!(byte_char(0xad), 'Ń');
    }

    fn assert_sound(vocabulary: &Vocabulary) {
        let tokens: HashSet<&[u8]> = vocabulary.tokens.iter().collect();
        assert_eq!(tokens.len(), vocabulary.len(), "every token occurs once");
        assert_eq!(vocabulary.kinds.len(), vocabulary.len());
        for merge in vocabulary.merges.iter() {
            let space = merge.iter().position(|&byte| byte == b' ').unwrap();
            let (left, right) = (&merge[..space], &merge[space + 1..]);
            assert!(tokens.contains(left) && tokens.contains(right));
            assert!(tokens.contains(&[left, right].concat()[..]));
        }
    }

    #[test]
    fn the_small_vocabulary_is_sound() {
        let vocabulary = Vocabulary::small();
        assert_sound(&vocabulary);
        assert!((400..1000).contains(&vocabulary.len()), "{}", vocabulary.len());
        for word in ["Ġthe", "assistant", "ĊĊ", "{\""] {
            assert!(vocabulary.tokens.iter().any(|token| token == word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn the_full_vocabulary_has_the_real_places() {
        let vocabulary = Vocabulary::full(151_936);
        assert_sound(&vocabulary);
        assert_eq!(vocabulary.len(), 151_936);
        assert_eq!(vocabulary.tokens.get(151_645), Some(&b"<|im_end|>"[..]));
        assert_eq!(vocabulary.tokens.get(151_658), Some(&b"</tool_call>"[..]));
    }
}
