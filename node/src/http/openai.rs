//! The shapes that all endpoints share, and those of the small ones.

use serde::{Deserialize, Serialize};

use super::fields::{Prompts, Unserved};
use super::openai_chat::{ChatMessageField, ToolField};

/// `{"error": …}`.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody {
    pub(super) error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize)]
pub(super) struct ErrorObject {
    pub(super) message: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
}

/// Tokens that were read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptDetails,
}

/// Where prompt tokens came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

/// `{"object": "list", "data": […]}`.
#[derive(Debug, Serialize)]
pub(super) struct List<T> {
    pub(super) object: &'static str,
    pub(super) data: Vec<T>,
}

/// An entry of `/v1/models`, with vLLM's additions.
#[derive(Debug, Serialize)]
pub(super) struct ModelObject {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) owned_by: &'static str,
    pub(super) root: String,
    pub(super) parent: Option<String>,
    pub(super) max_model_len: usize,
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// `POST /v1/embeddings`.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingRequest {
    pub(super) model: Option<String>,
    pub(super) input: Prompts,
    pub(super) encoding_format: Option<String>,
    pub(super) dimensions: Option<usize>,
    pub(super) pooling: Option<String>,
    pub(super) user: Option<String>,
    pub(super) priority: Option<i64>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
pub(super) struct EmbeddingResponse {
    pub(super) object: &'static str,
    pub(super) data: Vec<EmbeddingObject>,
    pub(super) model: String,
    pub(super) usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize)]
pub(super) struct EmbeddingObject {
    pub(super) object: &'static str,
    pub(super) index: usize,
    pub(super) embedding: Vector,
}

/// A vector as numbers, or as little-endian f32 in base64.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Tokens that were read.
#[derive(Debug, Serialize)]
pub(super) struct EmbeddingUsage {
    pub(super) prompt_tokens: usize,
    pub(super) total_tokens: usize,
}

/// `POST /tokenize`: a prompt or messages.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizeRequest {
    pub(super) model: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) messages: Option<Vec<ChatMessageField>>,
    pub(super) tools: Option<Vec<ToolField>>,
    pub(super) add_generation_prompt: Option<bool>,
    pub(super) return_token_strs: Option<bool>,
    pub(super) chat_template: Option<Unserved>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
pub(super) struct TokenizeResponse {
    pub(super) count: usize,
    pub(super) max_model_len: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) token_strs: Option<Vec<String>>,
}

/// `POST /detokenize`.
#[derive(Debug, Deserialize)]
pub(super) struct DetokenizeRequest {
    pub(super) model: Option<String>,
    pub(super) tokens: Vec<u32>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
pub(super) struct DetokenizeResponse {
    pub(super) prompt: String,
}
