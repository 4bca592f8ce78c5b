//! Several workers behind one node: where requests go, how workers come and go,
//! and what becomes of requests while there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quern::policies::{Place, Policies};
use quern::workers::{self, keep_scaling};
use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{AdapterId, Capabilities, Engine, EngineError, Row, SeqId, StepOutput};
use quern_scheduler::SchedulerConfig;
use serde_json::{Value, json};

use crate::support::{MakeEngine, Options, Reply, Server, chat, long_chat, soon, start, until};

const CHAT: &str = "/v1/chat/completions";

/// What a test lets happen to the engines that its node starts.
#[derive(Default)]
struct Fate {
    made: AtomicUsize,
    /// Starts fail.
    refuses: AtomicBool,
    /// Starts take until this is lowered, or they are asked to give up.
    holds: AtomicBool,
    /// The next step ends its thread.
    dies: AtomicBool,
    /// Steps fail.
    fails: AtomicBool,
    /// The next step and all later ones of the same engine find it lost.
    loses: AtomicBool,
}

impl Fate {
    fn engines(self: &Arc<Fate>) -> MakeEngine {
        let fate = Arc::clone(self);
        Box::new(move |config: FakeConfig, cancelled: &AtomicBool| {
            while fate.holds.load(Ordering::Acquire) && !cancelled.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            if fate.refuses.load(Ordering::Acquire) {
                return Err("the weights are gone".into());
            }
            fate.made.fetch_add(1, Ordering::AcqRel);
            Ok(Box::new(Mortal { fate: Arc::clone(&fate), engine: FakeEngine::new(config), is_lost: false }))
        })
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Acquire)
    }
}

/// The fake engine, which a test can let die.
struct Mortal {
    fate: Arc<Fate>,
    engine: FakeEngine,
    is_lost: bool,
}

impl Engine for Mortal {
    fn capabilities(&self) -> &Capabilities {
        self.engine.capabilities()
    }

    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        assert!(!self.fate.dies.swap(false, Ordering::AcqRel), "a test lets this thread end");
        if self.fate.fails.load(Ordering::Acquire) {
            return Err(EngineError::Failed("a test lets it".to_owned()));
        }
        self.is_lost |= self.fate.loses.swap(false, Ordering::AcqRel);
        if self.is_lost {
            return Err(EngineError::Lost("a test takes the device away".to_owned()));
        }
        self.engine.step(rows)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.engine.fork(from, to, len)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        self.engine.truncate(seq, len)
    }

    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError> {
        self.engine.save(seq)
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError> {
        self.engine.restore(seq, state)
    }

    fn load_adapter(&mut self, id: AdapterId, path: &Path) -> Result<(), EngineError> {
        self.engine.load_adapter(id, path)
    }

    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError> {
        self.engine.unload_adapter(id)
    }
}

fn settings(min: u32, start: u32, max: u32) -> workers::Settings {
    let restart_delay = Duration::from_millis(20);
    workers::Settings {
        min,
        start,
        max,
        restart_delay,
        max_restart_delay: restart_delay,
        ..Default::default()
    }
}

async fn serve(workers: workers::Settings, fate: &Arc<Fate>) -> Server {
    let server =
        start(Options { workers: workers.clone(), make_engine: fate.engines(), ..Options::default() }).await;
    ready(&server, workers.start).await;
    server
}

/// Waits until so many workers are ready and no others are there.
async fn ready(server: &Server, count: u32) {
    let workers = &server.node.models()[0].workers;
    until(|| {
        let status = workers.status();
        (status.ready, status.starting, status.draining) == (count, 0, 0)
    })
    .await;
}

async fn shown(server: &Server) -> Value {
    server.get(server.admin_url("/v1/autoscale")).await.ok()
}

async fn order(server: &Server, order: Value) -> Reply {
    Reply::of(server.client.post(server.admin_url("/v1/autoscale")).json(&order).send().await.unwrap()).await
}

/// Requests inside each worker.
fn inside(server: &Server) -> Vec<usize> {
    server.node.models()[0].workers.status().workers.iter().map(|worker| worker.inside).collect()
}

/// A question that has a hundred tokens and more before it differs from none other
/// of the same subject.
fn about(subject: &str, more: Value) -> Value {
    chat(&subject.repeat(40), more)
}

type Asked = tokio::task::JoinHandle<Reply>;

fn ask(server: &Server, body: Value) -> Asked {
    let request = server.client.post(server.url(CHAT)).json(&body);
    tokio::spawn(async move { Reply::of(request.send().await.unwrap()).await })
}

async fn answer(asked: Asked) -> Value {
    soon(asked).await.unwrap().ok()
}

