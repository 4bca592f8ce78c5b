//! The operators' endpoints for recorded steps: begin, look, end, fetch.
//!
//! Files lie where the configuration says; a request names a file at most.

use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use quern_policy_tools::record::Recording;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::Node;
use super::admin_policies::refusal;
use crate::policies::recordings::{RecordError, Recordings};

/// Bytes of a file that are read at a time.
const PIECE: usize = 64 << 10;

/// What a recording's file is.
const RECORDING_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// `{"name": FILE, "steps": N}`, both optional, as is the whole body.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wish {
    name: Option<String>,
    steps: Option<u64>,
}

/// A recording that runs, or the last one.
#[derive(Debug, Serialize)]
struct RecordingState {
    file: String,
    running: bool,
    /// Steps in the file.
    steps: u64,
    /// Steps after which it ends.
    max_steps: Option<u64>,
    /// Steps that found no room in the queue or in the file.
    missed: u64,
    bytes: u64,
    /// Whether the file is as large as it may be.
    full: bool,
    /// Whether the file could not be written.
    failed: bool,
}

pub(super) fn router() -> Router<Arc<Node>> {
    Router::new()
        .route("/v1/recording", get(look).post(start).delete(stop))
        .route("/v1/recording/file", get(fetch))
}

impl RecordingState {
    fn of(recording: &Recording) -> RecordingState {
        let counts = &recording.counts;
        RecordingState {
            file: recording.path.display().to_string(),
            running: !counts.has_ended(),
            steps: counts.written(),
            max_steps: recording.max_steps,
            missed: counts.missed(),
            bytes: counts.num_bytes(),
            full: counts.is_full(),
            failed: counts.has_failed(),
        }
    }
}

fn recordings(node: &Node) -> Result<Recordings, Response> {
    let found = node.policies().map(|policies| policies.recordings().clone());
    found.ok_or_else(|| refusal(StatusCode::CONFLICT, "this node asks no policies yet"))
}

async fn look(State(node): State<Arc<Node>>) -> Result<Response, Response> {
    Ok(told(recordings(&node)?.status().as_ref()))
}

async fn start(State(node): State<Arc<Node>>, body: Bytes) -> Result<Response, Response> {
    let wish: Wish = match body.is_empty() {
        true => Wish::default(),
        false => serde_json::from_slice(&body).map_err(|error| {
            let why = format!("send {{\"name\": FILE, \"steps\": N}}, or nothing: {error}");
            refusal(StatusCode::BAD_REQUEST, &why)
        })?,
    };
    if wish.steps == Some(0) {
        return Err(refusal(StatusCode::BAD_REQUEST, "steps must be at least 1"));
    }
    let recordings = recordings(&node)?;
    // Files are created on threads that may wait.
    let started = tokio::task::spawn_blocking(move || recordings.start(wish.name.as_deref(), wish.steps));
    let started = started.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
    match started {
        Ok(recording) => Ok(told(Some(&recording))),
        Err(error @ RecordError::Name) => Err(refusal(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(error) => Err(refusal(StatusCode::CONFLICT, &error.to_string())),
    }
}

async fn stop(State(node): State<Arc<Node>>) -> Result<Response, Response> {
    let recordings = recordings(&node)?;
    match recordings.stop() {
        true => Ok(told(recordings.status().as_ref())),
        false => Err(refusal(StatusCode::CONFLICT, "nothing is recorded")),
    }
}

/// The last recording's file; while it runs, as far as it is written.
async fn fetch(State(node): State<Arc<Node>>) -> Result<Response, Response> {
    let recording = recordings(&node)?.status();
    let recording = recording.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "nothing was recorded"))?;
    let length = recording.counts.num_bytes();
    let body = read(&recording.path, length).await.map_err(|error| {
        let why = format!("{} cannot be read: {error}", recording.path.display());
        refusal(StatusCode::INTERNAL_SERVER_ERROR, &why)
    })?;
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, RECORDING_TYPE);
    Ok(response)
}

/// A file's beginning, as whole steps were counted.
async fn read(path: &Path, length: u64) -> std::io::Result<Body> {
    let mut file = File::open(path).await?;
    let written = file.seek(SeekFrom::End(0)).await?;
    file.rewind().await?;
    let length = if length == 0 { written } else { length.min(written) };
    let pieces = futures_util::stream::try_unfold(file.take(length), |mut file| async move {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
    });
    Ok(Body::from_stream(pieces))
}

fn told(recording: Option<&Recording>) -> Response {
    match recording {
        Some(recording) => Json(RecordingState::of(recording)).into_response(),
        None => refusal(StatusCode::NOT_FOUND, "nothing was recorded"),
    }
}
