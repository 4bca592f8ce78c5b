//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quern_scheduler::request::Pooling;

use super::admission::Wish;
use super::completions::{checked_items, tokenised};
use super::openai::{EmbeddingObject, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, Vector};
use super::reply::Problem;
use super::route::{Context, Front};
use crate::serving::{self, Model};

pub(super) async fn handle(
    State(front): State<Arc<Front>>,
    Extension(context): Extension<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EmbeddingResponse>, Problem> {
    let received = front.receive_work(&headers, body).await?;
    let request: EmbeddingRequest = received.parse()?;
    let mut model = front.model(request.model.as_deref()).await?;
    let pooling = pooling(&request, &model)?;
    let base64 = wants_base64(&request)?;
    if let Some(dimensions) = request.dimensions.filter(|&dimensions| dimensions != model.embedding_size) {
        let message =
            format!("this model's embeddings have {} dimensions, not {dimensions}", model.embedding_size);
        return Err(Problem::field("dimensions", message));
    }
    let items = checked_items(request.input, "input", &front.limits)?;
    let mut terms =
        front.terms(&context, &headers, request.user.as_deref(), request.priority, items.len())?;
    // An embedding has no new tokens, and a policy may grant no less than one.
    let wish = Wish { body_bytes: received.len(), max_new: Some(1), headers: &headers };
    front.admit(&mut model, &mut terms, &wish).await?;
    let places = front.reserve(&model, items.len())?;

    let prompts = tokenised(&model, items, "input").await?;
    drop(received);
    for prompt in &prompts {
        model.fits(prompt)?;
    }
    let embedded = serving::embed(&model, places, terms, prompts, pooling).await?;
    let data = embedded.vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: if base64 { Vector::Base64(encode(&vector)) } else { Vector::Float(vector) },
    });
    Ok(Json(EmbeddingResponse {
        object: "list",
        data: data.collect(),
        model: model.model_id().to_owned(),
        usage: EmbeddingUsage { prompt_tokens: embedded.prompt_tokens, total_tokens: embedded.prompt_tokens },
    }))
}

fn pooling(request: &EmbeddingRequest, model: &Model) -> Result<Pooling, Problem> {
    match request.pooling.as_deref() {
        None => Ok(model.defaults.pooling),
        Some("last") => Ok(Pooling::Last),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => Err(Problem::field("pooling", format!("`{other}` is neither last nor mean"))),
    }
}

fn wants_base64(request: &EmbeddingRequest) -> Result<bool, Problem> {
    match request.encoding_format.as_deref() {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => {
            Err(Problem::field("encoding_format", format!("`{other}` is neither float nor base64")))
        }
    }
}

/// Little-endian f32, as OpenAI's clients unpack it.
fn encode(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64.encode(bytes)
}
