//! A conversation to tokens, so that a client cannot write control tokens.
//!
//! A template puts its own text and the client's into one string, and whoever
//! then looks for control tokens in it cannot tell who wrote them. So before
//! rendering, certain characters in everything that the client sent are replaced
//! by stand-ins: private-use characters that occur nowhere in the conversation
//! or the template. The characters are chosen so that every control token of
//! the vocabulary holds at least one of them ("|" does for the whole Qwen
//! family). A control token in the rendered text therefore has at least that
//! character from the template; none can be made of the client's characters
//! alone, be it in one string or in several that the template puts together.
//! After the control tokens have been found the stand-ins are turned back, and
//! what lies between is encoded as plain text.
//!
//! A stand-in has the length of what it replaces in characters, is no white
//! space and has no case, so templates that trim, measure or split strings do
//! the same as without it. Ordinary text gives the same tokens as rendering and
//! then parsing.

use crate::special::Fragment;
use crate::template::{ChatInput, ChatTemplate, TemplateError};
use crate::tokenizer::{Special, Tokenizer};
use quern_engine::TokenId;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// The last private-use plane, which no script or font of note uses.
const CANDIDATES: RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// Characters that control tokens are told apart by, the most telling first.
const PREFERRED: [char; 10] = ['|', '｜', '▁', '<', '[', '>', ']', '_', '/', '@'];

/// Whether `c` may be a stand-in.
pub(crate) fn is_candidate(c: char) -> bool {
    CANDIDATES.contains(&c)
}

impl ChatTemplate {
    /// The tokens of a conversation. Control tokens come from the template
    /// alone; those that a client wrote into a message, a tool or a variable
    /// are encoded as the text that they are.
    ///
    /// # Errors
    /// [`TemplateError`] when the template fails or refuses.
    pub fn encode_chat(
        &self,
        tokenizer: &Tokenizer,
        input: &ChatInput,
    ) -> Result<Vec<TokenId>, TemplateError> {
        let critical = critical_chars(tokenizer.special().control_texts());
        let stand_ins = StandIns::new(&critical, input, self.source())?;
        let text = self.render_guarded(input, &stand_ins)?;
        let mut tokens = Vec::with_capacity(text.len() / 3);
        if tokenizer.adds_bos() {
            let begins = |bos: &TokenId| text.as_bytes().starts_with(tokenizer.token_bytes(*bos));
            // Templates write the token themselves or leave it to the tokenizer.
            tokens.extend(tokenizer.bos().filter(|bos| !begins(bos)));
        }
        for fragment in tokenizer.special().partition(&text, true) {
            match fragment {
                Fragment::Token(id) => tokens.push(id),
                Fragment::Text(text) => {
                    let text = stand_ins.restore(text);
                    tokens.extend(tokenizer.encode(&text, Special::AsText)?);
                }
            }
        }
        Ok(tokens)
    }
}

/// A set of characters of which every text holds at least one.
fn critical_chars<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<char> {
    let mut uncovered: Vec<&str> = texts.collect();
    let mut chosen = Vec::new();
    for c in PREFERRED {
        let before = uncovered.len();
        uncovered.retain(|text| !text.contains(c));
        if uncovered.len() < before {
            chosen.push(c);
        }
    }
    while let Some(text) = uncovered.pop() {
        // A control token of letters only; rare, and its last letter will do.
        let c = text.chars().next_back().expect("special tokens are not empty");
        uncovered.retain(|text| !text.contains(c));
        chosen.push(c);
    }
    chosen
}

/// Which characters stand in for which, in one rendering.
pub(crate) struct StandIns {
    /// Critical character and its stand-in.
    pairs: Vec<(char, char)>,
}

impl StandIns {
    /// Chooses stand-ins that occur neither in `input` nor in `source`.
    fn new(critical: &[char], input: &ChatInput, source: &str) -> Result<Self, TemplateError> {
        let mut used = HashSet::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|c| is_candidate(*c)));
        note(source);
        visit(&input.messages, &mut note);
        if let Some(tools) = &input.tools {
            visit(tools, &mut note);
        }
        for (name, value) in &input.extra {
            note(name);
            visit(value, &mut note);
        }
        let mut free = CANDIDATES.filter(|c| !used.contains(c));
        let pairs = critical.iter().map(|c| Some((*c, free.next()?)));
        let pairs = pairs.collect::<Option<Vec<_>>>();
        Ok(Self { pairs: pairs.ok_or(TemplateError::NoStandIn)? })
    }

    /// A copy of `value` with stand-ins in all of its strings and keys.
    pub(crate) fn replace(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.replace_text(text)),
            Value::Array(items) => items.iter().map(|item| self.replace(item)).collect(),
            Value::Object(map) => {
                let entries = map.iter();
                let entries = entries.map(|(key, item)| (self.replace_text(key), self.replace(item)));
                Value::Object(entries.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn replace_text(&self, text: &str) -> String {
        let pair = |c| self.pairs.iter().find(|(from, _)| *from == c);
        text.chars().map(|c| pair(c).map_or(c, |(_, to)| *to)).collect()
    }

    fn restore(&self, text: &str) -> String {
        let pair = |c| self.pairs.iter().find(|(_, to)| *to == c);
        text.chars().map(|c| pair(c).map_or(c, |(from, _)| *from)).collect()
    }
}

/// Calls `each` with every string and key in `value`.
fn visit(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(items) => items.iter().for_each(|item| visit(item, each)),
        Value::Object(map) => {
            for (key, item) in map {
                each(key);
                visit(item, each);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests;
