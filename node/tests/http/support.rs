//! One node for each test: a fake engine behind the real scheduler, text and
//! front end, on ports that the system picks.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use quern::adapters::{self, Base, Registry};
use quern::http::{Node, RenderMetrics, Settings, serve_admin, serve_public};
use quern::policies::{Policies, keep_tuning};
use quern::serving::{Configured, Defaults, Model, Temperature};
use quern::workers::{self, Parts, StartError, Workers};
use quern_adapters::{FileType, Head};
use quern_engine::fake::{FakeConfig, FakeEngine, Gate};
use quern_engine::{AdapterId, Engine};
use quern_gguf::Gguf;
use quern_gguf::tiny::{self, Arch, TinySpec};
use quern_scheduler::{AdapterFiles, SchedulerConfig};
use quern_text::{ChatTemplate, ConstraintFactory, Tokenizer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const MODEL: &str = "tiny";

/// Longer than any test takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is slow to build and the same for all tests.
pub struct Text {
    pub tokenizer: Arc<Tokenizer>,
    pub template: Arc<ChatTemplate>,
    constraints: Arc<ConstraintFactory>,
    base: Base,
}

pub static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny::write(&path, &TinySpec::new(Arch::Qwen2, 7)).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    Text {
        template: Arc::new(ChatTemplate::from_gguf(&gguf).unwrap()),
        constraints: Arc::new(ConstraintFactory::new(Arc::clone(&tokenizer)).unwrap()),
        tokenizer,
        base: Base::new(MODEL, &gguf, FileType::F16).unwrap(),
    }
});

/// How a test wants its node.
pub struct Options {
    pub settings: Settings,
    pub scheduler: SchedulerConfig,
    pub fail_at_step: Option<u64>,
    /// For what must be caught in the middle.
    pub step_time: Duration,
    pub max_sequence_len: usize,
    pub render_metrics: RenderMetrics,
    pub workers: workers::Settings,
    /// Makes each worker's engine; a raised flag asks it to give up.
    pub make_engine: MakeEngine,
    pub adapters: adapters::Settings,
    /// Asked as a node asks them.
    pub policies: Option<Policies>,
    pub classifiers: Vec<Arc<Configured>>,
    /// The model's own classification head.
    pub head: Option<Arc<Head>>,
}

pub type MakeEngine =
    Box<dyn Fn(FakeConfig, &AtomicBool) -> Result<Box<dyn Engine>, StartError> + Send + Sync>;

impl Default for Options {
    fn default() -> Self {
        Options {
            settings: Settings::default(),
            scheduler: SchedulerConfig { check_invariants: true, ..SchedulerConfig::default() },
            fail_at_step: None,
            step_time: Duration::ZERO,
            max_sequence_len: 2048,
            render_metrics: Box::new(|| "nothing 0\n".to_owned()),
            workers: workers::Settings::default(),
            make_engine: Box::new(|config, _| Ok(Box::new(FakeEngine::new(config)))),
            adapters: adapters::Settings::default(),
            policies: None,
            classifiers: Vec::new(),
            head: None,
        }
    }
}

/// A node that serves.
pub struct Server {
    pub node: Arc<Node>,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    /// Holds the engine's steps back while it is closed.
    pub gate: Gate,
    /// What the engine was told, to know what it must say.
    pub engine: FakeConfig,
    pub client: reqwest::Client,
    pub shutdown: CancellationToken,
    tuning: Option<JoinHandle<()>>,
    pub serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A step thread behind a closed gate would never end.
        self.gate.open();
        self.tuning.iter().for_each(JoinHandle::abort);
        self.node.models().iter().for_each(|model| model.workers.stop());
    }
}

pub async fn server() -> Server {
    start(Options::default()).await
}

