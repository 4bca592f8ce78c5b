//! Hostile guests in a node under load: each comes while clients stream, and every
//! answer stays what it is without a policy.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quern_extensions::{Quarantine, Settings, Trial};
use quern_scheduler::SchedulerConfig;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::guests::evil::{loadable, refused};
use crate::guests::{NO_OPINION, good_plan, guest, plan_of};
use crate::setting::{load_bytes, place_with, policies, status, unload};
use crate::support::{Options, Server, completion, events, soon, start};

/// Clients that stream all the time.
const CLIENTS: usize = 8;

/// Answers that each has to get beside every guest.
const ANSWERS: usize = 2;

/// Tokens of an answer.
const TOKENS: usize = 24;

/// No guest may cost this: what is promised is that none costs a second.
const STALL: Duration = Duration::from_secs(1);

/// Clients at work, each with what it got so far.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Vec<Arc<AtomicUsize>>,
    clients: Vec<JoinHandle<Duration>>,
}

impl Load {
    fn begin(server: &Arc<Server>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answers: Vec<Arc<AtomicUsize>> = (0..CLIENTS).map(|_| Arc::default()).collect();
        let clients = answers.iter().enumerate().map(|(client, answers)| {
            let (server, stop, answers) = (Arc::clone(server), Arc::clone(&stop), Arc::clone(answers));
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let round = answers.load(Ordering::Relaxed);
                    longest = longest.max(stream(&server, client, round).await);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                longest
            })
        });
        Load { clients: clients.collect(), stop, answers }
    }

    /// Until every client got that many more answers.
    async fn go_on(&self, num_answers: usize) {
        let wanted: Vec<usize> =
            self.answers.iter().map(|answers| answers.load(Ordering::Relaxed) + num_answers).collect();
        let mut looks = tokio::time::interval(Duration::from_millis(2));
        let reached = || {
            let mut each = self.answers.iter().zip(&wanted);
            each.all(|(answers, wanted)| answers.load(Ordering::Relaxed) >= *wanted)
        };
        // A client that failed ends; its panic is told when it is joined.
        soon(async {
            while !reached() && !self.clients.iter().any(JoinHandle::is_finished) {
                looks.tick().await;
            }
        })
        .await;
    }

    /// The longest that any client waited for a piece of an answer.
    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for client in self.clients {
            longest = longest.max(soon(client).await.unwrap());
        }
        longest
    }
}

/// Streams one answer, checks it, and gives the longest time between two pieces.
async fn stream(server: &Server, client: usize, round: usize) -> Duration {
    // Some share a prefix, some do not, and lengths differ.
    let prompt: Vec<u32> = (0..12 + (client * 7 + round * 5) % 40)
        .map(|idx| 100 + ((idx * idx + client * (idx / 8) * 13 + round) % 150) as u32)
        .collect();
    let more = json!({"max_tokens": TOKENS, "stream": true, "user": format!("tenant {client}")});
    let ask = completion(json!(prompt), more);
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    let mut response = server.client.post(server.url("/v1/completions")).json(&ask).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    while let Some(piece) = response.chunk().await.unwrap() {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let mut events = events(&text);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{text}");
    let said: String = events
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, server.expected(&prompt, TOKENS), "client {client}, round {round}");
    longest
}

async fn node(settings: Settings, file: Option<&Path>, watch: bool) -> Arc<Server> {
    let place = quern::policies::Place { watch, ..place_with(settings, file) };
    let options = Options {
        policies: Some(policies(&[place])),
        step_time: Duration::from_millis(1),
        scheduler: SchedulerConfig { check_invariants: true, ..SchedulerConfig::default() },
        ..Options::default()
    };
    Arc::new(start(options).await)
}

/// Default deadlines, and nobody is ever sent away.
fn forgiving() -> Settings {
    Settings {
        trial: Trial { calls: 0, forgiven: 0 },
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        ..Settings::named("main")
    }
}

/// Lets every guest do its worst for a while; gives all kinds of verdicts.
async fn run(settings: Settings) -> BTreeSet<String> {
    let server = node(settings, None, false).await;
    let load = Load::begin(&server);
    load.go_on(1).await;
    let mut seen = BTreeSet::new();
    for (what, evil) in loadable() {
        let reply = load_bytes(&server, evil.module()).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.body);
        load.go_on(ANSWERS).await;
        let calls = status(&server).await["serving"]["calls"].clone();
        for hook in calls.as_array().unwrap_or(&Vec::new()) {
            let verdicts = hook["verdicts"].as_object().unwrap();
            seen.extend(
                verdicts.iter().filter(|(_, count)| **count != 0).map(|(verdict, _)| verdict.clone()),
            );
        }
    }
    // Whoever serves stays when files come that must not load.
    load_bytes(&server, guest().with(quern_extensions::Hook::Scheduler, NO_OPINION).module()).await.ok();
    for (what, bytes) in refused() {
        let reply = load_bytes(&server, bytes).await;
        assert_eq!(reply.status, 422, "{what}: {}", reply.body);
        load.go_on(1).await;
        assert_eq!(status(&server).await["serving"]["name"], "guest", "{what}");
    }
    unload(&server).await;
    load.go_on(1).await;
    let longest = load.end().await;
    assert!(longest < STALL, "a client waited for {longest:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_that_are_asked_for_ever_cost_no_request() {
    let seen = run(forgiving()).await;
    for verdict in ["used", "none", "error", "trapped", "late", "invalid"] {
        assert!(seen.contains(verdict), "no call was {verdict}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_are_rolled_back_and_shut_out_and_cost_no_request() {
    let seen = run(Settings::named("main")).await;
    assert!(seen.contains("none"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_half_way_costs_no_request() {
    let hook = quern_extensions::Hook::Scheduler;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.wasm");
    let first = guest().named("first").with(hook, NO_OPINION).component();
    let second = guest().named("second").with(hook, plan_of(&good_plan())).component();
    std::fs::write(&path, &first).unwrap();
    let server = node(forgiving(), Some(&path), true).await;
    let load = Load::begin(&server);
    load.go_on(1).await;
    // A writer that stops half-way: the file is looked at, at rest, and refused.
    std::fs::write(&path, &second[..second.len() / 2]).unwrap();
    let looked = Instant::now();
    while looked.elapsed() < 3 * quern_extensions::watch::PERIOD {
        load.go_on(1).await;
        assert_eq!(status(&server).await["serving"]["name"], "first");
    }
    std::fs::write(&path, &second).unwrap();
    soon(async {
        while status(&server).await["serving"]["name"] != "second" {
            load.go_on(1).await;
        }
    })
    .await;
    load.go_on(ANSWERS).await;
    let longest = load.end().await;
    assert!(longest < STALL, "a client waited for {longest:?}");
}
