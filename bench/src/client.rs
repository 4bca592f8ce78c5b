//! One request: sent, streamed, timed, and its end given a name.
//!
//! It knows OpenAI's completion shapes and nothing of workloads, levels or statistics.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::answer::{Completion, Labels};
use crate::connections::Connections;
use crate::http::{Address, HttpError, header, is_broken, send};
use crate::reply::{Failure, Reply};
use crate::request::{AnswerShape, Question};
use crate::sse::SseParser;

/// Time for a response to end after its stream said that it was done.
const MAX_TIME_AFTER_DONE: Duration = Duration::from_millis(200);

/// A server that is measured.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Name in tables.
    pub name: String,
    /// Base address without a path, `http://host:port`.
    pub url: String,
    /// The model that requests name.
    pub model: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Further headers of each request.
    pub headers: Vec<(String, String)>,
    /// A shell command that prepares it before each of its phases.
    pub prepare: Option<String>,
}

/// Sends requests to servers.
#[derive(Debug, Clone)]
pub struct Client {
    stall_timeout: Duration,
    request_timeout: Duration,
    connections: Connections,
    keeps_connections: bool,
}

impl Client {
    /// A client that takes a silence of `stall_timeout` for a stall, and ends every request at `request_timeout`.
    /// It keeps connections open for later requests.
    pub fn new(stall_timeout: Duration, request_timeout: Duration) -> Self {
        Self { stall_timeout, request_timeout, connections: Connections::default(), keeps_connections: true }
    }

    /// One that keeps connections, or opens one for each request.
    #[must_use]
    pub fn keeping_connections(self, keeps_connections: bool) -> Self {
        Self { keeps_connections, ..self }
    }