pub async fn start(options: Options) -> Server {
    let gate = Gate::new();
    let mut engine = FakeConfig {
        gate: Some(gate.clone()),
        fail_at_step: options.fail_at_step,
        step_time: options.step_time,
        ..FakeConfig::default()
    };
    engine.capabilities.vocab_size = TEXT.tokenizer.vocab_size();
    engine.capabilities.max_sequence_len = options.max_sequence_len;
    engine.capabilities.kv_capacity = 65_536;
    let (make, config, policies) = (options.make_engine, engine.clone(), options.policies.clone());
    let make = move |cancelled: &AtomicBool| {
        let planner = policies.as_ref().map(Policies::planner);
        let reports = policies.as_ref().map(Policies::reports);
        Ok(Parts { engine: make(config.clone(), cancelled)?, planner, drafter: None, reports })
    };
    let first = make(&AtomicBool::new(false)).unwrap();
    let files = AdapterFiles::default();
    let scheduler = SchedulerConfig { adapters: files.clone(), ..options.scheduler };
    let workers = Workers::start(options.workers, scheduler, first, Duration::ZERO, Box::new(make)).unwrap();
    let registry = Registry::new(TEXT.base.clone(), options.adapters, files, workers.clone());
    let model = Model {
        id: MODEL.to_owned(),
        created: 1_700_000_000,
        workers,
        recent: Arc::default(),
        tokenizer: Arc::clone(&TEXT.tokenizer),
        template: Some(Arc::clone(&TEXT.template)),
        constraints: Arc::clone(&TEXT.constraints),
        adapters: Some(registry),
        head: options.head,
        temperature: Temperature::new(1.0),
        max_sequence_len: options.max_sequence_len,
        embedding_size: engine.capabilities.hidden_size,
        defaults: Defaults { temperature: 0.0, ..Defaults::default() },
        classifiers: options.classifiers,
    };
    let (workers, recent) = (model.workers.clone(), Arc::clone(&model.recent));
    let node = Node::with_policies(vec![Arc::new(model)], options.policies.clone(), options.render_metrics);
    let tuning = options.policies.map(|policies| {
        let limits = workers.pace().limits;
        tokio::spawn(keep_tuning(policies, workers, recent, limits, node.started()))
    });

    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (public_addr, admin_addr) = (public.local_addr().unwrap(), admin.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let (ends, admin_ends) = (shutdown.clone().cancelled_owned(), shutdown.clone().cancelled_owned());
    let serve = serve_public(public, Arc::clone(&node), options.settings.clone(), ends);
    let serve_operators = serve_admin(admin, Arc::clone(&node), options.settings, admin_ends);
    let serving = tokio::spawn(async move {
        let (public, admin) = tokio::join!(serve, serve_operators);
        public.unwrap();
        admin.unwrap();
    });
    Server {
        node,
        public: public_addr,
        admin: admin_addr,
        gate,
        engine,
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
        shutdown,
        tuning,
        serving,
    }
}

/// A status and a body.
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Reply {
    pub async fn of(response: reqwest::Response) -> Reply {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Reply { status, headers, body }
    }

    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Checks status, type, `param` and `code` of an error.
    pub fn error(&self, status: u16, param: Option<&str>, code: Option<&str>) -> &str {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.body["error"];
        assert_eq!(error["param"], json!(param), "{}", self.body);
        assert_eq!(error["code"], json!(code), "{}", self.body);
        assert!(error["type"].is_string(), "{}", self.body);
        error["message"].as_str().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Server {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.public)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.client.post(self.url(path)).json(body).send().await.unwrap()).await
    }

    pub async fn get(&self, url: String) -> Reply {
        Reply::of(self.client.get(url).send().await.unwrap()).await
    }

    /// Posts with `stream` set and gives the events' data, the closing mark last.
    pub async fn stream(&self, path: &str, mut body: Value) -> Vec<String> {
        body["stream"] = json!(true);
        let response = self.client.post(self.url(path)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        events(&response.text().await.unwrap())
    }

    /// As [`Server::stream`], parsed, without the closing mark.
    pub async fn chunks(&self, path: &str, body: Value) -> Vec<Value> {
        let mut events = self.stream(path, body).await;
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The text that the engine must give after a prompt, without temperature.
    pub fn expected(&self, prompt: &[u32], num_new: usize) -> String {
        self.expected_with(AdapterId::BASE, prompt, num_new)
    }

    /// As [`Server::expected`], with an adapter.
    pub fn expected_with(&self, adapter: AdapterId, prompt: &[u32], num_new: usize) -> String {
        let mut tokens = FakeEngine::expected(&self.engine, adapter, prompt, num_new);
        let eos = TEXT.tokenizer.eos_tokens();
        tokens.truncate(tokens.iter().position(|token| eos.contains(token)).unwrap_or(tokens.len()));
        TEXT.tokenizer.decode(&tokens, true)
    }

    /// The tokens of a prompt or of messages, by the node itself.
    pub async fn tokens(&self, body: Value) -> Vec<u32> {
        let reply = self.post("/tokenize", &body).await.ok();
        reply["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
    }

    /// Waits until the step loop stands before a closed gate.
    pub async fn held_back(&self) {
        let model = &self.node.models()[0];
        until(|| model.workers.silence().is_some_and(|silence| !silence.is_zero())).await;
    }

    pub fn load(&self) -> quern_scheduler::Load {
        self.node.models()[0].workers.load()
    }
}

/// The data of all events of a stream.
pub fn events(text: &str) -> Vec<String> {
    let all = text.split("\n\n").filter(|event| !event.is_empty());
    all.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

pub fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A chat request with more fields.
pub fn chat(text: &str, more: Value) -> Value {
    with(json!({"model": MODEL, "messages": user(text)}), more)
}

/// A completion request with more fields.
pub fn completion(prompt: Value, more: Value) -> Value {
    with(json!({"model": MODEL, "prompt": prompt}), more)
}

/// A chat request for that many tokens, none of which ends the answer.
pub fn long_chat(num_tokens: u32, more: Value) -> Value {
    with(chat("hello", json!({"max_tokens": num_tokens, "ignore_eos": true})), more)
}

fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Fails a test that hangs.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("this should not take so long")
}

/// Waits until something is so.
pub async fn until(mut so: impl FnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    soon(async {
        while !so() {
            looks.tick().await;
        }
    })
    .await;
}
