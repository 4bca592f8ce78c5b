//! The operators' listener: health, readiness, metrics and draining.
//!
//! It has no keys: it is bound where only operators reach it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, SERVER};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;

use super::route::{server_header, unknown_url, wrong_method};
use super::{Node, Settings};
use super::{admin_adapters, admin_policies, admin_recording, admin_workers};
use crate::serving::Model;

/// The type that Prometheus scrapes.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

struct Admin {
    node: Arc<Node>,
    stuck_after: Duration,
}

/// `/health` and `/ready`: a word, and the reason when it is no.
#[derive(Serialize)]
struct Verdict {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `/admin/state`.
#[derive(Serialize)]
struct NodeState {
    uptime_seconds: f64,
    loading: bool,
    draining: bool,
    models: Vec<ModelState>,
}

/// What one model's workers hold together.
#[derive(Serialize)]
struct ModelState {
    id: String,
    queued: usize,
    waiting: usize,
    running: usize,
    kv_used_tokens: usize,
    kv_live_tokens: usize,
    kv_capacity_tokens: usize,
    /// How long the loop has had work without progress; null when it has ended.
    silence_seconds: Option<f64>,
}

pub(super) fn router(node: Arc<Node>, settings: &Settings) -> Router {
    let admin = Arc::new(Admin { node, stuck_after: settings.stuck_after });
    let server = server_header(settings);
    let policies = admin_policies::router().merge(admin_recording::router());
    let policies = policies.with_state(Arc::clone(&admin.node));
    let workers = admin_workers::router().merge(admin_adapters::router());
    let workers = workers.with_state(Arc::clone(&admin.node));
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/admin/drain", post(drain))
        .route("/admin/state", get(state))
        .merge(policies)
        .merge(workers)
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_url)
        .layer(middleware::map_response(move |mut response: Response| {
            if let Some(server) = &server {
                response.headers_mut().insert(SERVER, server.clone());
            }
            std::future::ready(response)
        }))
        .with_state(admin)
}

async fn health(State(admin): State<Arc<Admin>>) -> Response {
    verdict(admin.node.models().iter().find_map(|model| match model.workers.silence() {
        None => Some(format!("the step loop of {} has ended", model.id)),
        Some(silence) if silence > admin.stuck_after => Some(format!(
            "a step loop of {} has made no progress for {:.1} s",
            model.id,
            silence.as_secs_f64()
        )),
        Some(_) => no_worker(model),
    }))
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let dead = || admin.node.models().iter().any(|model| model.workers.silence().is_none());
    verdict(if admin.node.is_draining() {
        Some("draining".to_owned())
    } else if admin.node.is_loading() || admin.node.models().is_empty() {
        Some("loading".to_owned())
    } else if dead() {
        Some("a step loop has ended".to_owned())
    } else {
        // Without a worker a request is served all the same, by the one that it brings.
        admin.node.models().iter().find_map(|model| no_worker(model))
    })
}

/// Why a model has no worker and can have none.
fn no_worker(model: &Model) -> Option<String> {
    let why = model.workers.failing()?;
    Some(format!("no worker of {} could be started: {why}", model.id))
}

fn verdict(reason: Option<String>) -> Response {
    match reason {
        None => Json(Verdict { status: "ok", reason: None }).into_response(),
        Some(reason) => {
            let body = Json(Verdict { status: "unavailable", reason: Some(reason) });
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    ([(CONTENT_TYPE, METRICS_TYPE)], (admin.node.render_metrics)()).into_response()
}

async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    tracing::info!("draining on request");
    admin.node.drain();
    (StatusCode::ACCEPTED, Json(Verdict { status: "draining", reason: None })).into_response()
}

async fn state(State(admin): State<Arc<Admin>>) -> Json<NodeState> {
    let node = &admin.node;
    let models = node.models().iter().map(|model| {
        let load = model.workers.load();
        ModelState {
            id: model.id.clone(),
            queued: load.queued,
            waiting: load.waiting,
            running: load.running,
            kv_used_tokens: load.kv_used,
            kv_live_tokens: load.kv_live,
            kv_capacity_tokens: load.kv_capacity,
            silence_seconds: model.workers.silence().map(|silence| silence.as_secs_f64()),
        }
    });
    Json(NodeState {
        uptime_seconds: node.started.elapsed().as_secs_f64(),
        loading: node.is_loading(),
        draining: node.is_draining(),
        models: models.collect(),
    })
}
