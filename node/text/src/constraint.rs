//! What an answer must look like, compiled to masks over the vocabulary.
//!
//! The grammar engine is llguidance. This file prepares it once for a model and
//! compiles one grammar per request, within limits that a hostile schema cannot
//! stretch. Nothing here knows how tokens are drawn.

use crate::tokenizer::{Special, Tokenizer};
use crate::{gbnf, tool_grammar};
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use quern_engine::TokenId;
use quern_scheduler::constraint::{Constraint, ConstraintError};
use serde_json::{Value, json};
use std::sync::Arc;
use toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

/// Size in bytes of a JSON schema, or of all the schemas of tools.
const MAX_SCHEMA_BYTES: usize = 1 << 20;

/// Size in bytes of a grammar or a regular expression.
const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Stack of the thread that compiles: llguidance follows rules that refer to
/// rules by recursion, and [`MAX_GRAMMAR_BYTES`] hold many rules. What is not
/// used is never backed by memory.
const STACK_BYTES: usize = 512 << 20;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// A grammar in llama.cpp's dialect of BNF.
    Gbnf(String),
    /// Calls of tools in Qwen's form.
    ToolCalls {
        /// The tools that may be called; to force one, give only that one.
        tools: Vec<ToolSpec>,
        /// Whether there must be a call, and nothing but calls; else text may
        /// come before or instead of calls.
        required: bool,
        /// Whether there may be several calls.
        parallel: bool,
    },
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
}

/// Why a grammar cannot be used. All but [`Self::Vocabulary`] and
/// [`Self::Thread`] are the fault of whoever wrote the grammar.
#[derive(Debug, thiserror::Error)]
pub enum ConstraintCompileError {
    /// The grammar is too long to look at.
    #[error("the grammar has {bytes} bytes; {max} are allowed")]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The largest size.
        max: usize,
    },
    /// The grammar cannot be compiled, or only beyond the limits.
    #[error("{0}")]
    Invalid(String),
    /// A GBNF grammar is not well-formed.
    #[error(transparent)]
    Gbnf(#[from] gbnf::GbnfError),
    /// There is no tool that could be called.
    #[error("a call is required but there are no tools")]
    NoTools,
    /// The thread that compiles failed.
    #[error("the grammar's compiler failed: {0}")]
    Thread(String),
    /// The model's vocabulary cannot be used.
    #[error("the vocabulary cannot be constrained: {0}")]
    Vocabulary(String),
}

/// Compiles grammars for one model. Share it in an `Arc`.
pub struct ConstraintFactory {
    factory: ParserFactory,
}

impl ConstraintFactory {
    /// Indexes the vocabulary: some tenths of a second for a large one.
    ///
    /// # Errors
    /// [`ConstraintCompileError::Vocabulary`].
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, ConstraintCompileError> {
        let bad = |why: String| ConstraintCompileError::Vocabulary(why);
        let environment: TokEnv = Arc::new(Vocabulary::new(tokenizer).map_err(bad)?);
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| bad(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self { factory })
    }

    /// Compiles a grammar to a constraint at the beginning of an answer.
    ///
    /// # Errors
    /// [`ConstraintCompileError`] when the grammar is wrong or too large.
    pub fn compile(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, ConstraintCompileError> {
        check_size(grammar)?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, || self.compile_here(grammar));
            let thread = thread.map_err(|error| ConstraintCompileError::Thread(error.to_string()))?;
            // llguidance catches its own panics; ours would be a bug all the same.
            let panicked = |_| ConstraintCompileError::Thread("it panicked".to_owned());
            thread.join().map_err(panicked)?
        })
    }

    fn compile_here(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, ConstraintCompileError> {
        let grammar = to_llguidance(grammar)?;
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(why) = matcher.get_error() {
            return Err(ConstraintCompileError::Invalid(first_lines(&why)));
        }
        // Some limits are only met by the first mask; better now than mid-answer.
        let mask = matcher.compute_mask_or_eos();
        mask.map_err(|error| ConstraintCompileError::Invalid(first_lines(&error.to_string())))?;
        Ok(Box::new(Guided { matcher }))
    }
}

