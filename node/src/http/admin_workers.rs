//! The operators' endpoint for workers: how many there should be, who says so and
//! why, for people and for an outer autoscaler; and a number fixed by hand.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Deserializer, Serialize};

use super::Node;
use crate::workers::{Status, Trouble, WorkerStatus};

/// `/v1/autoscale`.
#[derive(Serialize)]
struct Autoscale {
    model: String,
    desired: u32,
    reason: String,
    /// `configuration`, `operator`, `request`, or `policy` with its place's name.
    wished_by: String,
    /// Whether an operator has fixed the number.
    fixed: bool,
    min: u32,
    max: u32,
    ready: u32,
    starting: u32,
    draining: u32,
    /// How long the last start took.
    start_ms: u64,
    /// Requests that wait for a worker to come.
    pending: usize,
    last_failure: Option<Failure>,
    workers: Vec<Worker>,
}

/// Why there was no worker.
#[derive(Serialize)]
struct Failure {
    reason: String,
    seconds_ago: f64,
    /// When it is tried again; null once a worker has come since.
    retry_in_seconds: Option<f64>,
}

/// One worker.
#[derive(Serialize)]
struct Worker {
    id: u32,
    state: &'static str,
    age_seconds: f64,
    /// Requests that it has not finished.
    inside: usize,
    running: usize,
    kv_used_tokens: usize,
    silence_seconds: Option<f64>,
}

/// `{"desired": N}` fixes the number of workers, `{"desired": null}` gives it back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(deserialize_with = "given")]
    desired: Option<u32>,
}

/// A field that may be null, but not missing.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    Option::deserialize(value)
}

/// Why nothing was changed.
#[derive(Serialize)]
struct NotDone {
    error: String,
}

pub(super) fn router() -> Router<Arc<Node>> {
    Router::new().route("/v1/autoscale", get(show).post(order))
}

async fn show(State(node): State<Arc<Node>>) -> Response {
    match node.models().first() {
        Some(model) => Json(told(&model.id, model.workers.status())).into_response(),
        None => refusal(StatusCode::SERVICE_UNAVAILABLE, "the model is being loaded"),
    }
}

async fn order(State(node): State<Arc<Node>>, body: Bytes) -> Response {
    let Some(model) = node.models().first() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the model is being loaded");
    };
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => {
            let why = format!("send {{\"desired\": N}}, or null to give the choice back: {error}");
            return refusal(StatusCode::BAD_REQUEST, &why);
        }
    };
    match model.workers.pin(order.desired) {
        Ok(()) => Json(told(&model.id, model.workers.status())).into_response(),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn told(model_id: &str, status: Status) -> Autoscale {
    Autoscale {
        model: model_id.to_owned(),
        desired: status.wish.desired,
        wished_by: status.wish.by.to_string(),
        reason: status.wish.reason,
        fixed: status.is_pinned,
        min: status.min,
        max: status.max,
        ready: status.ready,
        starting: status.starting,
        draining: status.draining,
        start_ms: status.start_took.as_millis() as u64,
        pending: status.pending,
        last_failure: status.trouble.map(|Trouble { why, ago, retry_in }| Failure {
            reason: why,
            seconds_ago: ago.as_secs_f64(),
            retry_in_seconds: retry_in.as_ref().map(Duration::as_secs_f64),
        }),
        workers: status.workers.iter().map(worker).collect(),
    }
}

fn worker(worker: &WorkerStatus) -> Worker {
    Worker {
        id: worker.id,
        state: worker.state,
        age_seconds: worker.age.as_secs_f64(),
        inside: worker.inside,
        running: worker.running,
        kv_used_tokens: worker.kv_used,
        silence_seconds: worker.silence.as_ref().map(Duration::as_secs_f64),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Json(NotDone { error: why.to_owned() })).into_response()
}
