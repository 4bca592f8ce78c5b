//! Tool calls in an answer: Qwen writes `<tool_call>{"name": …, "arguments":
//! {…}}</tool_call>` into its text.
//!
//! States and what moves them: `Text` → `Call` at an opening tag; `Call` → `Text`
//! at a closing tag after a whole call, or where the text can no longer become
//! one. A call is given out once it is known to be one, because text that has
//! been given out as a call cannot be taken back: what turns out to be no call
//! comes back as the text that it was.

use serde::Deserialize;
use serde_json::value::RawValue;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolDelta {
    /// Text outside of calls.
    Text(String),
    /// A call begins.
    CallStart {
        /// The call's place in the answer, from 0.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// The next piece of a call's arguments, JSON as the model wrote it.
    Arguments {
        /// The call's place in the answer.
        index: usize,
        /// The piece.
        fragment: String,
    },
    /// A call is complete.
    CallEnd {
        /// The call's place in the answer.
        index: usize,
    },
}

/// Takes an answer's text in pieces and finds the calls in it. The result does
/// not depend on how the text was cut, but for where texts are parted.
#[derive(Debug, Clone, Default)]
pub struct ToolCallParser {
    /// Text that has not been given out: in a call, all of it from the opening
    /// tag on; else what may be the beginning of an opening tag.
    held: String,
    call: Option<CallScan>,
    num_calls: usize,
}

/// How far a possible call has been read.
#[derive(Debug, Clone, Default)]
struct CallScan {
    /// Bytes of `held` that have been looked at.
    at: usize,
    /// Brackets and braces that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Where the JSON text ends, once its last brace has been seen.
    json_end: Option<usize>,
}

enum Verdict {
    NeedsMore,
    NoCall,
    /// The closing tag ends here.
    Complete {
        json_end: usize,
        end: usize,
    },
}

/// What a call must hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl ToolCallParser {
    /// A parser at the beginning of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<ToolDelta> {
        self.held.push_str(piece);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// What is left at the end of the answer: an unfinished call is text.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        let mut out = Vec::new();
        while self.call.is_some() {
            self.give_up(&mut out);
            while self.step(&mut out) {}
        }
        text(&mut out, &std::mem::take(&mut self.held));
        out
    }

    /// How many calls have been found.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// One move; `false` when more text is needed.
    fn step(&mut self, out: &mut Vec<ToolDelta>) -> bool {
        let Some(scan) = &mut self.call else {
            return self.find_opening(out);
        };
        match scan.advance(&self.held) {
            Verdict::NeedsMore => false,
            Verdict::NoCall => {
                self.give_up(out);
                true
            }
            Verdict::Complete { json_end, end } => {
                if self.give_call(&self.held[OPEN.len()..json_end], out) {
                    self.num_calls += 1;
                    self.call = None;
                    self.held.drain(..end);
                } else {
                    self.give_up(out);
                }
                true
            }
        }
    }

    fn find_opening(&mut self, out: &mut Vec<ToolDelta>) -> bool {
        if let Some(at) = self.held.find(OPEN) {
            let rest = self.held.split_off(at);
            text(out, &std::mem::replace(&mut self.held, rest));
            self.call = Some(CallScan { at: OPEN.len(), ..CallScan::default() });
            return true;
        }
        let possible = (1..OPEN.len()).rev();
        let possible = possible.filter(|len| self.held.ends_with(&OPEN[..*len]));
        let rest = self.held.len() - possible.take(1).next().unwrap_or(0);
        let rest = self.held.split_off(rest);
        text(out, &std::mem::replace(&mut self.held, rest));
        false
    }

    /// The opening tag was only text; what follows it is looked at afresh.
    fn give_up(&mut self, out: &mut Vec<ToolDelta>) {
        self.call = None;
        text(out, OPEN);
        self.held.drain(..OPEN.len());
    }

    fn give_call(&self, json: &str, out: &mut Vec<ToolDelta>) -> bool {
        let Ok(call) = serde_json::from_str::<Call>(json) else {
            return false;
        };
        let arguments = call.arguments.map_or("{}", RawValue::get);
        if !arguments.starts_with('{') {
            return false;
        }
        let index = self.num_calls;
        out.push(ToolDelta::CallStart { index, name: call.name });
        out.push(ToolDelta::Arguments { index, fragment: arguments.to_owned() });
        out.push(ToolDelta::CallEnd { index });
        true
    }
}

impl CallScan {
    /// Reads on in `held`. Only brackets and strings are followed, and what no
    /// JSON text may hold ends the attempt at once; the whole is checked when
    /// its closing tag has come.
    fn advance(&mut self, held: &str) -> Verdict {
        while self.json_end.is_none() {
            let Some(byte) = held.as_bytes().get(self.at).copied() else {
                return Verdict::NeedsMore;
            };
            self.at += 1;
            if !self.allows(byte) {
                return Verdict::NoCall;
            }
        }
        let json_end = self.json_end.expect("the loop ends when it is known");
        let rest = held[json_end..].trim_start();
        if rest.starts_with(CLOSE) {
            let end = held.len() - rest.len() + CLOSE.len();
            Verdict::Complete { json_end, end }
        } else if CLOSE.starts_with(rest) {
            Verdict::NeedsMore
        } else {
            Verdict::NoCall
        }
    }

    fn allows(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return byte >= b' ';
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return true,
            b'{' => self.depth += 1,
            b'[' if self.depth > 0 => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.json_end = Some(self.at);
                }
            }
            b'"' if self.depth > 0 => self.in_string = true,
            b',' | b':' | b'+' | b'-' | b'.' => return self.depth > 0,
            _ => return self.depth > 0 && byte.is_ascii_alphanumeric(),
        }
        true
    }
}

/// Adds text, to the text before it if there is any.
fn text(out: &mut Vec<ToolDelta>, more: &str) {
    match out.last_mut() {
        _ if more.is_empty() => {}
        Some(ToolDelta::Text(before)) => before.push_str(more),
        _ => out.push(ToolDelta::Text(more.to_owned())),
    }
}

#[cfg(test)]
mod tests;
