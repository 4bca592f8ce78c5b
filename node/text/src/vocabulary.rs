//! A vocabulary as a model file describes it: token texts, their kinds, merges
//! and which tokens have a meaning of their own.
//!
//! Reading happens here; [`crate::Tokenizer`] does the work with it. Roles that
//! a file leaves out are found by the tokens' texts, by the same list of texts
//! as llama.cpp's, so that both stop at the same tokens.

use crate::tokenizer::TokenizerError;
use quern_engine::TokenId;
use quern_gguf::{Gguf, GgufError};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text in the byte-level alphabet.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Steers the model; never part of an answer's text.
    Control,
    /// Text as it is written, always one token.
    UserDefined,
    /// Not in use.
    Unused,
}

/// A vocabulary, read but not yet indexed.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// Every token's text; the index is the token's number.
    pub tokens: Vec<String>,
    /// Every token's kind, as long as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// Pairs of tokens to merge, the most important first.
    pub merges: Vec<(String, String)>,
    /// The pre-tokenizer's name.
    pub pre: String,
    /// Tokens by role: the last part of `tokenizer.ggml.*_token_id`, as "bos".
    pub roles: HashMap<&'static str, TokenId>,
    /// Whether a text begins with the bos token, where the file says.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the eos token, where the file says.
    pub add_eos: Option<bool>,
}

/// Roles that a file can give to a token.
const ROLES: [&str; 8] = ["bos", "eos", "eot", "eom", "fim_pre", "fim_pad", "fim_rep", "fim_sep"];

/// Texts by which tokens without a role in the file are known.
const TEXTS_BY_ROLE: [(&str, &[&str]); 8] = [
    (
        "eot",
        &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
    ),
    ("eom", &["<|eom_id|>"]),
    (
        "fim_pre",
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        "fim_suf",
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        "fim_mid",
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// Texts whose tokens end an answer whatever the file says of them.
const END_TEXTS: [&str; 16] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

impl Vocabulary {
    /// Reads the vocabulary of a model file.
    ///
    /// # Errors
    /// [`TokenizerError`] when the file holds no byte-pair vocabulary or a
    /// broken one.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let model = gguf.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::UnsupportedModel(model.to_owned()));
        }
        let tokens: Vec<String> = gguf
            .strings("tokenizer.ggml.tokens")?
            .into_iter()
            .enumerate()
            .map(|(id, text)| name_empty(id, text))
            .collect();
        let merges = gguf.strings("tokenizer.ggml.merges")?;
        let merges = merges.into_iter().enumerate().map(split_merge);
        let mut vocabulary = Self {
            kinds: kinds(gguf, tokens.len())?,
            tokens,
            merges: merges.collect::<Result<_, _>>()?,
            pre: optional(gguf.str("tokenizer.ggml.pre"))?.unwrap_or("default").to_owned(),
            roles: HashMap::new(),
            add_bos: optional(gguf.bool("tokenizer.ggml.add_bos_token"))?,
            add_eos: optional(gguf.bool("tokenizer.ggml.add_eos_token"))?,
        };
        vocabulary.read_roles(gguf)?;
        Ok(vocabulary)
    }

    /// Reads tokens and merges from a `tokenizer.json` instead, and all else
    /// from the model file.
    ///
    /// Its normalizer is left out on purpose: such files ask for Unicode's
    /// composed form, llama.cpp feeds models the text as it is, and what a
    /// client sent should come back unchanged.
    ///
    /// # Errors
    /// [`TokenizerError`] when one of the files cannot be used.
    pub fn from_json_file(path: &Path, gguf: &Gguf) -> Result<Self, TokenizerError> {
        let bad = |why: String| TokenizerError::JsonFile { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let file: JsonFile = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let num_padded = gguf.strings("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len());
        let (tokens, kinds) = file.tokens(num_padded).map_err(bad)?;
        let merges = file.model.merges.into_iter().enumerate();
        let merges = merges.map(|(idx, merge)| match merge {
            JsonMerge::Pair(first, second) => Ok((first, second)),
            JsonMerge::Text(text) => split_merge((idx, &text)),
        });
        let mut vocabulary = Self {
            tokens,
            kinds,
            merges: merges.collect::<Result<_, _>>()?,
            pre: optional(gguf.str("tokenizer.ggml.pre"))?.unwrap_or("default").to_owned(),
            roles: HashMap::new(),
            add_bos: optional(gguf.bool("tokenizer.ggml.add_bos_token"))?,
            add_eos: optional(gguf.bool("tokenizer.ggml.add_eos_token"))?,
        };
        vocabulary.read_roles(gguf)?;
        Ok(vocabulary)
    }

    fn read_roles(&mut self, gguf: &Gguf) -> Result<(), TokenizerError> {
        for role in ROLES {
            let key = format!("tokenizer.ggml.{role}_token_id");
            if let Some(id) = optional(gguf.u32(&key))?
                && (id as usize) < self.tokens.len()
            {
                self.roles.insert(role, id);
            }
        }
        Ok(())
    }

    /// Gives roles to tokens that are known by their text, marks those as
    /// control tokens, and returns the tokens that end an answer, in order.
    pub(crate) fn resolve_roles(&mut self, ids: &HashMap<&str, TokenId>) -> Vec<TokenId> {
        for (role, texts) in TEXTS_BY_ROLE {
            if self.roles.contains_key(role) {
                continue;
            }
            if let Some(&id) = texts.iter().find_map(|text| ids.get(text)) {
                self.roles.insert(role, id);
                self.kinds[id as usize] = TokenKind::Control;
            }
        }
        let mut ends = BTreeSet::new();
        for role in ["fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom"] {
            ends.extend(self.roles.get(role));
        }
        for id in END_TEXTS.iter().filter_map(|text| ids.get(text)) {
            self.kinds[*id as usize] = TokenKind::Control;
            ends.insert(*id);
        }
        ends.into_iter().collect()
    }
}

/// An absent key is an ordinary answer; a key of the wrong type is not.
fn optional<T>(value: Result<T, GgufError>) -> Result<Option<T>, GgufError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_missing_key() => Ok(None),
        Err(error) => Err(error),
    }
}

