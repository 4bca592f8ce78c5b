//! What becomes of an error: the only mapping from causes to status codes.
//!
//! A client gets a message that helps it; the log gets one that helps the
//! operator, and only where something is wrong on our side. A full queue, bad
//! input and a missed deadline are ordinary answers.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, Response, StatusCode};
use axum::response::IntoResponse;
use quern_extensions::Reason;
use quern_scheduler::Refused;
use quern_scheduler::request::Failure;

use super::openai::{ErrorBody, ErrorObject};
use super::record;
use crate::serving;
use crate::workers::NotTaken;

/// Retrying later than this is no advice, where it is a guess.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The latest that a policy may name: it knows when a quota is filled again.
const MAX_POLICY_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("unknown request URL: {method} {path}; please check the URL for typos")]
    UnknownUrl { method: Method, path: String },
    #[error("not allowed to {method} on {path}")]
    WrongMethod { method: Method, path: String },
    #[error("no API key was sent: give it in an Authorization header, as in `Authorization: Bearer KEY`")]
    NoKey,
    #[error("the API key is not one of this server's")]
    WrongKey,
    #[error("the server is draining and takes no new requests")]
    Draining,
    #[error("the server reads as many request bodies as it has memory for; please retry")]
    NoMemory,
    #[error("the body is larger than the {limit} bytes that this server takes")]
    TooLarge { limit: usize },
    #[error("the body took longer than {} s to arrive", .0.as_secs_f32())]
    SlowBody(Duration),
    #[error("the body ended early")]
    BrokenBody,
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    /// A field that cannot be served as it is.
    #[error("{message}")]
    Field { param: String, message: String, code: Option<&'static str> },
    /// A body that is no JSON, or no JSON object.
    #[error("the body could not be parsed as JSON: {0}")]
    Json(String),
    #[error(transparent)]
    Serving(#[from] serving::Error),
    /// A policy said no.
    #[error("{message}")]
    NotAdmitted { reason: Reason, retry_after: Option<Duration>, message: String },
}

/// How a problem is told.
struct Reply {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// Label of `quern_requests_refused_total`.
    reason: &'static str,
}

impl Problem {
    /// A field that is wrong, or that we do not serve.
    pub(super) fn field(param: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::Field { param: param.into(), message: message.into(), code: None }
    }

    fn reply(&self) -> Reply {
        use StatusCode as S;
        match self {
            Problem::UnknownUrl { .. } => invalid(S::NOT_FOUND, "unknown_url", "unknown_url"),
            Problem::WrongMethod { .. } => {
                invalid(S::METHOD_NOT_ALLOWED, "method_not_allowed", "method_not_allowed")
            }
            Problem::NoKey => invalid(S::UNAUTHORIZED, "missing_api_key", "unauthorized"),
            Problem::WrongKey => invalid(S::UNAUTHORIZED, "invalid_api_key", "unauthorized"),
            Problem::Draining => draining(),
            Problem::NoMemory => busy("server_busy", "no_memory", Duration::from_secs(1)),
            Problem::TooLarge { .. } => invalid(S::PAYLOAD_TOO_LARGE, "request_too_large", "too_large"),
            Problem::SlowBody(_) => invalid(S::REQUEST_TIMEOUT, "request_timeout", "slow_body"),
            Problem::BrokenBody => invalid(S::BAD_REQUEST, "incomplete_body", "invalid"),
            Problem::UnknownModel(_) => {
                let reply = invalid(S::NOT_FOUND, "model_not_found", "unknown_model");
                Reply { param: Some("model".to_owned()), ..reply }
            }
            Problem::Field { param, code, .. } => {
                Reply { code: *code, param: Some(param.clone()), ..invalid(S::BAD_REQUEST, "", "invalid") }
            }
            Problem::Json(_) => Reply { code: None, ..invalid(S::BAD_REQUEST, "", "invalid") },
            Problem::Serving(error) => serving_reply(error),
            Problem::NotAdmitted { reason, retry_after, .. } => not_admitted(*reason, *retry_after),
        }
    }

    /// The error object alone, for a stream whose status line is long gone.
    pub(super) fn object(&self) -> ErrorBody {
        let reply = self.reply();
        ErrorBody {
            error: ErrorObject {
                message: self.to_string(),
                kind: reply.kind,
                param: reply.param,
                code: reply.code,
            },
        }
    }

    /// Tells the log what is wrong on our side, and the metrics what was refused.
    pub(super) fn record(&self) {
        let reply = self.reply();
        record::refused(reply.reason);
        if reply.status.is_server_error() && !matches!(self, Problem::Draining) {
            tracing::error!(error = %self, status = reply.status.as_u16(), "request failed");
        } else {
            tracing::debug!(reason = reply.reason, status = reply.status.as_u16(), "request refused");
        }
    }
}

fn invalid(status: StatusCode, code: &'static str, reason: &'static str) -> Reply {
    Reply { status, kind: "invalid_request_error", code: Some(code), param: None, retry_after: None, reason }
}

fn busy(code: &'static str, reason: &'static str, retry_after: Duration) -> Reply {
    Reply {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind: "rate_limit_error",
        code: Some(code),
        param: None,
        retry_after: Some(retry_after.min(MAX_RETRY_AFTER)),
        reason,
    }
}

/// What will be otherwise later is 429, what will not is 403.
fn not_admitted(reason: Reason, retry_after: Option<Duration>) -> Reply {
    // Where the policy names no time, there is none.
    let retry_after = retry_after.map(|after| after.min(MAX_POLICY_RETRY_AFTER));
    let later = |code| Reply { retry_after, ..busy(code, "not_admitted", Duration::ZERO) };
    let never = |code| Reply {
        kind: "permission_error",
        retry_after,
        ..invalid(StatusCode::FORBIDDEN, code, "not_admitted")
    };
    match reason {
        Reason::Overloaded => later("overloaded"),
        Reason::Quota => later("quota_exceeded"),
        Reason::Forbidden => never("forbidden"),
        Reason::Unservable => never("unservable"),
    }
}

fn draining() -> Reply {
    Reply {
        status: StatusCode::SERVICE_UNAVAILABLE,
        kind: "service_unavailable_error",
        code: Some("draining"),
        param: None,
        retry_after: Some(Duration::from_secs(5)),
        reason: "draining",
    }
}

fn no_worker(retry_after: Duration) -> Reply {
    Reply { code: Some("no_worker"), reason: "no_worker", retry_after: Some(retry_after), ..draining() }
}

/// An adapter that could be served when it was loaded, and not any more.
fn no_adapter() -> Reply {
    let reply = broken("adapter_unavailable");
    Reply { status: StatusCode::SERVICE_UNAVAILABLE, param: Some("model".to_owned()), ..reply }
}

fn broken(code: &'static str) -> Reply {
    Reply {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: "server_error",
        code: Some(code),
        param: None,
        retry_after: None,
        reason: code,
    }
}

fn serving_reply(error: &serving::Error) -> Reply {
    use serving::Error as E;
    let bad = |code, param: Option<&str>| {
        let reply = invalid(StatusCode::BAD_REQUEST, "", "invalid");
        Reply { code, param: param.map(str::to_owned), ..reply }
    };
    match error {
        E::Refused(Refused::Full { retry_after, .. }) => busy("queue_full", "queue_full", *retry_after),
        E::NotTaken(NotTaken::Refused(Refused::Full { retry_after, .. })) => {
            busy("queue_full", "queue_full", *retry_after)
        }
        E::Refused(Refused::Closed)
        | E::NotTaken(NotTaken::Refused(Refused::Closed))
        | E::Failed(Failure::ShuttingDown) => draining(),
        E::NotTaken(NotTaken::NoWorker { retry_after, .. }) => no_worker(*retry_after),
        E::Failed(Failure::NoWorker(_)) => no_worker(Duration::from_secs(1)),
        E::Failed(Failure::WorkerEnded) => {
            Reply { code: Some("worker_ended"), reason: "worker_ended", ..no_worker(Duration::from_secs(1)) }
        }
        E::Adapter(_) | E::Failed(Failure::Adapter(_)) => no_adapter(),
        E::ContextLength { .. } | E::Failed(Failure::TooLong { .. }) => {
            let reply = bad(Some("context_length_exceeded"), None);
            Reply { reason: "context_length", ..reply }
        }
        E::EmptyPrompt | E::UnknownToken { .. } => bad(None, Some("prompt")),
        E::NoTemplate => bad(Some("no_chat_template"), Some("messages")),
        E::Template(_) => bad(Some("invalid_messages"), Some("messages")),
        E::Grammar(_) => bad(Some("invalid_grammar"), Some("response_format")),
        E::Failed(Failure::Expired) => {
            let reply = invalid(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", "expired");
            Reply { kind: "timeout_error", ..reply }
        }
        E::Failed(Failure::Constraint(_)) => broken("constraint_failed"),
        E::Failed(Failure::Engine(_)) => broken("engine_failed"),
        E::Text(_) => broken("text_failed"),
        E::Unfit(_) => broken("classifier_unfit"),
        E::Lost => broken("engine_lost"),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        self.record();
        let reply = self.reply();
        let body = serde_json::to_vec(&self.object()).expect("strings and numbers always serialise");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = reply.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_seconds(after)));
        }
        if reply.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Whole seconds, rounded up, at least one.
fn retry_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}
