//! The batcher hook: limits of steps that change while the node serves.

use std::time::Duration;

use quern_extensions::Hook;
use quern_scheduler::Limits;
use serde_json::json;

use crate::guests::{answer, guest};
use crate::setting::{built, load, place, policies, serve, unload};
use crate::support::{Options, Server, long_chat, start, until};

const CHAT: &str = "/v1/chat/completions";

fn limits(server: &Server) -> Limits {
    server.node.models()[0].workers.pace().limits
}

#[tokio::test]
async fn limits_follow_the_policy_and_come_back_without_it() {
    let server = serve(place(None, &[])).await;
    let configured = limits(&server);
    // 33 rows, 5 sequences, 2 ms of waiting, 50 ms a step; good for a minute.
    let words = [0, 1, 33, 5, 2_000, 50_000, 60_000];
    load(&server, &guest().with(Hook::Batcher, answer(&words))).await.ok();
    let wanted = Limits {
        token_budget: 33,
        max_running: 5,
        target_step: Duration::from_millis(50),
        wait_window: Duration::from_millis(2),
    };
    until(|| limits(&server) == wanted).await;
    server.post(CHAT, &long_chat(20, json!({}))).await.ok();

    // Another version need not wait for the minute to pass.
    let words = [0, 1, 44, 5, 2_000, 50_000, 60_000];
    load(&server, &guest().with(Hook::Batcher, answer(&words))).await.ok();
    until(|| limits(&server).token_budget == 44).await;
    unload(&server).await;
    until(|| limits(&server) == configured).await;
}

#[tokio::test]
async fn a_target_between_tokens_is_worked_for() {
    let Some(file) = built("tbt-target") else { return };
    // Every step takes five times the target, whatever the batcher does.
    let policies = Some(policies(&[place(Some(&file), &[("target-ms", "1"), ("hold-ms", "10")])]));
    let step_time = Duration::from_millis(5);
    let server = start(Options { policies, step_time, ..Options::default() }).await;
    let configured = limits(&server);
    until(|| limits(&server).target_step == Duration::from_millis(1)).await;
    server.post(CHAT, &long_chat(10, json!({}))).await.ok();
    // What was measured is over the target, so steps are to be shorter.
    until(|| limits(&server).target_step < Duration::from_millis(1)).await;
    assert_eq!(limits(&server).token_budget, configured.token_budget);
    unload(&server).await;
    until(|| limits(&server) == configured).await;
}
