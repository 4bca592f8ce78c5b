//! Text to tokens and back, identical to llama.cpp's.
//!
//! Byte pairs are merged by the `tokenizers` crate's model. What comes before
//! it (special tokens, splitting into words) is our own: the crate would
//! normalise Unicode, which llama.cpp does not, and its regular expressions
//! stop splitting without a word where they give up.

use crate::pretokenizer::PreTokenizer;
use crate::special::{Fragment, SpecialToken, SpecialTokens};
use crate::vocabulary::{TokenKind, Vocabulary};
use crate::{byte_level, classes};
use quern_engine::TokenId;
use quern_gguf::{Gguf, GgufError};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};

/// What to make of control tokens that are written out in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// They become the tokens: for text that we or the model's maker wrote.
    Parse,
    /// They stay text: for everything that a client wrote. Tokens that the
    /// vocabulary calls user-defined are found all the same; they are text.
    AsText,
}

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The model file lacks something or is broken.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The vocabulary is of a kind that is not served.
    #[error("tokenizer model {0:?} is not supported; only \"gpt2\" (byte-level BPE) is")]
    UnsupportedModel(String),
    /// The pre-tokenizer is not known.
    #[error("pre-tokenizer {0:?} is not known")]
    UnknownPreTokenizer(String),
    /// There are fewer token types than tokens.
    #[error("{types} token types for {tokens} tokens")]
    TooFewTokenTypes {
        /// How many types there are.
        types: usize,
        /// How many tokens there are.
        tokens: usize,
    },
    /// A merge is not a pair.
    #[error("merge {idx} is not a pair of tokens: {text:?}")]
    Merge {
        /// Its place in the list.
        idx: usize,
        /// What it says.
        text: String,
    },
    /// A byte has no token, so that some texts cannot be said.
    #[error("the vocabulary has no token for byte {0:#04x}")]
    MissingByte(u8),
    /// A `tokenizer.json` cannot be used.
    #[error("{path}: {why}", path = path.display())]
    JsonFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The byte-pair model refused the vocabulary or a word.
    #[error("byte-pair model: {0}")]
    Model(String),
}

/// A model's tokenizer. Immutable: share it in an `Arc`.
pub struct Tokenizer {
    bpe: BPE,
    pre: PreTokenizer,
    special: SpecialTokens,
    kinds: Vec<TokenKind>,
    /// All tokens' bytes, one after the other; token `t` has
    /// `bytes[ends[t - 1]..ends[t]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    ends_of_generation: Vec<TokenId>,
    bos: Option<TokenId>,
    add_bos: bool,
    eos: Option<TokenId>,
    add_eos: bool,
}

