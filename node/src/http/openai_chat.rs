//! The shapes of `/v1/chat/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::{Content, Strings, ToolChoiceField, Unserved};
use super::logprobs::ChatLogprobs;
use super::openai::{StreamOptions, Usage};

/// `POST /v1/chat/completions`. vLLM's additions stand last.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: Option<String>,
    pub(super) messages: Vec<ChatMessageField>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
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
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<i64>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) tools: Option<Vec<ToolField>>,
    pub(super) tool_choice: Option<ToolChoiceField>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) user: Option<String>,
    pub(super) modalities: Option<Vec<String>>,

    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) priority: Option<i64>,
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    pub(super) guided_json: Option<Value>,
    pub(super) guided_regex: Option<String>,
    pub(super) guided_grammar: Option<String>,
    pub(super) guided_choice: Option<Vec<String>>,
    pub(super) structured_outputs: Option<StructuredOutputs>,

    pub(super) audio: Option<Unserved>,
    pub(super) prediction: Option<Unserved>,
    pub(super) functions: Option<Unserved>,
    pub(super) function_call: Option<Unserved>,
    pub(super) web_search_options: Option<Unserved>,
    pub(super) best_of: Option<Unserved>,
    pub(super) use_beam_search: Option<bool>,
    pub(super) prompt_logprobs: Option<Unserved>,
    pub(super) chat_template: Option<Unserved>,
    pub(super) suffix: Option<Unserved>,
    pub(super) echo: Option<bool>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ChatMessageField {
    pub(super) role: String,
    pub(super) content: Option<Content>,
    pub(super) name: Option<String>,
    pub(super) tool_calls: Option<Vec<ToolCallField>>,
    pub(super) tool_call_id: Option<String>,
    pub(super) reasoning_content: Option<String>,
}

/// A call that an assistant made earlier.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ToolCallField {
    pub(super) id: Option<String>,
    pub(super) function: FunctionCallField,
}

/// Its name and its arguments, which are JSON in a string.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct FunctionCallField {
    pub(super) name: String,
    pub(super) arguments: Option<String>,
}

/// A tool that may be called.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ToolField {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) function: FunctionField,
}

/// A function that may be called.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct FunctionField {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) parameters: Option<Value>,
}

/// `response_format`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) json_schema: Option<JsonSchemaField>,
}

/// `response_format.json_schema`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct JsonSchemaField {
    pub(super) schema: Option<Value>,
}

/// vLLM's `structured_outputs`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct StructuredOutputs {
    pub(super) json: Option<Value>,
    pub(super) regex: Option<String>,
    pub(super) grammar: Option<String>,
    pub(super) choice: Option<Vec<String>>,
    pub(super) json_object: Option<bool>,
    pub(super) structural_tag: Option<Unserved>,
}

/// A whole answer.
#[derive(Debug, Serialize)]
pub(super) struct ChatCompletion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<ChatChoice>,
    pub(super) usage: Usage,
    pub(super) system_fingerprint: &'a str,
}

/// One of its choices.
#[derive(Debug, Serialize)]
pub(super) struct ChatChoice {
    pub(super) index: usize,
    pub(super) message: AnswerMessage,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: &'static str,
}

/// What the assistant said.
#[derive(Debug, Serialize)]
pub(super) struct AnswerMessage {
    pub(super) role: &'static str,
    pub(super) content: Option<String>,
    pub(super) refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<AnswerToolCall>,
}

/// A call that the assistant wants made.
#[derive(Debug, Serialize)]
pub(super) struct AnswerToolCall {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: AnswerFunction,
}

/// The function and its arguments, JSON in a string.
#[derive(Debug, Serialize)]
pub(super) struct AnswerFunction {
    pub(super) name: String,
    pub(super) arguments: String,
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize)]
pub(super) struct ChatChunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'a str,
    pub(super) choices: &'a [ChunkChoice<'a>],
    /// Absent, or null until the last chunk, as `include_usage` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

/// What is new in one choice.
#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice<'a> {
    pub(super) index: usize,
    pub(super) delta: ChunkDelta<'a>,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// The new part of a message.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ChunkToolCall<'a>>,
}

/// The new part of a call: its id and name at first, then arguments.
#[derive(Debug, Serialize)]
pub(super) struct ChunkToolCall<'a> {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: ChunkFunction<'a>,
}

/// The new part of a function call.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChunkFunction<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}
