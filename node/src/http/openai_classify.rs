//! The shapes of `/v1/classify`, which are vLLM's.

use serde::{Deserialize, Serialize};

use super::fields::{Prompts, Unserved};

/// `POST /v1/classify`. Our additions stand last.
#[derive(Debug, Deserialize)]
pub(super) struct ClassifyRequest {
    pub(super) model: Option<String>,
    pub(super) input: Option<Prompts>,
    pub(super) user: Option<String>,
    pub(super) priority: Option<i64>,

    pub(super) messages: Option<Unserved>,
    pub(super) truncate_prompt_tokens: Option<Unserved>,
    pub(super) activation: Option<bool>,
    pub(super) softmax: Option<bool>,
    pub(super) use_activation: Option<bool>,

    pub(super) top_k: Option<i64>,
    pub(super) abstain_below: Option<f32>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
pub(super) struct ClassifyResponse<'a> {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) data: Vec<ClassifyObject<'a>>,
    pub(super) usage: ClassifyUsage,
}

/// What became of one text.
#[derive(Debug, Serialize)]
pub(super) struct ClassifyObject<'a> {
    pub(super) index: usize,
    /// Null where no label is likely enough.
    pub(super) label: Option<&'a str>,
    pub(super) probs: Vec<f32>,
    pub(super) num_classes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top: Option<Vec<TopLabel<'a>>>,
}

/// One of the likeliest labels.
#[derive(Debug, Serialize)]
pub(super) struct TopLabel<'a> {
    pub(super) label: &'a str,
    pub(super) prob: f32,
}

/// Tokens that were read; none is written.
#[derive(Debug, Serialize)]
pub(super) struct ClassifyUsage {
    pub(super) prompt_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) prompt_tokens_details: Option<()>,
}