fn kinds(gguf: &Gguf, num_tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(numbers) = optional(gguf.i32s("tokenizer.ggml.token_type"))? else {
        return Ok(vec![TokenKind::Normal; num_tokens]);
    };
    if numbers.len() < num_tokens {
        return Err(TokenizerError::TooFewTokenTypes { types: numbers.len(), tokens: num_tokens });
    }
    let kind = |number: &i32| match number {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        _ => TokenKind::Unused,
    };
    Ok(numbers[..num_tokens].iter().map(kind).collect())
}

/// An empty text would match everywhere.
fn name_empty(id: usize, text: &str) -> String {
    if text.is_empty() { format!("[EMPTY_{id}]") } else { text.to_owned() }
}

/// The first space after the first character parts the two halves; the first
/// half may itself be a space in old files.
fn split_merge((idx, text): (usize, &str)) -> Result<(String, String), TokenizerError> {
    let first_len = text.chars().next().map_or(0, char::len_utf8);
    match text[first_len..].split_once(' ') {
        Some((head, second)) => Ok((text[..first_len + head.len()].to_owned(), second.to_owned())),
        None => Err(TokenizerError::Merge { idx, text: text.to_owned() }),
    }
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct JsonFile {
    model: JsonModel,
    #[serde(default)]
    added_tokens: Vec<JsonAddedToken>,
}

#[derive(Deserialize)]
struct JsonModel {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    vocab: HashMap<String, TokenId>,
    merges: Vec<JsonMerge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonMerge {
    Pair(String, String),
    Text(String),
}

#[derive(Deserialize)]
struct JsonAddedToken {
    id: TokenId,
    content: String,
    special: bool,
}

impl JsonFile {
    /// Texts and kinds by number, padded to `num_padded` with unused tokens.
    fn tokens(&self, num_padded: usize) -> Result<(Vec<String>, Vec<TokenKind>), String> {
        if let Some(kind) = self.model.kind.as_deref().filter(|kind| *kind != "BPE") {
            return Err(format!("its model is {kind}, not BPE"));
        }
        let ids = self.model.vocab.values().copied();
        let ids = ids.chain(self.added_tokens.iter().map(|token| token.id));
        let num_tokens = ids.max().map_or(0, |id| id as usize + 1).max(num_padded);
        if num_tokens > 16 << 20 {
            return Err(format!("token number {} is absurd", num_tokens - 1));
        }
        let mut tokens = vec![String::new(); num_tokens];
        let mut kinds = vec![TokenKind::Unused; num_tokens];
        for (text, id) in &self.model.vocab {
            tokens[*id as usize].clone_from(text);
            kinds[*id as usize] = TokenKind::Normal;
        }
        for token in &self.added_tokens {
            tokens[token.id as usize].clone_from(&token.content);
            kinds[token.id as usize] =
                if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        }
        for (id, text) in tokens.iter_mut().enumerate() {
            *text = name_empty(id, text);
        }
        Ok((tokens, kinds))
    }
}
