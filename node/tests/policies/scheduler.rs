//! The scheduler hook: whoever goes first is another one.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quern_scheduler::SchedulerConfig;
use serde_json::{Value, json};

use crate::setting::{built, place, policies, status, verdicts};
use crate::support::{Options, long_chat, soon, start, until};

const CHAT: &str = "/v1/chat/completions";

/// A request: its name, its fields, and its deadline in milliseconds.
type Ask = (&'static str, Value, Option<u32>);

/// Lets one request run, lets others come one after the other, and tells in
/// which order they end where one runs at a time.
async fn order(file: Option<&Path>, asks: &[Ask]) -> Vec<&'static str> {
    let policies = Some(policies(&[place(file, &[])]));
    let scheduler = SchedulerConfig { max_running: 1, check_invariants: true, ..SchedulerConfig::default() };
    let step_time = Duration::from_millis(10);
    let server = start(Options { policies, scheduler, step_time, ..Options::default() }).await;
    server.gate.close();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let mut asked = Vec::new();
    for (number, (name, more, deadline)) in asks.iter().enumerate() {
        let mut request = server.client.post(server.url(CHAT)).json(&long_chat(6, more.clone()));
        if let Some(deadline) = deadline {
            request = request.header("x-request-deadline-ms", *deadline);
        }
        let (ended, name) = (Arc::clone(&ended), *name);
        asked.push(tokio::spawn(async move {
            assert_eq!(request.send().await.unwrap().status(), 200);
            ended.lock().unwrap().push(name);
        }));
        match number {
            0 => server.held_back().await,
            // One runs, and the others wait where the step loop has not seen them yet.
            _ => until(|| server.load().queued == number).await,
        }
    }
    server.gate.open();
    for asked in asked {
        soon(asked).await.unwrap();
    }
    if file.is_some() {
        assert!(verdicts(&status(&server).await, "scheduler", "used") > 0);
    }
    Arc::into_inner(ended).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn the_earliest_deadline_goes_first() {
    let Some(file) = built("edf") else { return };
    let none = || json!({});
    let asks = [
        ("running", none(), Some(100_000)),
        ("in 300 s", none(), Some(300_000)),
        ("in 200 s", none(), Some(200_000)),
        ("in 150 s", none(), Some(150_000)),
    ];
    assert_eq!(order(None, &asks).await, ["running", "in 300 s", "in 200 s", "in 150 s"]);
    assert_eq!(order(Some(&file), &asks).await, ["running", "in 150 s", "in 200 s", "in 300 s"]);
}

#[tokio::test]
async fn a_tenant_that_asks_for_little_does_not_wait_for_one_that_asks_for_much() {
    let Some(file) = built("tenant-fair") else { return };
    let of = |user: &str| json!({"user": user});
    let asks = [
        ("greedy 1", of("greedy"), None),
        ("greedy 2", of("greedy"), None),
        ("greedy 3", of("greedy"), None),
        ("greedy 4", of("greedy"), None),
        ("modest", of("modest"), None),
    ];
    assert_eq!(order(None, &asks).await, ["greedy 1", "greedy 2", "greedy 3", "greedy 4", "modest"]);
    let fair = order(Some(&file), &asks).await;
    let place = fair.iter().position(|name| *name == "modest").unwrap();
    // The one that ran may end first, or is paused for it.
    assert!(place <= 1, "{fair:?}");
    assert_eq!(fair.len(), 5);
}
