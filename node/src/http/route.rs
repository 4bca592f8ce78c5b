//! The public routes, and the order in which a request is refused.
//!
//! Unknown path or method, then key, then draining, then a full queue, then the
//! body: what is cheap to find comes first, and nothing is read for a request
//! that cannot be served. Model, prompt and grammar follow in the endpoints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HeaderValue, SERVER};
use axum::http::{HeaderMap, HeaderName, Method, Response, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use quern_scheduler::Permit;
use tracing::Instrument;

use super::auth::{Caller, Keys};
use super::body::{BodyLimits, Received, receive};
use super::budget::Budget;
use super::record::Timer;
use super::reply::Problem;
use super::{
    Node, RequestLimits, ServeError, Settings, chat, classify, completions, embeddings, models, record,
    tokenize,
};
use crate::serving::{self, Model, Served, Terms};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const DEADLINE: HeaderName = HeaderName::from_static("x-request-deadline-ms");

/// What every endpoint needs.
pub(super) struct Front {
    pub(super) node: Arc<Node>,
    pub(super) limits: RequestLimits,
    pub(super) write_timeout: Duration,
    /// Names the build, as `system_fingerprint`.
    pub(super) fingerprint: String,
    /// See [`Settings::policy_headers`].
    pub(super) policy_headers: Vec<String>,
    keys: Option<Keys>,
    body: BodyLimits,
    server: Option<HeaderValue>,
}

/// What is known of a request beside its body.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) arrived: Instant,
    /// Kept by whatever outlives the handler, so that its end is measured.
    pub(super) timer: Arc<Timer>,
    caller: Option<Caller>,
}

/// The public router.
///
/// # Errors
/// [`ServeError::Keys`].
pub(super) fn public(node: Arc<Node>, settings: &Settings) -> Result<Router, ServeError> {
    let front = Arc::new(Front {
        node,
        limits: settings.limits.clone(),
        write_timeout: settings.write_timeout,
        fingerprint: format!("quern-{}", env!("CARGO_PKG_VERSION")),
        policy_headers: settings.policy_headers.clone(),
        keys: settings.api_keys_file.as_deref().map(Keys::load).transpose()?,
        body: BodyLimits {
            max_bytes: settings.max_body_bytes,
            timeout: settings.body_timeout,
            budget: Budget::new(settings.max_buffered_bytes),
        },
        server: server_header(settings),
    });
    let router = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/classify", post(classify::handle))
        .route("/classify", post(classify::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&front), check_key))
        .route("/health", get(|| async { StatusCode::OK }))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_url)
        .layer(middleware::from_fn_with_state(Arc::clone(&front), observe))
        .with_state(front);
    Ok(router)
}

pub(super) fn server_header(settings: &Settings) -> Option<HeaderValue> {
    let value = Some(settings.server_header.as_str()).filter(|text| !text.is_empty())?;
    HeaderValue::from_str(value).ok()
}

/// The answer to a path that is none of ours.
pub(super) async fn unknown_url(method: Method, uri: Uri) -> Problem {
    Problem::UnknownUrl { method, path: uri.path().to_owned() }
}

/// The answer to a method that a path does not know.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::WrongMethod { method, path: uri.path().to_owned() }
}

/// Gives each request its id, span, timer and count, and its answer the id.
async fn observe(State(front): State<Arc<Front>>, mut request: Request, next: Next) -> Response<Body> {
    let arrived = Instant::now();
    let endpoint = record::endpoint(request.uri().path());
    let request_id = match usable_id(request.headers()) {
        Some(id) => id.clone(),
        None => {
            let id = front.node.public_id("req-", front.node.next_request_ids(1));
            HeaderValue::from_str(&id).expect("hexadecimal digits make a header")
        }
    };
    let span = tracing::info_span!(
        "request",
        request_id = request_id.to_str().unwrap_or_default(),
        method = %request.method(),
        endpoint,
    );
    let timer = Arc::new(Timer::start(endpoint, arrived));
    request.extensions_mut().insert(Context { arrived, timer, caller: None });

    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    record::answered(endpoint, status);
    span.in_scope(|| tracing::debug!(status, elapsed_us = arrived.elapsed().as_micros() as u64, "answered"));
    response.headers_mut().insert(REQUEST_ID, request_id);
    if let Some(server) = &front.server {
        response.headers_mut().insert(SERVER, server.clone());
    }
    response
}

