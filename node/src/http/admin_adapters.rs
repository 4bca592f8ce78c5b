//! The operators' endpoints for adapters, in vLLM's shapes and with a little more:
//! what there is, loading, loading anew in place, and unloading.
//!
//! Whoever changes one may say which generation of it they mean: somebody else's
//! change in between is then a conflict and not lost.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use quern_adapters::{Fault, Task};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Node;
use super::openai::{ErrorBody, ErrorObject};
use crate::adapters::{Error, Order, Origin, Registry, Status, Version};

/// `POST /v1/load_lora_adapter`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadOrder {
    lora_name: String,
    lora_path: PathBuf,
    /// Replace what has the name; requests that have begun end with what they began with.
    #[serde(default)]
    load_inplace: bool,
    /// The generation that must have the name; 0 is none.
    expected_generation: Option<u64>,
    /// Keep it in memory and on engines before others.
    pin: Option<bool>,
}

/// `POST /v1/unload_lora_adapter`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnloadOrder {
    lora_name: String,
    /// vLLM's; the name says it.
    #[serde(default, rename = "lora_int_id")]
    _lora_int_id: Option<i64>,
    expected_generation: Option<u64>,
}

/// What became of an order.
#[derive(Serialize)]
struct Done {
    status: &'static str,
    lora_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<usize>,
}

/// `GET /v1/lora_adapters`
#[derive(Serialize)]
struct All {
    base_model: String,
    adapters: Vec<Adapter>,
    /// What lies in the watched folder and is not served.
    failed: Vec<Failed>,
    /// Adapters on engines, counted on each, and their bound on one.
    resident: usize,
    max_resident: usize,
    /// Bytes of copies in memory, and their bound.
    memory_bytes: u64,
    max_memory_bytes: u64,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    path: String,
    generation: u64,
    loaded_at: u64,
    task: &'static str,
    rank: u64,
    labels: Option<usize>,
    base_model_name: Option<String>,
    /// What it takes on an engine.
    size_bytes: u64,
    /// `device`, `memory` or `disk`.
    tier: &'static str,
    pinned: bool,
    /// Requests that are served with it.
    in_use: usize,
    /// `configuration`, `folder` or `operator`.
    origin: &'static str,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct Failed {
    name: String,
    error: String,
}

pub(super) fn router() -> Router<Arc<Node>> {
    Router::new()
        .route("/v1/lora_adapters", get(list))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
}

async fn list(State(node): State<Arc<Node>>) -> Result<Response, Response> {
    let registry = registry(&node)?;
    let failed = registry.failed().into_iter().map(|(name, error)| Failed { name, error });
    Ok(Json(All {
        base_model: registry.base().model_id.clone(),
        adapters: registry.list().iter().map(adapter).collect(),
        failed: failed.collect(),
        resident: registry.in_work().num_resident,
        max_resident: registry.settings().max_resident,
        memory_bytes: registry.memory_bytes(),
        max_memory_bytes: registry.settings().max_memory_bytes,
    })
    .into_response())
}

async fn load(State(node): State<Arc<Node>>, body: Bytes) -> Result<Response, Response> {
    let registry = registry(&node)?;
    let order: LoadOrder = parse(&body, "lora_name and lora_path")?;
    let order = Order {
        name: order.lora_name,
        path: order.lora_path,
        in_place: order.load_inplace,
        expected_generation: order.expected_generation,
        pin: order.pin,
        origin: Origin::Operator,
    };
    let loaded: Arc<Version> = registry.load(order).await.map_err(|error| told(&error))?;
    let generation = Some(loaded.generation);
    Ok(Json(Done { status: "loaded", lora_name: loaded.name.clone(), generation, in_use: None })
        .into_response())
}

async fn unload(State(node): State<Arc<Node>>, body: Bytes) -> Result<Response, Response> {
    let registry = registry(&node)?;
    let order: UnloadOrder = parse(&body, "lora_name")?;
    let unloaded = registry.unload(&order.lora_name, order.expected_generation);
    let drained = unloaded.map_err(|error| told(&error))?;
    let timeout = registry.settings().drain_timeout;
    let is_drained = tokio::time::timeout(timeout, drained.wait()).await.is_ok();
    let (code, status) =
        if is_drained { (StatusCode::OK, "unloaded") } else { (StatusCode::ACCEPTED, "draining") };
    let in_use = (!is_drained).then(|| drained.in_use());
    Ok((code, Json(Done { status, lora_name: order.lora_name, generation: None, in_use })).into_response())
}

