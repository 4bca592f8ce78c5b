//! The operators' endpoints for policies: what serves, what served, and changes.
//!
//! A change blocks while code is compiled and instances start, so it runs on a
//! thread that may wait. What served before serves on when a change fails.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use quern_extensions::status::{Loaded, SlotStatus};
use quern_extensions::{Slot, Source};
use serde::{Deserialize, Serialize};

use super::Node;

/// Largest upload: a component with a language's run time inside.
const MAX_UPLOAD_BYTES: usize = 64 << 20;

/// `{"file": PATH}`: a file on the node's machine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWish {
    file: PathBuf,
}

/// All places.
#[derive(Serialize)]
struct Places {
    policies: Vec<SlotStatus>,
}

/// What a change came to.
#[derive(Serialize)]
struct Done {
    status: &'static str,
}

/// Why nothing was changed.
#[derive(Serialize)]
struct NotDone {
    error: String,
}

pub(super) fn router() -> Router<Arc<Node>> {
    Router::new()
        .route("/v1/policies", get(list))
        .route("/v1/policies/{place}", get(one).delete(unload))
        .route("/v1/policies/{place}/load", post(load))
        .route("/v1/policies/{place}/rollback", post(roll_back))
        .route("/v1/policies/{place}/shadow", post(shadow).delete(stop_shadow))
        .route("/v1/policies/{place}/shadow/promote", post(promote))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_UPLOAD_BYTES))
}

async fn list(State(node): State<Arc<Node>>) -> Json<Places> {
    let places = node.policies().map_or(&[][..], |policies| policies.places());
    Json(Places { policies: places.iter().map(Slot::status).collect() })
}

async fn one(State(node): State<Arc<Node>>, Path(place): Path<String>) -> Response {
    find(&node, &place).map_or_else(IntoResponse::into_response, |slot| Json(slot.status()).into_response())
}

async fn load(
    State(node): State<Arc<Node>>,
    Path(place): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    change(&node, &place, move |slot| Ok(loaded(slot.load(&source(&headers, &body)?)))).await
}

async fn shadow(
    State(node): State<Arc<Node>>,
    Path(place): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    change(&node, &place, move |slot| Ok(loaded(slot.shadow(&source(&headers, &body)?)))).await
}

async fn roll_back(State(node): State<Arc<Node>>, Path(place): Path<String>) -> Response {
    change(&node, &place, |slot| Ok(loaded(slot.roll_back()))).await
}

async fn promote(State(node): State<Arc<Node>>, Path(place): Path<String>) -> Response {
    change(&node, &place, |slot| Ok(loaded(slot.promote_shadow()))).await
}

async fn unload(State(node): State<Arc<Node>>, Path(place): Path<String>) -> Response {
    change(&node, &place, |slot| Ok(done(slot.unload()))).await
}

async fn stop_shadow(State(node): State<Arc<Node>>, Path(place): Path<String>) -> Response {
    change(&node, &place, |slot| Ok(done(slot.stop_shadow()))).await
}

fn find<'a>(node: &'a Node, place: &str) -> Result<&'a Slot, Response> {
    let policies = node.policies();
    policies.and_then(|policies| policies.place(place)).ok_or_else(|| {
        let places = policies.map_or(&[][..], |policies| policies.places());
        let names: Vec<&str> = places.iter().map(Slot::name).collect();
        refusal(StatusCode::NOT_FOUND, &format!("there is no place `{place}`, but: {}", names.join(", ")))
    })
}

/// Runs a change on a thread that may wait.
async fn change(
    node: &Node,
    place: &str,
    change: impl FnOnce(&Slot) -> Result<Response, Response> + Send + 'static,
) -> Response {
    let slot = match find(node, place) {
        Ok(slot) => slot.clone(),
        Err(response) => return response,
    };
    let changed = tokio::task::spawn_blocking(move || change(&slot).unwrap_or_else(|refused| refused)).await;
    changed.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
}

/// The policy that a request brings, or the file that it names.
fn source(headers: &HeaderMap, body: &Bytes) -> Result<Source, Response> {
    if headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/wasm") {
        return Ok(Source::Bytes { wasm: body.to_vec(), signature: None });
    }
    let wish: Result<FileWish, _> = serde_json::from_slice(body);
    wish.map(|wish| Source::File(wish.file)).map_err(|error| {
        let why = format!("send {{\"file\": PATH}}, or the policy itself as application/wasm: {error}");
        refusal(StatusCode::BAD_REQUEST, &why)
    })
}

/// Says what was loaded, or with all its causes why nothing was.
fn loaded<E: std::error::Error>(loaded: Result<Loaded, E>) -> Response {
    match loaded {
        Ok(loaded) => {
            tracing::info!(
                name = loaded.name,
                version = loaded.version,
                digest = loaded.digest,
                "policy loaded"
            );
            Json(loaded).into_response()
        }
        Err(error) => {
            let mut why = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                why = format!("{why}: {inner}");
                cause = inner.source();
            }
            tracing::warn!(error = why, "policy not loaded");
            refusal(StatusCode::UNPROCESSABLE_ENTITY, &why)
        }
    }
}

fn done(was_there: bool) -> Response {
    match was_there {
        true => Json(Done { status: "done" }).into_response(),
        false => refusal(StatusCode::CONFLICT, "nothing was there"),
    }
}

pub(super) fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Json(NotDone { error: why.to_owned() })).into_response()
}