/// A client's own request id, where it is short and plain enough for a log.
fn usable_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let plain = id.as_bytes().iter().all(|byte| byte.is_ascii_graphic());
    (plain && (1..=128).contains(&id.len())).then_some(id)
}

async fn check_key(State(front): State<Arc<Front>>, mut request: Request, next: Next) -> Response<Body> {
    let Some(keys) = &front.keys else { return next.run(request).await };
    let Some(key) = bearer(request.headers()) else { return Problem::NoKey.into_response() };
    let Some(caller) = keys.caller(key) else { return Problem::WrongKey.into_response() };
    if let Some(context) = request.extensions_mut().get_mut::<Context>() {
        context.caller = Some(caller);
    }
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}

impl Front {
    /// Refuses what need not be read, then reads the body of a request for work.
    pub(super) async fn receive_work(&self, headers: &HeaderMap, body: Body) -> Result<Received, Problem> {
        if self.node.is_draining() {
            return Err(Problem::Draining);
        }
        self.probe()?;
        receive(&self.body, headers, body).await
    }

    /// Reads the body of a request that the scheduler never sees.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, Problem> {
        receive(&self.body, headers, body).await
    }

    /// Fails when no model has a place left. The place is not kept: a slow body
    /// must not hold it.
    fn probe(&self) -> Result<(), Problem> {
        let mut refusal = None;
        for model in self.node.models() {
            match model.workers.reserve() {
                Ok(_place) => return Ok(()),
                Err(refused) => refusal = Some(refused),
            }
        }
        refusal.map_or(Ok(()), |refused| Err(serving::Error::Refused(refused).into()))
    }

    /// What a request is served with, by the model or adapter that it names.
    pub(super) async fn model(&self, name: Option<&str>) -> Result<Served, Problem> {
        let name = named(name)?;
        let served = Served::find(self.node.models(), name).await?;
        served.ok_or_else(|| Problem::UnknownModel(name.to_owned()))
    }

    /// The model whose text a request is about, by its name or an adapter's; the
    /// default model where none is named.
    pub(super) fn text_model(&self, name: Option<&str>) -> Result<&Arc<Model>, Problem> {
        if let (None, Some(model)) = (name, self.node.models().first()) {
            return Ok(model);
        }
        let name = named(name)?;
        let has = |model: &&Arc<Model>| model.adapters.as_ref().is_some_and(|adapters| adapters.has(name));
        let found = self.node.model(name).or_else(|| self.node.models().iter().find(has));
        found.ok_or_else(|| Problem::UnknownModel(name.to_owned()))
    }

    /// Places in the queue for that many prompts, all or none.
    pub(super) fn reserve(&self, model: &Model, num_prompts: usize) -> Result<Vec<Permit>, Problem> {
        let places: Result<Vec<Permit>, _> = (0..num_prompts).map(|_| model.workers.reserve()).collect();
        places.map_err(|refused| serving::Error::Refused(refused).into())
    }

    /// What the scheduler is told about who asks, and how urgently.
    pub(super) fn terms(
        &self,
        context: &Context,
        headers: &HeaderMap,
        user: Option<&str>,
        priority: Option<i64>,
        num_prompts: usize,
    ) -> Result<Terms, Problem> {
        let named = context.caller.as_ref().and_then(|caller| caller.name.as_deref());
        let priority = match priority {
            None => quern_scheduler::request::DEFAULT_PRIORITY,
            Some(value) => u8::try_from(value).map_err(|_| {
                Problem::field("priority", "priority must be from 0 to 255; larger is more urgent")
            })?,
        };
        Ok(Terms {
            first_id: self.node.next_request_ids(num_prompts as u64),
            tenant: named.or(user).map_or(0, |name| self.node.tenants().intern(name)),
            priority,
            deadline: deadline(headers, context.arrived)?,
            arrived: context.arrived,
        })
    }
}

fn named(model: Option<&str>) -> Result<&str, Problem> {
    model.ok_or_else(|| Problem::field("model", "you must provide a model parameter"))
}

fn deadline(headers: &HeaderMap, arrived: Instant) -> Result<Option<Instant>, Problem> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let wrong = || Problem::field("X-Request-Deadline-Ms", "the deadline must be a number of milliseconds");
    let ms: u32 = value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(wrong)?;
    Ok(Some(arrived + Duration::from_millis(u64::from(ms))))
}