impl std::fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintFactory").finish_non_exhaustive()
    }
}

/// Work and memory that one grammar may take, set here so that a new version's
/// defaults change nothing: large published schemas need about half of it.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 500_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

fn check_size(grammar: &Grammar) -> Result<(), ConstraintCompileError> {
    let (bytes, max) = match grammar {
        Grammar::JsonObject => (0, MAX_SCHEMA_BYTES),
        Grammar::JsonSchema(schema) => (schema.to_string().len(), MAX_SCHEMA_BYTES),
        Grammar::Regex(text) | Grammar::Lark(text) | Grammar::Gbnf(text) => (text.len(), MAX_GRAMMAR_BYTES),
        Grammar::ToolCalls { tools, .. } => {
            let sizes = tools.iter().map(|tool| tool.name.len() + tool.parameters.to_string().len());
            (sizes.sum(), MAX_SCHEMA_BYTES)
        }
    };
    if bytes > max {
        return Err(ConstraintCompileError::TooLong { bytes, max });
    }
    Ok(())
}

fn to_llguidance(grammar: &Grammar) -> Result<TopLevelGrammar, ConstraintCompileError> {
    Ok(match grammar {
        Grammar::JsonObject => TopLevelGrammar::from_json_schema(json!({"type": "object"})),
        Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        Grammar::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        Grammar::ToolCalls { tools, required, parallel } => {
            if tools.is_empty() && *required {
                return Err(ConstraintCompileError::NoTools);
            }
            let lark = tool_grammar::to_lark(tools, *required, *parallel);
            TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark))
        }
    })
}

/// An error's first lines: the rest repeats the grammar.
fn first_lines(why: &str) -> String {
    let lines: Vec<&str> = why.lines().take(3).collect();
    lines.join(" ").chars().take(500).collect()
}

/// A grammar's state in one sequence.
struct Guided {
    matcher: Matcher,
}

impl Constraint for Guided {
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos();
        let allowed = allowed.map_err(|error| ConstraintError(first_lines(&error.to_string())))?;
        copy(&allowed, mask);
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        let accepted = self.matcher.consume_token(token);
        accepted.map_err(|error| ConstraintError(first_lines(&error.to_string())))
    }

    fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    fn clone_box(&self) -> Box<dyn Constraint> {
        Box::new(Guided { matcher: self.matcher.clone() })
    }
}

/// Writes out a mask; what lies beyond it is banned.
fn copy(from: &SimpleVob, to: &mut [u32]) {
    let num_words = from.len().div_ceil(32).min(to.len());
    to[..num_words].copy_from_slice(&from.as_slice()[..num_words]);
    to[num_words..].fill(0);
    if let (Some(last), past @ 1..) = (to.get_mut(from.len() / 32), from.len() % 32) {
        *last &= (1 << past) - 1;
    }
}

/// The model's vocabulary as llguidance wants it.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, String> {
        let eos = tokenizer.eos_tokens();
        let first_eos = tokenizer.eos().or(eos.first().copied());
        let first_eos = first_eos.ok_or("no token ends an answer")?;
        let info = TokRxInfo {
            tok_bos: tokenizer.bos(),
            ..TokRxInfo::new(tokenizer.vocab_size() as u32, first_eos)
        };
        let words: Vec<Vec<u8>> =
            (0..tokenizer.vocab_size() as TokenId).map(|token| word(&tokenizer, token)).collect();
        let all: Vec<TokenId> = std::iter::once(first_eos)
            .chain(eos.iter().copied().filter(|token| *token != first_eos))
            .collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&all);
        Ok(Self { tokenizer, trie })
    }
}

/// A token's bytes; a special token's name with the mark that keeps it apart
/// from text.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token);
    if tokenizer.is_special(token) {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
    } else {
        bytes.to_vec()
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode(text, Special::AsText);
            tokens.unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests;
