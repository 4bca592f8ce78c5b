//! One choice: tokens in, text, tool calls and an end out.
//!
//! A token goes through the detokeniser, then the stop strings, then, where
//! tools are offered, the parser of tool calls. Each stage may hold text back
//! that it is not sure of; the end lets it go.

use std::sync::Arc;

use quern_engine::TokenId;
use quern_scheduler::request::{FinishReason, TokenLogprobs};
use quern_text::{Detokenizer, StopMatcher, StopStrings, Tokenizer, ToolCallParser, ToolDelta};

/// Why a choice ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or string, or a complete grammar.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
    /// It wants tools called.
    ToolCalls,
}

/// What is new in a choice. All parts may be empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Text of the answer.
    pub content: String,
    /// Pieces of tool calls.
    pub calls: Vec<CallDelta>,
    /// Tokens with their logprobs, where they were asked for. A token's text
    /// may come later than the token.
    pub tokens: Vec<TokenInfo>,
}

/// A piece of a tool call: its name at first, then its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallDelta {
    /// Which call of the choice, from 0.
    pub index: usize,
    /// Only in a call's first piece.
    pub name: Option<String>,
    /// JSON text, to be put together.
    pub arguments: String,
}

/// A token and its logprobs.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenInfo {
    /// Its number.
    pub token: TokenId,
    /// Its logprob and the likeliest others.
    pub logprobs: TokenLogprobs,
}

impl Delta {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty() && self.tokens.is_empty()
    }
}

/// The stages that one choice's tokens go through.
pub(super) struct Stages {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    tools: Option<ToolCallParser>,
    any_call: bool,
}

impl Stages {
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        stop: &StopStrings,
        tools: Option<ToolCallParser>,
    ) -> Stages {
        Stages {
            detokenizer: Detokenizer::new(tokenizer, true),
            stop: stop.matcher(),
            tools,
            any_call: false,
        }
    }

    /// Takes a token; says whether a stop string ended the choice.
    pub(super) fn token(&mut self, token: TokenId, logprobs: Option<Box<TokenLogprobs>>) -> (Delta, bool) {
        let piece = self.detokenizer.push(token);
        let step = self.stop.push(&piece);
        let mut delta = Delta::default();
        delta.tokens.extend(logprobs.map(|logprobs| TokenInfo { token, logprobs: *logprobs }));
        self.text(step.text, &mut delta);
        let stopped = step.matched.is_some();
        if stopped {
            self.end_tools(&mut delta);
        }
        (delta, stopped)
    }

    /// Lets go what was held back.
    pub(super) fn finish(&mut self) -> Delta {
        let rest = self.detokenizer.finish();
        let step = self.stop.push(&rest);
        let mut delta = Delta::default();
        self.text(step.text, &mut delta);
        if step.matched.is_none() {
            let held = self.stop.finish();
            self.text(held, &mut delta);
        }
        self.end_tools(&mut delta);
        delta
    }

    /// What the end is called, once all text is through.
    pub(super) fn reason(&self, reason: FinishReason) -> Finish {
        match reason {
            FinishReason::Stop if self.any_call => Finish::ToolCalls,
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        }
    }

    fn text(&mut self, text: String, delta: &mut Delta) {
        if text.is_empty() {
            return;
        }
        match &mut self.tools {
            None if delta.content.is_empty() => delta.content = text,
            None => delta.content.push_str(&text),
            Some(parser) => {
                let pieces = parser.push(&text);
                self.pieces(pieces, delta);
            }
        }
    }

    fn end_tools(&mut self, delta: &mut Delta) {
        if let Some(parser) = &mut self.tools {
            let pieces = parser.finish();
            self.pieces(pieces, delta);
        }
    }

    fn pieces(&mut self, pieces: Vec<ToolDelta>, delta: &mut Delta) {
        for piece in pieces {
            match piece {
                ToolDelta::Text(text) => delta.content.push_str(&text),
                ToolDelta::CallStart { index, name } => {
                    self.any_call = true;
                    delta.calls.push(CallDelta { index, name: Some(name), arguments: String::new() });
                }
                ToolDelta::Arguments { index, fragment } => match delta.calls.last_mut() {
                    Some(call) if call.index == index => call.arguments.push_str(&fragment),
                    _ => delta.calls.push(CallDelta { index, name: None, arguments: fragment }),
                },
                ToolDelta::CallEnd { .. } => {}
            }
        }
    }
}
