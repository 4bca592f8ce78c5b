//! Reads a request's body within its limits and turns it into a typed request.
//!
//! A field of the wrong type is named by its path. Fields that we have never
//! heard of are let through, as OpenAI's own servers do.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::budget::{Budget, Share};
use super::reply::Problem;

/// What a body may cost.
#[derive(Clone)]
pub(super) struct BodyLimits {
    pub(super) max_bytes: usize,
    pub(super) timeout: Duration,
    pub(super) budget: Budget,
}

/// A body in memory, with its share of the budget.
pub(super) struct Received {
    bytes: Vec<u8>,
    share: Share,
}

/// Reads the body to its end.
///
/// # Errors
/// Too large, too slow, broken off, or no memory for it.
pub(super) async fn receive(
    limits: &BodyLimits,
    headers: &HeaderMap,
    body: Body,
) -> Result<Received, Problem> {
    let too_large = || Problem::TooLarge { limit: limits.max_bytes };
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limits.max_bytes) {
        return Err(too_large());
    }
    let read = async {
        let mut body = body;
        let mut received = Received { bytes: Vec::new(), share: Share::default() };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::BrokenBody)?;
            let Ok(piece): Result<Bytes, _> = frame.into_data() else { continue };
            if received.bytes.len() + piece.len() > limits.max_bytes {
                return Err(too_large());
            }
            if !limits.budget.grow(&mut received.share, piece.len()) {
                return Err(Problem::NoMemory);
            }
            received.bytes.extend_from_slice(&piece);
        }
        Ok(received)
    };
    tokio::time::timeout(limits.timeout, read).await.map_err(|_| Problem::SlowBody(limits.timeout))?
}

impl Received {
    /// Bytes of the body.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Parses the body as one JSON object.
    ///
    /// # Errors
    /// [`Problem::Field`] with the path of a field of the wrong type, or
    /// [`Problem::Json`]. Nesting is bounded by the parser.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let text = std::str::from_utf8(&self.bytes)
            .map_err(|error| Problem::Json(format!("invalid UTF-8 at byte {}", error.valid_up_to())))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.into_inner();
            if inner.is_data() && path != "." {
                Problem::field(path.clone(), format!("invalid value for `{path}`: {}", plain(&inner)))
            } else {
                Problem::Json(inner.to_string())
            }
        })?;
        json.end().map_err(|error| Problem::Json(error.to_string()))?;
        Ok(parsed)
    }
}

/// The message without the position, which means nothing beside a path.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
