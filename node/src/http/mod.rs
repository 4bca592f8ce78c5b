//! The HTTP front end: connections, limits, keys, endpoints and the shapes of
//! OpenAI's API.
//!
//! This folder is the only place that knows hyper, JSON and status codes. What
//! lies between an endpoint and the scheduler is [`crate::serving`], which
//! knows none of them. Read [`accept`] for a connection's life, [`route`] for
//! the order of refusals, [`reply`] for what becomes of an error, then one
//! endpoint's file.

mod accept;
mod activity;
mod admin;
mod admin_adapters;
mod admin_policies;
mod admin_recording;
mod admin_workers;
mod admission;
mod auth;
mod body;
mod budget;
mod chat;
mod chat_request;
mod chat_tools;
mod classify;
mod completions;
mod embeddings;
mod fields;
mod logprobs;
mod models;
mod openai;
mod openai_chat;
mod openai_classify;
mod openai_text;
mod params;
mod record;
mod reply;
mod route;
mod sse;
mod timed_io;
mod tls;
mod tokenize;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::policies::Policies;
use crate::serving::{Model, Tenants};

pub use accept::{serve_admin, serve_public};
pub use auth::KeysError;
pub use tls::TlsError;

/// Renders all metrics in Prometheus' text format.
pub type RenderMetrics = Box<dyn Fn() -> String + Send + Sync>;

/// Limits and times of a listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// A request's line and headers together.
    pub max_header_bytes: usize,
    /// One request's body.
    pub max_body_bytes: usize,
    /// Bodies that are being read or worked on, all connections together.
    pub max_buffered_bytes: usize,
    /// From the accepted connection, or the last response, to the end of the
    /// next request's headers. A TLS handshake has as long.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// A connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// A client that takes none of an answer for this time is cut off.
    pub write_timeout: Duration,
    /// What one request may ask for.
    pub limits: RequestLimits,
    /// Serve TLS with this certificate; plain text otherwise.
    pub tls: Option<TlsFiles>,
    /// One API key a line; everybody may ask where there is none.
    pub api_keys_file: Option<PathBuf>,
    /// `/health` fails when the step loop has been silent for longer.
    pub stuck_after: Duration,
    /// The `Server` header; empty sends none.
    pub server_header: String,
    /// Headers of a request that admission policies may see.
    pub policy_headers: Vec<String>,
}

/// What one request may ask for, checked before any work is done for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Choices.
    pub max_n: u32,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Prompts of a completion or inputs of an embedding.
    pub max_prompts: usize,
    /// Texts of a classification.
    pub max_texts: usize,
}

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the node's own certificate first.
    pub cert: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_connections: 4096,
            max_header_bytes: 32 * 1024,
            max_body_bytes: 8 * 1024 * 1024,
            max_buffered_bytes: 256 * 1024 * 1024,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            limits: RequestLimits::default(),
            tls: None,
            api_keys_file: None,
            stuck_after: Duration::from_secs(30),
            server_header: concat!("quern/", env!("CARGO_PKG_VERSION")).to_owned(),
            policy_headers: Vec::new(),
        }
    }
}

impl Default for RequestLimits {
    fn default() -> Self {
        RequestLimits {
            max_n: 16,
            max_stop_strings: 16,
            max_stop_bytes: 256,
            max_logit_bias: 1024,
            max_prompts: 128,
            max_texts: 1024,
        }
    }
}

/// Why a listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of API keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// What both listeners share: the served models and whether they may be asked.
pub struct Node {
    models: Vec<Arc<Model>>,
    policies: Option<Policies>,
    render_metrics: RenderMetrics,
    tenants: Tenants,
    loading: AtomicBool,
    draining: AtomicBool,
    started: Instant,
    /// Makes ids of this process differ from those of another.
    boot: u64,
    next_id: AtomicU64,
}

impl Node {
    /// A node that serves `models`; the first is the default one.
    #[must_use]
    pub fn new(models: Vec<Arc<Model>>, render_metrics: RenderMetrics) -> Arc<Node> {
        Node::with_policies(models, None, render_metrics)
    }

    /// As [`Node::new`], and policies are asked.
    #[must_use]
    pub fn with_policies(
        models: Vec<Arc<Model>>,
        policies: Option<Policies>,
        render_metrics: RenderMetrics,
    ) -> Arc<Node> {
        let boot = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        Arc::new(Node {
            models,
            policies,
            render_metrics,
            tenants: Tenants::default(),
            loading: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            boot,
            next_id: AtomicU64::new(1),
        })
    }

    /// The model of that id.
    #[must_use]
    pub fn model(&self, id: &str) -> Option<&Arc<Model>> {
        self.models.iter().find(|model| model.id == id)
    }

    /// All models, the default one first.
    #[must_use]
    pub fn models(&self) -> &[Arc<Model>] {
        &self.models
    }

    /// When the node's clock began, by which policies are told the time.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Says whether a token can be served yet; `/ready` fails while it cannot.
    pub fn set_loading(&self, loading: bool) {
        self.loading.store(loading, Ordering::Release);
    }

    /// Refuses new requests from now on and lets those inside finish.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.models.iter().for_each(|model| model.workers.close());
    }

    /// Whether [`Node::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether no scheduler holds any work.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.models.iter().all(|model| model.workers.is_idle())
    }

    pub(crate) fn policies(&self) -> Option<&Policies> {
        self.policies.as_ref()
    }

    /// Names of tenants, interned for the scheduler.
    #[must_use]
    pub fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// The first of `count` numbers that no other request of this process has.
    fn next_request_ids(&self, count: u64) -> u64 {
        self.next_id.fetch_add(count, Ordering::Relaxed)
    }

    /// A seed for a request that states none.
    fn fresh_seed(&self, request_id: u64) -> u64 {
        mix(self.boot.wrapping_add(request_id))
    }

    /// An id as clients see it: unique over restarts, and not a mere count.
    fn public_id(&self, prefix: &str, request_id: u64) -> String {
        format!("{prefix}{:016x}{request_id:08x}", mix(self.boot ^ request_id))
    }
}

/// The finaliser of splitmix64: neighbours in, strangers out.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
