//! What one request gave: its answer with the time of each token, or the kind of its failure.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::answer::{Choice, Usage};

/// Why a request failed. These are the kinds that a run counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The request could not be made: a header that HTTP does not allow, most likely.
    Unsendable,
    /// No connection.
    Connect,
    /// What came is no HTTP.
    BrokenHttp,
    /// A status other than 200.
    Status(u16),
    /// The connection closed before the stream said that it was done.
    ClosedMidStream,
    /// No byte for the workload's stall timeout.
    Stall,
    /// The whole request took longer than the workload allows.
    TooLong,
    /// What came is no event stream of completion chunks.
    BrokenSse,
    /// What came is no completion or list of labels as JSON, where one was asked for.
    BrokenJson,
    /// The server reported an error inside the answer.
    StreamError,
    /// An answer ended where it had to go on for the measurement to mean anything.
    EndedEarly,
}

impl Failure {
    /// Whether nobody answered at all: a server that is down or stuck.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Connect | Self::Stall | Self::TooLong)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsendable => f.write_str("unsendable"),
            Self::Connect => f.write_str("connect"),
            Self::BrokenHttp => f.write_str("broken HTTP"),
            Self::Status(code) => write!(f, "status {code}"),
            Self::ClosedMidStream => f.write_str("closed mid-stream"),
            Self::Stall => f.write_str("stall"),
            Self::TooLong => f.write_str("too long"),
            Self::BrokenSse => f.write_str("broken SSE"),
            Self::BrokenJson => f.write_str("broken JSON"),
            Self::StreamError => f.write_str("error in stream"),
            Self::EndedEarly => f.write_str("ended early"),
        }
    }
}

/// What one request gave. Instants are the client's.
#[derive(Debug, Clone)]
pub struct Reply {
    /// When the request was to be sent; latency counts from here.
    pub intended: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When each delta with content arrived.
    pub deltas: Vec<Instant>,
    /// When the stream ended, well or not.
    pub ended: Instant,
    /// The answer's text.
    pub text: String,
    /// Tokens of the prompt, as the server counts.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts.
    pub completion_tokens: Option<u64>,
    /// Why the server stopped.
    pub finish_reason: Option<String>,
    /// How it failed, with the message for people.
    pub failure: Option<(Failure, String)>,
}

impl Reply {
    /// A reply of which nothing has come yet.
    pub fn new(intended: Instant) -> Self {
        let now = Instant::now();
        Self {
            intended,
            sent: now,
            deltas: Vec::new(),
            ended: now,
            text: String::new(),
            prompt_tokens: None,
            completion_tokens: None,
            finish_reason: None,
            failure: None,
        }
    }

    /// Takes the server's counts of tokens, where it gives them.
    pub(crate) fn take_usage(&mut self, usage: Option<Usage>) {
        if let Some(usage) = usage {
            (self.prompt_tokens, self.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
        }
    }

    /// Takes a choice's text and end; true if it had content.
    pub(crate) fn take_choice(&mut self, choice: Choice) -> bool {
        if choice.finish_reason.is_some() {
            self.finish_reason = choice.finish_reason;
        }
        // Text of a chat, of a plain completion, of a model that thinks aloud; a tool call's arguments.
        let said = choice.delta.or(choice.message).unwrap_or_default();
        let mut has_content = said.tool_calls.is_some();
        for text in [said.content, choice.text, said.reasoning_content].into_iter().flatten() {
            self.text.push_str(&text);
            has_content |= !text.is_empty();
        }
        has_content
    }

    /// Tokens of the answer: the server's count if it gives one, deltas otherwise.
    pub fn num_tokens(&self) -> u64 {
        self.completion_tokens.unwrap_or(self.deltas.len() as u64)
    }

    /// From the intended time to the first content.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.deltas.first().map(|first| first.duration_since(self.intended))
    }

    /// Times between one delta and the next.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.deltas.windows(2).map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Mean time a token after the first.
    pub fn time_per_token(&self) -> Option<Duration> {
        let (first, last) = (self.deltas.first()?, self.deltas.last()?);
        let after_first = u32::try_from(self.num_tokens().checked_sub(1)?).ok()?;
        (after_first > 0).then(|| last.duration_since(*first) / after_first)
    }
}
