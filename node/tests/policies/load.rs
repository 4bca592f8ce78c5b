//! Clients that stream all the time and check every answer: what runs while policies
//! come and go.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quern_extensions::Settings;
use quern_scheduler::SchedulerConfig;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::setting::{place_with, policies};
use crate::support::{Options, Server, completion, events, soon, start};

/// Clients that stream all the time.
const CLIENTS: usize = 8;

/// Tokens of an answer.
const TOKENS: usize = 24;

/// Clients at work, each with what it got so far.
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Vec<Arc<AtomicUsize>>,
    clients: Vec<JoinHandle<Duration>>,
}

impl Load {
    pub fn begin(server: &Arc<Server>) -> Load {
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
    pub async fn go_on(&self, num_answers: usize) {
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
    pub async fn end(self) -> Duration {
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

/// A node whose steps take a while and whose books are checked, with one place for a policy.
pub async fn node(settings: Settings, file: Option<&Path>, watch: bool) -> Arc<Server> {
    let place = quern::policies::Place { watch, ..place_with(settings, file) };
    let options = Options {
        policies: Some(policies(&[place])),
        step_time: Duration::from_millis(1),
        scheduler: SchedulerConfig { check_invariants: true, ..SchedulerConfig::default() },
        ..Options::default()
    };
    Arc::new(start(options).await)
}
