//! A small vocabulary for unit tests: all bytes, some merges, Qwen's special
//! tokens.

use crate::byte_level;
use crate::{TokenKind, Tokenizer, Vocabulary};
use quern_engine::TokenId;
use std::sync::{Arc, LazyLock};

/// Shared, because the tables take a moment to build.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(build(vocabulary())));
    Arc::clone(&TOKENIZER)
}

pub(crate) fn build(vocabulary: Vocabulary) -> Tokenizer {
    Tokenizer::new(vocabulary).expect("the vocabulary is whole")
}

pub(crate) fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<String> = byte_level::BYTE_TO_CHAR.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    for word in [
        " the",
        "name",
        "arguments",
        "{\"",
        "\": ",
        "\", \"",
        "true",
        "null",
        "get",
        "weather",
        " \"",
        "\"}",
        "\n\n",
        "  ",
        "    ",
        "12",
        "user",
        "call",
        "é",
        "ab",
        "abc",
        "}\n",
    ] {
        add_merges(word, &mut tokens, &mut merges);
    }
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for (text, kind) in [
        ("<|endoftext|>", TokenKind::Control),
        ("<|im_start|>", TokenKind::Control),
        ("<|im_end|>", TokenKind::Control),
        ("<tool_call>", TokenKind::UserDefined),
        ("</tool_call>", TokenKind::UserDefined),
        ("[PAD0]", TokenKind::Unused),
    ] {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    let id = |text: &str| tokens.iter().position(|token| token == text).expect("listed") as TokenId;
    Vocabulary {
        roles: [("bos", id("<|endoftext|>")), ("eos", id("<|im_end|>"))].into(),
        tokens,
        kinds,
        merges,
        pre: "qwen2".to_owned(),
        add_bos: Some(false),
        add_eos: None,
    }
}

/// Builds `word` from left to right.
fn add_merges(word: &str, tokens: &mut Vec<String>, merges: &mut Vec<(String, String)>) {
    let mut alphabet = String::new();
    byte_level::encode_into(word, &mut alphabet);
    let mut built = String::new();
    for c in alphabet.chars() {
        if !built.is_empty() {
            let pair = (built.clone(), c.to_string());
            if !merges.contains(&pair) {
                merges.push(pair);
            }
        }
        built.push(c);
        if !tokens.contains(&built) {
            tokens.push(built.clone());
        }
    }
}
