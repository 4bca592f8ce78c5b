//! The shapes of answers, as far as they are measured: completions, whole or in chunks, and labels.
//!
//! Unknown fields are ignored; a field of another type than OpenAI's makes an answer a broken one.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// A completion, or a chunk of one.
#[derive(Deserialize)]
pub(crate) struct Completion {
    pub(crate) choices: Option<Vec<Choice>>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<Value>,
}

/// One answer of a completion.
#[derive(Deserialize)]
pub(crate) struct Choice {
    /// In a chunk of a chat.
    pub(crate) delta: Option<Said>,
    /// In a whole chat.
    pub(crate) message: Option<Said>,
    /// In a plain completion.
    pub(crate) text: Option<String>,
    pub(crate) finish_reason: Option<String>,
}

/// What a chat's model says.
#[derive(Deserialize, Default)]
pub(crate) struct Said {
    pub(crate) content: Option<String>,
    pub(crate) reasoning_content: Option<String>,
    pub(crate) tool_calls: Option<Vec<IgnoredAny>>,
}

/// Tokens as the server counts them.
#[derive(Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
}

/// The answer to a classification.
#[derive(Deserialize)]
pub(crate) struct Labels {
    pub(crate) data: Option<Vec<Label>>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<Value>,
}

/// One text's label, if it has one.
#[derive(Deserialize)]
pub(crate) struct Label {
    pub(crate) label: Option<String>,
}