#[tokio::test]
async fn a_prompt_goes_where_its_beginning_is_cached() {
    // The words of the template that all prompts share are not worth waiting for.
    let workers = workers::Settings { spill_requests: 0, ..settings(1, 2, 2) };
    let server = serve(workers, &Arc::default()).await;
    server.gate.close();
    let few = json!({"max_tokens": 2});
    let mut asked = Vec::new();
    for (idx, subject) in ["mill", "corn"].into_iter().enumerate() {
        asked.push(ask(&server, about(subject, few.clone())));
        // Nobody knows either subject: the second goes to the one with nothing to do.
        until(|| inside(&server).iter().sum::<usize>() == idx + 1).await;
    }
    assert_eq!(inside(&server), [1, 1]);
    server.gate.open();
    for asked in asked {
        assert_eq!(answer(asked).await["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
    for subject in ["corn", "mill", "corn", "mill"] {
        // An answer may arrive before its worker is counted as idle; once both are, only
        // the prefix can tell them apart.
        until(|| inside(&server) == [0, 0]).await;
        let told = server.post(CHAT, &about(subject, few.clone())).await.ok();
        let (cached, all) =
            (&told["usage"]["prompt_tokens_details"]["cached_tokens"], &told["usage"]["prompt_tokens"]);
        assert_eq!(cached.as_u64().unwrap() + 1, all.as_u64().unwrap(), "{told}");
    }
}

#[tokio::test]
async fn an_overloaded_worker_is_passed_over() {
    let workers = workers::Settings { spill_requests: 1, ..settings(1, 2, 2) };
    let server = serve(workers, &Arc::default()).await;
    server.gate.close();
    let mut asked = Vec::new();
    for expected in [[1, 0], [2, 0], [2, 1], [2, 2]] {
        asked.push(ask(&server, about("mill", json!({"max_tokens": 2}))));
        until(|| inside(&server) == expected).await;
    }
    server.gate.open();
    for asked in asked {
        answer(asked).await;
    }
}

#[tokio::test]
async fn fewer_workers_finish_what_they_have() {
    let workers = workers::Settings { spill_requests: 0, ..settings(1, 2, 2) };
    let server = serve(workers, &Arc::default()).await;
    server.gate.close();
    let asked: Vec<Asked> = (0..8).map(|_| ask(&server, long_chat(60, json!({})))).collect();
    until(|| inside(&server) == [4, 4]).await;
    let told = order(&server, json!({"desired": 1})).await.ok();
    assert_eq!(told["desired"], 1);
    assert_eq!((&told["wished_by"], &told["fixed"]), (&json!("operator"), &json!(true)));
    let workers = &server.node.models()[0].workers;
    until(|| workers.status().draining == 1).await;
    // The one that drains gets nothing new.
    let late = ask(&server, chat("a", json!({"max_tokens": 2})));
    until(|| {
        let status = workers.status();
        let inside = |state| status.workers.iter().find(|worker| worker.state == state).map(|one| one.inside);
        (inside("ready"), inside("draining")) == (Some(5), Some(4))
    })
    .await;
    server.gate.open();
    for asked in asked {
        assert_eq!(answer(asked).await["usage"]["completion_tokens"], 60);
    }
    answer(late).await;
    ready(&server, 1).await;

    let told = order(&server, json!({"desired": null})).await.ok();
    assert_eq!((&told["desired"], &told["wished_by"]), (&json!(2), &json!("configuration")));
    ready(&server, 2).await;
}

#[tokio::test]
async fn a_worker_that_drains_serves_on_when_it_is_wanted_again() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(0, 1, 1), &fate).await;
    server.gate.close();
    let first = ask(&server, chat("a", json!({"max_tokens": 2})));
    until(|| inside(&server) == [1]).await;
    order(&server, json!({"desired": 0})).await.ok();
    let workers = &server.node.models()[0].workers;
    until(|| workers.status().draining == 1).await;
    let second = ask(&server, chat("b", json!({"max_tokens": 2})));
    until(|| inside(&server) == [2]).await;
    server.gate.open();
    answer(first).await;
    answer(second).await;
    assert_eq!(fate.made(), 1);
    assert_eq!(shown(&server).await["ready"], 1);
}

#[tokio::test]
async fn the_next_request_brings_a_worker_back() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(0, 1, 1), &fate).await;
    order(&server, json!({"desired": 0})).await.ok();
    ready(&server, 0).await;
    assert_eq!(shown(&server).await["workers"], json!([]));
    // It can serve a request, and says so.
    server.get(server.admin_url("/health")).await.ok();
    server.get(server.admin_url("/ready")).await.ok();
    let state = server.get(server.admin_url("/admin/state")).await.ok();
    assert_eq!(state["models"][0]["kv_capacity_tokens"], 0);

    let told = server.post(CHAT, &chat("a", json!({"max_tokens": 3}))).await.ok();
    assert_eq!(told["usage"]["completion_tokens"], 3);
    let told = shown(&server).await;
    assert_eq!(
        (&told["ready"], &told["wished_by"], &told["fixed"]),
        (&json!(1), &json!("request"), &json!(false))
    );
    server.post(CHAT, &chat("b", json!({"max_tokens": 3}))).await.ok();
    assert_eq!(fate.made(), 2, "the first worker, and one more");
}