fn registry(node: &Node) -> Result<Registry, Response> {
    let Some(model) = node.models().first() else {
        let why = "the model is being loaded".to_owned();
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "loading", why));
    };
    model.adapters.clone().ok_or_else(|| {
        refusal(StatusCode::NOT_FOUND, "no_adapters", "this model serves no adapters".to_owned())
    })
}

fn parse<T: DeserializeOwned>(body: &Bytes, needed: &str) -> Result<T, Response> {
    serde_json::from_slice(body).map_err(|error| {
        let why = format!("send a JSON object with {needed}: {error}");
        refusal(StatusCode::BAD_REQUEST, "invalid_body", why)
    })
}

fn adapter(status: &Status) -> Adapter {
    let version = &status.version;
    Adapter {
        name: version.name.clone(),
        path: version.found.path.display().to_string(),
        generation: version.generation,
        loaded_at: version.created,
        task: match version.found.task {
            Task::CausalLm => "causal_lm",
            Task::SequenceClassification => "sequence_classification",
            Task::FeatureExtraction => "feature_extraction",
        },
        rank: version.found.rank,
        labels: version.found.head.as_ref().map(|head| head.labels.len()),
        base_model_name: version.found.base_name.clone(),
        size_bytes: version.found.size_bytes,
        tier: version.tier(),
        pinned: version.is_pinned(),
        in_use: version.in_use(),
        origin: match status.origin {
            Origin::Configuration => "configuration",
            Origin::Folder => "folder",
            Origin::Operator => "operator",
        },
        last_error: status.last_error.clone(),
    }
}

/// Each cause has its code.
fn told(error: &Error) -> Response {
    use StatusCode as S;
    let (status, code) = match error {
        Error::BadName(_) => (S::BAD_REQUEST, "bad_name"),
        Error::IsTheBase(_) => (S::BAD_REQUEST, "name_of_base_model"),
        Error::NotFound(_) => (S::BAD_REQUEST, "no_such_path"),
        Error::Unsound(error) => (S::BAD_REQUEST, fault(&error.fault)),
        Error::OtherBase { .. } => (S::BAD_REQUEST, "other_base_model"),
        Error::Exists(_) => (S::BAD_REQUEST, "already_loaded"),
        Error::TooLarge { .. } => (S::BAD_REQUEST, "too_large"),
        Error::Unknown(_) => (S::NOT_FOUND, "not_loaded"),
        Error::Changing(_) => (S::CONFLICT, "files_change"),
        Error::Generation { .. } => (S::CONFLICT, "generation_mismatch"),
        Error::Busy(_) => (S::CONFLICT, "being_changed"),
        Error::TooMany { .. } => (S::CONFLICT, "too_many_adapters"),
        Error::TooManyPinned { .. } => (S::CONFLICT, "too_many_pinned"),
        Error::Unusable { .. } => (S::CONFLICT, "files_changed"),
        Error::Lost(_) => (S::INTERNAL_SERVER_ERROR, "lost"),
    };
    refusal(status, code, error.to_string())
}

fn fault(fault: &Fault) -> &'static str {
    match fault {
        Fault::NotAnAdapter | Fault::NotALora { .. } => "no_adapter",
        Fault::NoConfig => "no_config",
        Fault::NoWeights { .. } => "no_weights",
        Fault::BadJson { .. } | Fault::FileTooLarge { .. } | Fault::BadNumber { .. } => "bad_config",
        Fault::Unsupported { .. } => "unsupported",
        Fault::Safetensors(_) | Fault::Gguf(_) | Fault::BadType { .. } => "bad_weights",
        Fault::NotFinite { .. } => "not_finite",
        Fault::NoHead | Fault::WrongLabels { .. } | Fault::BadLabels { .. } => "bad_labels",
        Fault::Io(_) | Fault::File { .. } => "unreadable",
        _ => "config_and_tensors_disagree",
    }
}

fn refusal(status: StatusCode, code: &'static str, message: String) -> Response {
    tracing::warn!(status = status.as_u16(), code, error = message, "order for an adapter refused");
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let error = ErrorObject { message, kind, param: None, code: Some(code) };
    (status, Json(ErrorBody { error })).into_response()
}
