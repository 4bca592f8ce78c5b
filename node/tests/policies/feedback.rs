//! The feedback hook: a policy that learns hears of all who left.

use std::time::Duration;

use quern_extensions::Hook;
use serde_json::{Value, json};

use crate::guests::{NO_OPINION, guest};
use crate::setting::{load, place, policies, serve, status, verdicts};
use crate::support::{Options, Server, chat, long_chat, soon, start, until};

const CHAT: &str = "/v1/chat/completions";

/// Refuses every request once it heard of so many, and says so; `$calls` counts
/// what `count` adds for each row, of which `$row` is the number.
fn learner(count: &str, enough: u32) -> crate::guests::Guest {
    let observe = format!(
        "(local $row i32)
         (block $done (loop $rows
           (br_if $done (i32.ge_u (local.get $row) (local.get 1)))
           (global.set $calls (i32.add (global.get $calls) {count}))
           (local.set $row (i32.add (local.get $row) (i32.const 1)))
           (br $rows)))"
    );
    // ok, some, reject, forbidden, no time, its own name.
    let refuse = crate::guests::answer(&[0, 1, 1, 2, 0, 0, 512, 5]);
    let decide = format!(
        "(if (i32.lt_u (global.get $calls) (i32.const {enough})) (then (return (i32.const 2048)))) {refuse}"
    );
    guest().with(Hook::Feedback, observe).with(Hook::Admission, decide)
}

/// Asks until the policy refuses, which it does when it was told.
async fn refused_in_the_end(server: &Server, ask: &Value) -> usize {
    soon(async {
        let mut served = 0;
        while server.post(CHAT, ask).await.status == 200 {
            served += 1;
        }
        served
    })
    .await
}

/// Waits until the policy heard of all who left so far, and of one more.
async fn all_told(server: &Server) {
    let heard = async || verdicts(&status(server).await, "feedback", "used");
    let before = heard().await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
    soon(async { while heard().await == before {} }).await;
}

#[tokio::test]
async fn a_policy_that_counts_requests_hears_of_each() {
    let server = serve(place(None, &[])).await;
    load(&server, &learner("(i32.const 1)", 4)).await.ok();
    for _ in 0..3 {
        server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
    }
    // Two choices are two rows, and a fourth and a fifth one.
    server.post(CHAT, &chat("a", json!({"max_tokens": 2, "n": 2}))).await.ok();
    refused_in_the_end(&server, &chat("a", json!({"max_tokens": 2}))).await;
    let status = status(&server).await;
    assert!(verdicts(&status, "feedback", "used") >= 1, "{status}");
    assert!(verdicts(&status, "admission", "none") >= 4, "{status}");
}

#[tokio::test]
async fn it_hears_how_each_ended_and_what_it_took() {
    // So slow that a long answer does not end before a hang-up is noticed.
    let step_time = Duration::from_millis(5);
    let policies = Some(policies(&[place(None, &[])]));
    let server = start(Options { policies, step_time, ..Options::default() }).await;
    // Outcomes are bytes in the fifth and sixth parameter; 0 is finished, 1 cancelled.
    let outcome = "(i32.eq (i32.load8_u (i32.add (local.get 4) (local.get $row))) (i32.const 1))";
    load(&server, &learner(outcome, 1)).await.ok();
    // A stop string ends an answer well, though the scheduler hears of it as a hang-up.
    let whole = server.post(CHAT, &long_chat(40, json!({}))).await.ok();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let stop: String = text.chars().skip(5).take(3).collect();
    let stopped = server.post(CHAT, &long_chat(2000, json!({"stop": [stop]}))).await.ok();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    until(|| server.node.is_idle()).await;
    all_told(&server).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();

    // A client that hangs up does not. Nobody else runs by then who could be taken for it.
    until(|| server.load().running == 0).await;
    let asked = tokio::spawn(server.client.post(server.url(CHAT)).json(&long_chat(1900, json!({}))).send());
    until(|| server.load().running == 1).await;
    asked.abort();
    let _ = asked.await;
    until(|| server.node.is_idle()).await;
    refused_in_the_end(&server, &chat("a", json!({"max_tokens": 2}))).await;

    // New tokens are numbers in the ninth and tenth.
    let tokens = "(i32.load (i32.add (local.get 8) (i32.mul (local.get $row) (i32.const 4))))";
    load(&server, &learner(tokens, 100)).await.ok();
    let served = refused_in_the_end(&server, &long_chat(25, json!({}))).await;
    assert!(served >= 4, "{served} times 25 tokens");
}

#[tokio::test]
async fn what_only_observes_has_an_instance_of_its_own() {
    let server = serve(place(None, &[])).await;
    load(&server, &guest().with(Hook::Feedback, "").with(Hook::Scheduler, NO_OPINION)).await.ok();
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
    load(&server, &guest().with(Hook::Feedback, "")).await.ok();
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await.ok();
    soon(async { while verdicts(&status(&server).await, "feedback", "used") == 0 {} }).await;
}