#[tokio::test]
async fn those_that_wait_for_a_worker_are_few_and_do_not_wait_for_ever() {
    let fate = Arc::new(Fate::default());
    let scheduler = SchedulerConfig { max_queued: 2, ..SchedulerConfig::default() };
    let server = start(Options {
        workers: settings(0, 1, 1),
        make_engine: fate.engines(),
        scheduler,
        ..Options::default()
    })
    .await;
    order(&server, json!({"desired": 0})).await.ok();
    ready(&server, 0).await;
    fate.holds.store(true, Ordering::Release);

    let late = server.client.post(server.url(CHAT)).header("x-request-deadline-ms", "30");
    let late = Reply::of(late.json(&chat("a", json!({}))).send().await.unwrap()).await;
    late.error(504, None, Some("deadline_exceeded"));
    // A start that takes long is no reason to be unwell.
    server.get(server.admin_url("/health")).await.ok();
    let asked: Vec<Asked> = (0..2).map(|_| ask(&server, chat("a", json!({"max_tokens": 2})))).collect();
    until(|| server.load().queued == 2).await;
    server.post(CHAT, &chat("a", json!({}))).await.error(429, None, Some("queue_full"));
    assert_eq!(shown(&server).await["pending"], 2);
    fate.holds.store(false, Ordering::Release);
    for asked in asked {
        answer(asked).await;
    }
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_tried_again() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(0, 1, 1), &fate).await;
    order(&server, json!({"desired": 0})).await.ok();
    ready(&server, 0).await;
    fate.refuses.store(true, Ordering::Release);
    let reply = server.post(CHAT, &chat("a", json!({}))).await;
    assert!(reply.error(503, None, Some("no_worker")).contains("the weights are gone"), "{}", reply.body);
    assert!(reply.header("retry-after").is_some());
    for path in ["/health", "/ready"] {
        let reply = server.get(server.admin_url(path)).await;
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.body["reason"].as_str().unwrap().contains("the weights are gone"), "{}", reply.body);
    }
    assert_eq!(shown(&server).await["last_failure"]["reason"], "the weights are gone");

    fate.refuses.store(false, Ordering::Release);
    ready(&server, 1).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 1}))).await.ok();
    server.get(server.admin_url("/health")).await.ok();
    assert_eq!(shown(&server).await["last_failure"]["retry_in_seconds"], Value::Null);
}

#[tokio::test]
async fn who_comes_long_before_the_next_try_is_told_at_once() {
    let fate = Arc::new(Fate::default());
    let hour = Duration::from_secs(3600);
    let workers = workers::Settings { restart_delay: hour, max_restart_delay: hour, ..settings(0, 1, 1) };
    let server = serve(workers, &fate).await;
    order(&server, json!({"desired": 0})).await.ok();
    ready(&server, 0).await;
    fate.refuses.store(true, Ordering::Release);
    for _ in 0..2 {
        let reply = server.post(CHAT, &chat("a", json!({"stream": true}))).await;
        reply.error(503, None, Some("no_worker"));
    }
}

#[tokio::test]
async fn a_worker_that_dies_takes_nobody_with_it_and_is_started_again() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(1, 2, 2), &fate).await;
    server.gate.close();
    let asked: Vec<Asked> = (0..2).map(|_| ask(&server, long_chat(20, json!({})))).collect();
    until(|| inside(&server) == [1, 1]).await;
    fate.dies.store(true, Ordering::Release);
    server.gate.open();
    let mut replies = Vec::new();
    for asked in asked {
        replies.push(soon(asked).await.unwrap());
    }
    replies.sort_by_key(|reply| reply.status);
    assert_eq!(replies[0].body["usage"]["completion_tokens"], 20, "{}", replies[0].body);
    replies[1].error(500, None, Some("engine_lost"));
    until(|| fate.made() == 3).await;
    ready(&server, 2).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
    server.get(server.admin_url("/health")).await.ok();
    assert!(shown(&server).await["last_failure"]["reason"].as_str().unwrap().contains("ended by itself"));
}

