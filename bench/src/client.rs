//! One request: sent, streamed, timed, and its end given a name.
//!
//! It knows OpenAI's completion shapes and nothing of workloads, levels or statistics.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::request::{AnswerShape, Question};
use crate::sse::SseParser;

/// Time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Why a request failed. These are the kinds that a run counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection.
    Connect,
    /// A status other than 200.
    Status(u16),
    /// The connection closed before the stream said that it was done.
    ClosedMidStream,
    /// No byte for the workload's stall timeout.
    Stall,
    /// The whole request took longer than the workload allows.
    TooLong,
    /// What came is no event stream of completion chunks.
    BrokenSse,
    /// What came is no completion or list of labels as JSON, where one was asked for.
    BrokenJson,
    /// The server reported an error inside the answer.
    StreamError,
    /// An answer ended where it had to go on for the measurement to mean anything.
    EndedEarly,
}

impl Failure {
    /// Whether nobody answered at all: a server that is down or stuck.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Connect | Self::Stall | Self::TooLong)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Status(code) => write!(f, "status {code}"),
            Self::ClosedMidStream => f.write_str("closed mid-stream"),
            Self::Stall => f.write_str("stall"),
            Self::TooLong => f.write_str("too long"),
            Self::BrokenSse => f.write_str("broken SSE"),
            Self::BrokenJson => f.write_str("broken JSON"),
            Self::StreamError => f.write_str("error in stream"),
            Self::EndedEarly => f.write_str("ended early"),
        }
    }
}

/// What one request gave. Instants are the client's.
#[derive(Debug, Clone)]
pub struct Reply {
    /// When the request was to be sent; latency counts from here.
    pub intended: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When each delta with content arrived.
    pub deltas: Vec<Instant>,
    /// When the stream ended, well or not.
    pub ended: Instant,
    /// The answer's text.
    pub text: String,
    /// Tokens of the prompt, as the server counts.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts.
    pub completion_tokens: Option<u64>,
    /// Why the server stopped.
    pub finish_reason: Option<String>,
    /// How it failed, with the message for people.
    pub failure: Option<(Failure, String)>,
}

impl Reply {
    /// A reply of which nothing has come yet.
    pub fn new(intended: Instant) -> Self {
        let now = Instant::now();
        Self {
            intended,
            sent: now,
            deltas: Vec::new(),
            ended: now,
            text: String::new(),
            prompt_tokens: None,
            completion_tokens: None,
            finish_reason: None,
            failure: None,
        }
    }

    /// Tokens of the answer: the server's count if it gives one, deltas otherwise.
    pub fn num_tokens(&self) -> u64 {
        self.completion_tokens.unwrap_or(self.deltas.len() as u64)
    }

    /// From the intended time to the first content.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.deltas.first().map(|first| first.duration_since(self.intended))
    }

    /// Times between one delta and the next.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.deltas.windows(2).map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Mean time a token after the first.
    pub fn time_per_token(&self) -> Option<Duration> {
        let (first, last) = (self.deltas.first()?, self.deltas.last()?);
        let after_first = u32::try_from(self.num_tokens().checked_sub(1)?).ok()?;
        (after_first > 0).then(|| last.duration_since(*first) / after_first)
    }
}

/// Sends requests to servers.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    stall_timeout: Duration,
    request_timeout: Duration,
}

impl Client {
    /// A client with its own pool of connections.
    ///
    /// # Errors
    /// When the system gives no resources for one.
    pub fn new(stall_timeout: Duration, request_timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            // A connection for each request: some servers close idle ones just as they are used again.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { http, stall_timeout, request_timeout })
    }

    /// Asks for the first model that the server lists.
    ///
    /// # Errors
    /// Says why the server is of no use.
    pub async fn first_model(&self, url: &str, api_key: Option<&str>) -> Result<String, String> {
        let mut request = self.http.get(format!("{url}/v1/models")).timeout(self.stall_timeout);
        if let Some(key) = api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| format!("{url}: {}", with_causes(&error)))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| format!("{url}: {}", with_causes(&error)))?;
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
        let response = timeout(self.stall_timeout, self.http.get(url).send()).await;
        matches!(response, Ok(Ok(response)) if response.status() == reqwest::StatusCode::OK)
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
        let mut request = self
            .http
            .post(format!("{}{}", server.url, question.path))
            .header("content-type", "application/json")
            .header(
                "accept",
                match question.shape {
                    AnswerShape::Stream => "text/event-stream",
                    AnswerShape::Whole | AnswerShape::Labels => "application/json",
                },
            )
            .body(question.body.clone());
        if let Some(key) = &server.api_key {
            request = request.bearer_auth(key);
        }
        for (name, value) in &server.headers {
            request = request.header(name, value);
        }
        reply.sent = Instant::now();
        let response = match timeout(self.stall_timeout, request.send()).await {
            Err(_) => return Err((Failure::Stall, format!("no response for {:?}", self.stall_timeout))),
            Ok(Err(error)) if error.is_connect() => return Err((Failure::Connect, with_causes(&error))),
            Ok(Err(error)) => return Err((Failure::ClosedMidStream, with_causes(&error))),
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status != reqwest::StatusCode::OK {
            let text = timeout(self.stall_timeout, response.bytes()).await;
            let text = text.ok().and_then(Result::ok).unwrap_or_default();
            return Err((Failure::Status(status.as_u16()), beginning(&text)));
        }
        if question.shape == AnswerShape::Stream {
            return read_stream(response.bytes_stream(), self.stall_timeout, reply, on_delta).await;
        }
        let bytes = match timeout(self.stall_timeout, response.bytes()).await {
            Err(_) => return Err((Failure::Stall, format!("no body for {:?}", self.stall_timeout))),
            Ok(Err(error)) => return Err((Failure::ClosedMidStream, with_causes(&error))),
            Ok(Ok(bytes)) => bytes,
        };
        reply.ended = Instant::now();
        let answer: Value = serde_json::from_slice(&bytes)
            .map_err(|error| (Failure::BrokenJson, format!("{error}: {}", beginning(&bytes))))?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err((Failure::StreamError, beginning(error.to_string().as_bytes())));
        }
        let is_understood = match question.shape {
            AnswerShape::Labels => apply_labels(&answer, reply),
            AnswerShape::Whole | AnswerShape::Stream => apply_whole(&answer, reply),
        };
        is_understood.ok_or_else(|| (Failure::BrokenJson, format!("no answer in it: {}", beginning(&bytes))))
    }
}