impl Tokenizer {
    /// The tokenizer of a model file.
    ///
    /// # Errors
    /// [`TokenizerError`] when the file's vocabulary cannot be used.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(Vocabulary::from_gguf(gguf)?)
    }

    /// A tokenizer with tokens and merges from a `tokenizer.json`, and all else
    /// from the model file.
    ///
    /// # Errors
    /// [`TokenizerError`] when one of the files cannot be used.
    pub fn from_json_file(path: &Path, gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(Vocabulary::from_json_file(path, gguf)?)
    }

    /// Indexes a vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError`] when the vocabulary does not hold together.
    pub fn new(mut vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let pre = PreTokenizer::from_name(&vocabulary.pre)
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer(vocabulary.pre.clone()))?;
        classes::warm_up();
        let ends_of_generation = {
            let tokens = std::mem::take(&mut vocabulary.tokens);
            let ids = tokens.iter().enumerate();
            let ids = ids.map(|(id, text)| (text.as_str(), id as TokenId));
            let ends = vocabulary.resolve_roles(&ids.collect());
            vocabulary.tokens = tokens;
            ends
        };
        let (bytes, ends) = pieces(&vocabulary);
        let special = special_tokens(&vocabulary);
        let bos = vocabulary.roles.get("bos").copied();
        let eos = vocabulary.roles.get("eos").copied();
        let tokens = vocabulary.tokens.into_iter().enumerate();
        let ids: Vocab = tokens.map(|(id, text)| (text, id as TokenId)).collect();
        Ok(Self {
            bpe: bpe(ids, vocabulary.merges, pre)?,
            pre,
            special,
            kinds: vocabulary.kinds,
            bytes,
            ends,
            ends_of_generation,
            bos,
            add_bos: vocabulary.add_bos.unwrap_or(pre.adds_bos()),
            eos,
            add_eos: vocabulary.add_eos.unwrap_or(false),
        })
    }

    /// The tokens of `text`, with nothing put before or after them.
    ///
    /// # Errors
    /// [`TokenizerError::Model`] when the byte-pair model fails.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut words = Words::default();
        for fragment in self.special.partition(text, special == Special::Parse) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => self.encode_words(text, &mut words, &mut out)?,
            }
        }
        Ok(out)
    }

    /// The tokens of a prompt: as [`Self::encode`], with the tokens that the
    /// model wants at the beginning and the end of a text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, text: &str, special: Special) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out: Vec<TokenId> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        out.extend(self.encode(text, special)?);
        out.extend(self.eos.filter(|_| self.add_eos));
        Ok(out)
    }

    /// The special tokens in `text` and what lies between them.
    pub(crate) fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn encode_words<'a>(
        &self,
        text: &'a str,
        words: &mut Words<'a>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let mut result = Ok(());
        self.pre.split(text, |word| {
            if result.is_ok() {
                result = self.encode_word(word, words, out);
            }
        });
        result
    }

    fn encode_word<'a>(
        &self,
        word: &'a str,
        words: &mut Words<'a>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        if let Some(known) = words.seen.get(word) {
            out.extend_from_within(known.clone());
            return Ok(());
        }
        byte_level::encode_into(word, &mut words.alphabet);
        let tokens = self.bpe.tokenize(&words.alphabet);
        let tokens = tokens.map_err(|error| TokenizerError::Model(error.to_string()))?;
        let start = out.len();
        out.extend(tokens.iter().map(|token| token.id));
        words.seen.insert(word, start..out.len());
        Ok(())
    }

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &token in tokens {
            if !(skip_special && self.is_special(token)) {
                bytes.extend_from_slice(self.token_bytes(token));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for: for a special token its name, and
    /// nothing for a token that is out of use or out of range.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else {
            return &[];
        };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// Whether a token steers the model and is no part of an answer's text.
    pub fn is_special(&self, token: TokenId) -> bool {
        matches!(self.kinds.get(token as usize), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// The tokens that end an answer, in ascending order.
    pub fn eos_tokens(&self) -> &[TokenId] {
        &self.ends_of_generation
    }

    /// The token that ends a text, which is one of [`Self::eos_tokens`].
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Whether a prompt begins with [`Self::bos`].
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// How many tokens there are, out of use or not: the length of the model's
    /// logits.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// The token with this text: a special token's name, or a word in the
    /// byte-level alphabet.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.bpe.token_to_id(text)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("pre", &self.pre)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Words of one text that have been merged already, by where their tokens lie
/// in the output: most words of a long text come more than once.
#[derive(Default)]
struct Words<'a> {
    seen: HashMap<&'a str, Range<usize>>,
    alphabet: String,
}

fn bpe(ids: Vocab, merges: Vec<(String, String)>, pre: PreTokenizer) -> Result<BPE, TokenizerError> {
    for (byte, c) in byte_level::BYTE_TO_CHAR.iter().enumerate() {
        if !ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str) {
            return Err(TokenizerError::MissingByte(byte as u8));
        }
    }
    // Where a pair is listed twice the first rank counts, but the library would
    // keep the last.
    let mut listed = std::collections::HashSet::with_capacity(merges.len());
    let first: Vec<bool> = merges.iter().map(|pair| listed.insert(pair)).collect();
    drop(listed);
    let mut first = first.into_iter();
    let mut merges = merges;
    merges.retain(|_| first.next().unwrap_or(true));
    BpeBuilder::new()
        .vocab_and_merges(ids, merges)
        .ignore_merges(pre.ignores_merges())
        .build()
        .map_err(|error| TokenizerError::Model(error.to_string()))
}

fn pieces(vocabulary: &Vocabulary) -> (Vec<u8>, Vec<u32>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(vocabulary.tokens.len());
    for (text, kind) in vocabulary.tokens.iter().zip(&vocabulary.kinds) {
        match kind {
            TokenKind::Normal => byte_level::decode_into(text, &mut bytes),
            TokenKind::Unused => {}
            _ => bytes.extend_from_slice(text.as_bytes()),
        }
        ends.push(bytes.len() as u32);
    }
    (bytes, ends)
}

fn special_tokens(vocabulary: &Vocabulary) -> SpecialTokens {
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
    let special = tokens.filter_map(|(id, (text, kind))| {
        let control = match kind {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Unused => return None,
        };
        Some(SpecialToken { id: id as TokenId, text: text.clone(), control })
    });
    SpecialTokens::new(special.collect())
}

#[cfg(test)]
mod tests;
