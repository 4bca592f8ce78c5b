//! The operators' listener.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use quern::http::Settings;
use serde_json::json;

use crate::support::{Options, chat, long_chat, server, start, until};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn health_fails_when_the_step_loop_is_stuck() {
    let settings = Settings { stuck_after: Duration::from_millis(20), ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;
    server.get(server.admin_url("/health")).await.ok();
    server.gate.close();
    let ask = server.client.post(server.url(CHAT)).json(&chat("a", json!({"max_tokens": 1})));
    let asked = tokio::spawn(ask.send());
    let model = &server.node.models()[0];
    until(|| model.workers.silence().unwrap() > Duration::from_millis(20)).await;
    let reply = server.get(server.admin_url("/health")).await;
    assert_eq!(reply.status, 503);
    assert!(reply.body["reason"].as_str().unwrap().contains("no progress"), "{}", reply.body);

    server.gate.open();
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    server.get(server.admin_url("/health")).await.ok();
}

#[tokio::test]
async fn health_fails_when_the_step_loop_has_ended() {
    let server = server().await;
    let model = &server.node.models()[0];
    model.workers.stop();
    until(|| model.workers.silence().is_none()).await;
    assert_eq!(server.get(server.admin_url("/health")).await.status, 503);
    assert_eq!(server.get(server.admin_url("/ready")).await.status, 503);
    server.post(CHAT, &chat("a", json!({}))).await.error(503, None, Some("draining"));
}

#[tokio::test]
async fn ready_waits_for_the_model() {
    let server = server().await;
    server.node.set_loading(true);
    let reply = server.get(server.admin_url("/ready")).await;
    assert_eq!((reply.status, &reply.body["reason"]), (503, &json!("loading")));
    server.node.set_loading(false);
    server.get(server.admin_url("/ready")).await.ok();
}

#[tokio::test]
async fn draining_refuses_new_requests_and_finishes_the_old() {
    let server = start(Options { step_time: Duration::from_millis(5), ..Options::default() }).await;
    let ask = long_chat(200, json!({"stream": true}));
    let mut running = server.client.post(server.url(CHAT)).json(&ask).send().await.unwrap();
    let drain = server.client.post(server.admin_url("/admin/drain")).send().await.unwrap();
    assert_eq!(drain.status(), 202);

    let reply = server.get(server.admin_url("/ready")).await;
    assert_eq!((reply.status, &reply.body["reason"]), (503, &json!("draining")));
    server.get(server.admin_url("/health")).await.ok();
    let reply = server.post(CHAT, &chat("b", json!({}))).await;
    reply.error(503, None, Some("draining"));
    assert!(reply.header("retry-after").is_some());

    let mut text = String::new();
    while let Some(piece) = running.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn the_state_tells_the_load() {
    let server = server().await;
    server.gate.close();
    let ask = server.client.post(server.url(CHAT)).json(&chat("a", json!({"max_tokens": 1})));
    let asked = tokio::spawn(ask.send());
    server.held_back().await;
    let state = server.get(server.admin_url("/admin/state")).await.ok();
    assert_eq!(state["models"][0]["id"], "tiny");
    assert_eq!(state["models"][0]["kv_capacity_tokens"], 65_536);
    assert_eq!(state["draining"], false);
    server.gate.open();
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn metrics_are_scraped_as_text() {
    let handle = PrometheusBuilder::new().install_recorder().unwrap();
    let server =
        start(Options { render_metrics: Box::new(move || handle.render()), ..Options::default() }).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 3}))).await.ok();
    server.get(server.url("/no/such/path/1")).await.error(404, None, Some("unknown_url"));
    let response = server.client.get(server.admin_url("/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    for name in [
        "quern_http_requests_total{endpoint=\"chat_completions\",status=\"200\"}",
        "quern_http_requests_total{endpoint=\"other\",status=\"404\"}",
        "quern_requests_refused_total{reason=\"unknown_url\"}",
        "quern_request_duration_seconds",
        "quern_time_to_first_token_seconds",
        "quern_inter_token_latency_seconds",
        "quern_prompt_tokens_total",
        "quern_generated_tokens_total",
        "quern_requests_finished_total{reason=\"length\"}",
        "quern_http_connections",
        "quern_queue_time_seconds",
    ] {
        assert!(text.contains(name), "{name} is missing from\n{text}");
    }
    assert!(!text.contains("/no/such/path"), "a label takes what clients send");
}
