//! Between text and tokens: tokenizer, detokenizer, stop strings, chat
//! templates, tool calls and constraints on what may be generated.
//!
//! This crate knows text and JSON values. It must not know HTTP, the engine's
//! computations or how sequences are scheduled; to the scheduler it hands only
//! token numbers and [`quern_scheduler::constraint::Constraint`] objects.
//!
//! A request's text goes through [`ChatTemplate`] and [`Tokenizer`] on its way
//! in, and through [`Detokenizer`], [`StopStrings`] and [`ToolCallParser`] on
//! its way out. [`ConstraintFactory`] compiles what the answer must look like.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod byte_level;
mod classes;
mod constraint;
mod detokenizer;
mod gbnf;
mod guard;
mod messages;
mod pretokenizer;
mod special;
mod stop;
mod template;
mod template_functions;
#[cfg(test)]
mod testing;
mod tokenizer;
mod tool_grammar;
mod tools;
mod vocabulary;

pub use constraint::{ConstraintCompileError, ConstraintFactory, Grammar, ToolSpec};
pub use detokenizer::Detokenizer;
pub use gbnf::{GbnfError, to_lark as gbnf_to_lark};
pub use pretokenizer::PreTokenizer;
pub use quern_engine::TokenId;
pub use stop::{StopMatcher, StopStep, StopStrings};
pub use template::{ChatInput, ChatTemplate, TemplateError};
pub use tokenizer::{Special, Tokenizer, TokenizerError};
pub use tools::{ToolCallParser, ToolDelta};
pub use vocabulary::{TokenKind, Vocabulary};