/// Takes the answer to a classification into the reply: its labels, one a line, empty where there is none.
fn apply_labels(answer: &Value, reply: &mut Reply) -> Option<()> {
    let objects = answer.get("data").and_then(Value::as_array)?;
    let label = |object: &Value| object.get("label").and_then(Value::as_str).unwrap_or_default().to_owned();
    reply.text = objects.iter().map(label).collect::<Vec<_>>().join("\n");
    reply.deltas.push(reply.ended);
    reply.prompt_tokens = answer.pointer("/usage/prompt_tokens").and_then(Value::as_u64);
    reply.completion_tokens = Some(0);
    Some(())
}

/// Takes a completion that came whole into the reply. It has no deltas: when its first token was there, nobody told.
fn apply_whole(answer: &Value, reply: &mut Reply) -> Option<()> {
    let choice = answer.pointer("/choices/0")?;
    let places = ["/message/content", "/text", "/message/reasoning_content"];
    let texts = places.iter().filter_map(|place| choice.pointer(place)).filter_map(Value::as_str);
    reply.text = texts.collect();
    apply_usage(answer, reply);
    reply.finish_reason = choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
    Some(())
}

/// Takes the server's counts of tokens, where a chunk or an answer has them.
fn apply_usage(answer: &Value, reply: &mut Reply) {
    if let Some(usage) = answer.get("usage").filter(|usage| usage.is_object()) {
        reply.prompt_tokens = usage.get("prompt_tokens").and_then(Value::as_u64);
        reply.completion_tokens = usage.get("completion_tokens").and_then(Value::as_u64);
    }
}

async fn read_stream<E: std::error::Error>(
    stream: impl Stream<Item = Result<Bytes, E>>,
    stall_timeout: Duration,
    reply: &mut Reply,
    on_delta: &mut impl FnMut(Instant),
) -> Result<(), (Failure, String)> {
    let mut stream = std::pin::pin!(stream);
    let mut parser = SseParser::new();
    let mut events = Vec::new();
    loop {
        let chunk = match timeout(stall_timeout, stream.next()).await {
            Err(_) => return Err((Failure::Stall, format!("no byte for {stall_timeout:?}"))),
            Ok(None) => return Err((Failure::ClosedMidStream, "the stream ended without [DONE]".to_owned())),
            Ok(Some(Err(error))) => return Err((Failure::ClosedMidStream, with_causes(&error))),
            Ok(Some(Ok(chunk))) => chunk,
        };
        let now = Instant::now();
        parser.feed(&chunk, &mut events).map_err(|error| (Failure::BrokenSse, error.to_string()))?;
        for event in events.drain(..) {
            if event == "[DONE]" {
                reply.ended = now;
                // Read on to the response's own end: a connection that is dropped before it looks like a hang-up
                // to the server. Whatever comes is no part of the answer.
                let rest = async { while let Some(Ok(_)) = stream.next().await {} };
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
    let chunk: Value = serde_json::from_str(event)
        .map_err(|error| (Failure::BrokenSse, format!("{error}: {}", beginning(event.as_bytes()))))?;
    if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
        return Err((Failure::StreamError, beginning(error.to_string().as_bytes())));
    }
    apply_usage(&chunk, reply);
    let Some(choice) = chunk.pointer("/choices/0") else { return Ok(false) };
    if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
        reply.finish_reason = Some(reason.to_owned());
    }
    // Text of a chat, of a plain completion, of a model that thinks aloud; a tool call's arguments.
    let places = ["/delta/content", "/text", "/delta/reasoning_content"];
    let mut has_content = choice.pointer("/delta/tool_calls").is_some_and(Value::is_array);
    for text in places.iter().filter_map(|place| choice.pointer(place)).filter_map(Value::as_str) {
        reply.text.push_str(text);
        has_content |= !text.is_empty();
    }
    if has_content {
        reply.deltas.push(now);
    }
    Ok(has_content)
}

/// An error with its causes: reqwest's own message leaves out the reason.
fn with_causes(error: &dyn std::error::Error) -> String {
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