#[tokio::test]
async fn a_worker_whose_engine_only_fails_is_replaced() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(1, 1, 1), &fate).await;
    fate.fails.store(true, Ordering::Release);
    for _ in 0..3 {
        server.post(CHAT, &chat("a", json!({}))).await.error(500, None, Some("engine_failed"));
    }
    fate.fails.store(false, Ordering::Release);
    until(|| fate.made() == 2).await;
    ready(&server, 1).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
}

#[tokio::test]
async fn a_worker_whose_engine_is_lost_is_replaced_at_once() {
    let fate = Arc::new(Fate::default());
    let server = serve(settings(1, 1, 1), &fate).await;
    fate.loses.store(true, Ordering::Release);
    let reply = server.post(CHAT, &chat("a", json!({}))).await;
    let message = reply.error(500, None, Some("engine_failed"));
    assert!(message.contains("a test takes the device away"), "{message}");
    // Whoever comes meanwhile waits for the new one; nobody is given to the old.
    server.post(CHAT, &chat("b", json!({"max_tokens": 2}))).await.ok();
    assert_eq!(fate.made(), 2);
    ready(&server, 1).await;
    assert_eq!(shown(&server).await["last_failure"]["reason"], "the engine was lost");
}

#[tokio::test]
async fn an_order_must_be_one_that_can_be_kept() {
    let server = serve(settings(1, 1, 2), &Arc::default()).await;
    for (wrong, why) in [
        (json!({"desired": 3}), "from 1 to 2"),
        (json!({"desired": 0}), "from 1 to 2"),
        (json!({"desired": -1}), "invalid value"),
        (json!({"desired": 2, "now": true}), "unknown field"),
        (json!({}), "missing field"),
    ] {
        let reply = order(&server, wrong).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.body["error"].as_str().unwrap().contains(why), "{}", reply.body);
    }
    let told = shown(&server).await;
    assert_eq!((&told["desired"], &told["min"], &told["max"]), (&json!(1), &json!(1), &json!(2)));
    assert_eq!((&told["model"], &told["workers"][0]["state"]), (&json!("tiny"), &json!("ready")));
}

/// The autoscaler that `make guests` has built; none where it was not.
fn target_tracking() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_quern")).parent()?.parent()?.join("guests");
    let file = folder.join("target-tracking.wasm");
    if !file.exists() {
        eprintln!("SKIPPED: {} is missing; `make guests` builds it", file.display());
        return None;
    }
    Some(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_drives_the_node_to_zero_and_back() {
    let Some(file) = target_tracking() else { return };
    let mut place = quern_extensions::Settings::named("tracking");
    for (key, value) in
        [("zero-after-ms", "60"), ("down-after-ms", "60"), ("hold-ms", "100"), ("target-sequences", "2")]
    {
        place.config.insert(key.to_owned(), value.to_owned());
    }
    // A busy machine may take longer than usual for a call; that is not judged here.
    place.deadlines.autoscaler = Duration::from_secs(5);
    let place = Place { settings: place, file: Some(file), watch: false };
    let policies = tokio::task::spawn_blocking(move || Policies::start(&[place], 2)).await.unwrap().unwrap();

    let fate = Arc::new(Fate::default());
    let server = serve(settings(0, 1, 2), &fate).await;
    let model = &server.node.models()[0];
    let recent = Arc::clone(&model.recent);
    let scaling =
        tokio::spawn(keep_scaling(policies, model.workers.clone(), recent, Duration::from_millis(20), 60));

    // Nobody asks: the policy wants no worker, and there is none any more.
    ready(&server, 0).await;
    let told = shown(&server).await;
    assert_eq!((&told["desired"], &told["wished_by"]), (&json!(0), &json!("policy tracking")));
    assert!(told["reason"].as_str().unwrap().contains("nothing to do"), "{told}");

    // Many ask at once: one is brought back at once, and the policy wants another.
    server.gate.close();
    let asked: Vec<Asked> = (0..6).map(|_| ask(&server, long_chat(4, json!({})))).collect();
    ready(&server, 2).await;
    let told = shown(&server).await;
    assert_eq!((&told["desired"], &told["wished_by"]), (&json!(2), &json!("policy tracking")));
    server.gate.open();
    for asked in asked {
        assert_eq!(answer(asked).await["usage"]["completion_tokens"], 4);
    }
    ready(&server, 0).await;
    assert!(fate.made() >= 3, "{}", fate.made());
    scaling.abort();
}