    /// Asks for the first model that the server lists.
    ///
    /// # Errors
    /// Says why the server is of no use.
    pub async fn first_model(&self, url: &str, api_key: Option<&str>) -> Result<String, String> {
        let key = api_key.map(bearer).transpose()?;
        let exchange = async {
            let response = send(url, "/v1/models", key, None).await.map_err(|error| with_causes(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| with_causes(&error))?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let answer = timeout(self.stall_timeout, exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer for {:?}", self.stall_timeout)));
        let (status, bytes) = answer.map_err(|error| format!("{url}: {error}"))?;
        if !status.is_success() {
            return Err(format!("{url}/v1/models: {status}: {}", beginning(&bytes)));
        }
        let models: Value = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{url}/v1/models: {error}: {}", beginning(&bytes)))?;
        let id = models.pointer("/data/0/id").and_then(Value::as_str);
        id.map(str::to_owned).ok_or_else(|| format!("{url}/v1/models lists no model; give --model"))
    }

    /// Whether an address answers 200 at this moment.
    pub async fn is_ok(&self, url: &str) -> bool {
        let response = timeout(self.stall_timeout, send(url, "", None, None)).await;
        matches!(response, Ok(Ok(response)) if response.status() == StatusCode::OK)
    }

    /// Sends one request and reads its answer to the end. Dropping the future hangs up.
    ///
    /// `on_delta` is told of each delta with content as it arrives.
    pub async fn ask(
        &self,
        server: &Server,
        question: &Question,
        intended: Instant,
        mut on_delta: impl FnMut(Instant),
    ) -> Reply {
        let mut reply = Reply::new(intended);
        let exchange = self.exchange(server, question, &mut reply, &mut on_delta);
        let failure = match timeout(self.request_timeout, exchange).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some((Failure::TooLong, format!("not done after {:?}", self.request_timeout))),
        };
        if failure.is_some() {
            reply.ended = Instant::now();
        }
        reply.failure = failure;
        reply
    }

    async fn exchange(
        &self,
        server: &Server,
        question: &Question,
        reply: &mut Reply,
        on_delta: &mut impl FnMut(Instant),
    ) -> Result<(), (Failure, String)> {
        let accept = match question.shape {
            AnswerShape::Stream => HeaderValue::from_static("text/event-stream"),
            AnswerShape::Whole | AnswerShape::Labels => HeaderValue::from_static("application/json"),
        };
        let mut headers =
            vec![(CONTENT_TYPE, HeaderValue::from_static("application/json")), (ACCEPT, accept)];
        let unsendable = |reason| (Failure::Unsendable, reason);
        headers.extend(server.api_key.as_deref().map(bearer).transpose().map_err(unsendable)?);
        for (name, value) in &server.headers {
            headers.push(header(name, value).map_err(unsendable)?);
        }
        reply.sent = Instant::now();
        let sending = self.connections.send(&server.url, question.path, &headers, &question.body);
        let (response, lease) = match timeout(self.stall_timeout, sending).await {
            Err(_) => return Err((Failure::Stall, format!("no response for {:?}", self.stall_timeout))),
            Ok(Err(error)) => return Err((kind_of(&error), with_causes(&error))),
            Ok(Ok(answer)) => answer,
        };
        // A connection whose answer was not read to the end is closed with its lease.
        let keep = move || {
            if self.keeps_connections {
                lease.keep();
            }
        };
        let (head, mut body) = response.into_parts();
        if head.status != StatusCode::OK {
            let text = timeout(self.stall_timeout, body.collect()).await;
            let text = text.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            return Err((Failure::Status(head.status.as_u16()), beginning(&text)));
        }
        if question.shape == AnswerShape::Stream {
            read_stream(&mut body, self.stall_timeout, reply, on_delta).await?;
            keep();
            return Ok(());
        }
        let bytes = match timeout(self.stall_timeout, body.collect()).await {
            Err(_) => return Err((Failure::Stall, format!("no body for {:?}", self.stall_timeout))),
            Ok(Err(error)) => return Err((end_of(&error), with_causes(&error))),
            Ok(Ok(body)) => body.to_bytes(),
        };
        reply.ended = Instant::now();
        keep();
        match question.shape {
            AnswerShape::Labels => apply_labels(&bytes, reply),
            AnswerShape::Whole | AnswerShape::Stream => apply_whole(&bytes, reply),
        }
    }
}

/// Whether a server's base address can be used.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_url(url: &str) -> Result<(), HttpError> {
    Address::parse(url).map(drop)
}

/// The header that carries a key.
fn bearer(key: &str) -> Result<(HeaderName, HeaderValue), String> {
    header("authorization", &format!("Bearer {key}"))
}

fn kind_of(error: &HttpError) -> Failure {
    match error {
        HttpError::Unsendable { .. } => Failure::Unsendable,
        HttpError::Connect { .. } => Failure::Connect,
        HttpError::Exchange(error) => end_of(error),
    }
}

/// What a connection's end was.
fn end_of(error: &hyper::Error) -> Failure {
    if is_broken(error) { Failure::BrokenHttp } else { Failure::ClosedMidStream }
}

fn broken_json(error: &serde_json::Error, bytes: &[u8]) -> (Failure, String) {
    (Failure::BrokenJson, format!("{error}: {}", beginning(bytes)))
}

/// Takes the answer to a classification into the reply: its labels, one a line, empty where there is none.
fn apply_labels(bytes: &[u8], reply: &mut Reply) -> Result<(), (Failure, String)> {
    let answer: Labels = serde_json::from_slice(bytes).map_err(|error| broken_json(&error, bytes))?;
    refuse_error(answer.error)?;
    let Some(objects) = answer.data else {
        return Err((Failure::BrokenJson, format!("no list of labels: {}", beginning(bytes))));
    };
    let labels: Vec<String> = objects.into_iter().map(|object| object.label.unwrap_or_default()).collect();
    reply.text = labels.join("\n");
    reply.deltas.push(reply.ended);
    reply.prompt_tokens = answer.usage.and_then(|usage| usage.prompt_tokens);
    reply.completion_tokens = Some(0);
    Ok(())
}

/// Takes a completion that came whole into the reply. It has no deltas: when its first token was there, nobody told.
fn apply_whole(bytes: &[u8], reply: &mut Reply) -> Result<(), (Failure, String)> {
    let answer: Completion = serde_json::from_slice(bytes).map_err(|error| broken_json(&error, bytes))?;
    refuse_error(answer.error)?;
    reply.take_usage(answer.usage);
    let Some(choice) = answer.choices.unwrap_or_default().into_iter().next() else {
        return Err((Failure::BrokenJson, format!("no choice: {}", beginning(bytes))));
    };
    reply.take_choice(choice);
    Ok(())
}

fn refuse_error(error: Option<Value>) -> Result<(), (Failure, String)> {
    error.map_or(Ok(()), |error| Err((Failure::StreamError, beginning(error.to_string().as_bytes()))))
}

async fn read_stream(
    body: &mut Incoming,
    stall_timeout: Duration,
    reply: &mut Reply,
    on_delta: &mut impl FnMut(Instant),
) -> Result<(), (Failure, String)> {
    let mut parser = SseParser::new();
    let mut events = Vec::new();
    loop {
        let frame = match timeout(stall_timeout, body.frame()).await {
            Err(_) => return Err((Failure::Stall, format!("no byte for {stall_timeout:?}"))),
            Ok(None) => return Err((Failure::ClosedMidStream, "the stream ended without [DONE]".to_owned())),
            Ok(Some(Err(error))) => return Err((end_of(&error), with_causes(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        let now = Instant::now();
        // Trailers are no part of the answer.
        let Ok(chunk) = frame.into_data() else { continue };
        parser.feed(&chunk, &mut events).map_err(|error| (Failure::BrokenSse, error.to_string()))?;
        for event in events.drain(..) {
            if event == "[DONE]" {
                reply.ended = now;
                // Read on to the response's own end: a connection that is dropped before it looks like a hang-up
                // to the server. Whatever comes is no part of the answer.
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = timeout(stall_timeout.min(MAX_TIME_AFTER_DONE), rest).await;
                return Ok(());
            }
            if apply_event(&event, now, reply)? {
                on_delta(now);
            }
        }
    }
}

/// Takes one chunk into the reply; true if it had content.
fn apply_event(event: &str, now: Instant, reply: &mut Reply) -> Result<bool, (Failure, String)> {
    let chunk: Completion = serde_json::from_str(event)
        .map_err(|error| (Failure::BrokenSse, format!("{error}: {}", beginning(event.as_bytes()))))?;
    refuse_error(chunk.error)?;
    reply.take_usage(chunk.usage);
    let choice = chunk.choices.unwrap_or_default().into_iter().next();
    let has_content = choice.is_some_and(|choice| reply.take_choice(choice));
    if has_content {
        reply.deltas.push(now);
    }
    Ok(has_content)
}

/// An error with its causes: hyper's own message leaves out the reason.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}
