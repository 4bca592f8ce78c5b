//! The shapes of `/v1/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{Prompts, Strings, Unserved};
use super::logprobs::TextLogprobs;
use super::openai::{StreamOptions, Usage};
use super::openai_chat::{ResponseFormat, StructuredOutputs};

/// `POST /v1/completions`. vLLM's additions stand last.
#[derive(Debug, Deserialize)]
pub(super) struct TextRequest {
    pub(super) model: Option<String>,
    pub(super) prompt: Prompts,
    pub(super) max_tokens: Option<i64>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    pub(super) stop: Option<Strings>,
    pub(super) n: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) logprobs: Option<i64>,
    pub(super) user: Option<String>,

    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) priority: Option<i64>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) guided_json: Option<Value>,
    pub(super) guided_regex: Option<String>,
    pub(super) guided_grammar: Option<String>,
    pub(super) guided_choice: Option<Vec<String>>,
    pub(super) structured_outputs: Option<StructuredOutputs>,

    pub(super) best_of: Option<i64>,
    pub(super) echo: Option<bool>,
    pub(super) suffix: Option<Unserved>,
    pub(super) use_beam_search: Option<bool>,
    pub(super) prompt_logprobs: Option<Unserved>,
    pub(super) prompt_embeds: Option<Unserved>,
}

/// A whole answer, or a piece of a streamed one.
#[derive(Debug, Serialize)]
pub(super) struct TextCompletion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: &'a [TextChoice<'a>],
    /// Absent, or null until the last chunk, as `include_usage` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    pub(super) system_fingerprint: &'a str,
}

/// One of its choices.
#[derive(Debug, Serialize)]
pub(super) struct TextChoice<'a> {
    pub(super) text: &'a str,
    pub(super) index: usize,
    pub(super) logprobs: Option<TextLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}
