//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use quern_text::ChatInput;

use super::chat_tools;
use super::openai::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use super::params;
use super::reply::Problem;
use super::route::Front;
use crate::serving::prompt;

pub(super) async fn tokenize(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TokenizeResponse>, Problem> {
    let received = front.receive(&headers, body).await?;
    let request: TokenizeRequest = received.parse()?;
    params::refuse_unserved(&[("chat_template", request.chat_template.is_some())])?;
    let model = front.text_model(request.model.as_deref())?;
    let tokens = match (request.prompt, &request.messages) {
        (Some(text), None) => prompt::from_text(model, text).await?,
        (None, Some(messages)) => {
            let tools = request.tools.as_deref().map(chat_tools::tools).transpose()?;
            let input = ChatInput {
                messages: chat_tools::messages(messages)?,
                tools,
                add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                extra: serde_json::Map::new(),
            };
            prompt::from_chat(model, input).await?
        }
        _ => return Err(Problem::field("prompt", "give either a prompt or messages")),
    };
    let token_strs = (request.return_token_strs == Some(true)).then(|| {
        let text = |&token| String::from_utf8_lossy(model.tokenizer.token_bytes(token)).into_owned();
        tokens.iter().map(text).collect()
    });
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len: model.max_sequence_len,
        tokens: tokens.to_vec(),
        token_strs,
    }))
}

pub(super) async fn detokenize(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DetokenizeResponse>, Problem> {
    let received = front.receive(&headers, body).await?;
    let request: DetokenizeRequest = received.parse()?;
    let model = front.text_model(request.model.as_deref())?;
    let tokens = match request.tokens.is_empty() {
        true => Arc::from([]),
        false => prompt::from_tokens(model, request.tokens)?,
    };
    Ok(Json(DetokenizeResponse { prompt: model.tokenizer.decode(&tokens, false) }))
}
