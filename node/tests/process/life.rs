//! A node's life: ready, asked, told to end.

use serde_json::{Value, json};

use crate::node::Node;

/// A request whose answer takes many steps and cannot end early.
fn long_request() -> Value {
    json!({ "model": "tiny", "prompt": "a", "max_tokens": 400, "guided_regex": "[a-z]{400}", "stream": true })
}

async fn status(url: &str) -> u16 {
    reqwest::get(url).await.unwrap().status().as_u16()
}

async fn ask(node: &Node, body: &Value) -> reqwest::Response {
    reqwest::Client::new().post(format!("{}/v1/completions", node.public)).json(body).send().await.unwrap()
}

#[tokio::test]
async fn a_node_serves_is_measured_and_ends_cleanly() {
    let node = Node::start("fake", &["--model-id", "my-model"]);
    assert_eq!(status(&format!("{}/health", node.admin)).await, 200);
    assert_eq!(status(&format!("{}/ready", node.admin)).await, 200);

    let answer = ask(&node, &json!({ "model": "my-model", "prompt": "one two", "max_tokens": 5 })).await;
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["model"], "my-model");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens >= 1, "{answer}");

    // The answer is there before the step that it ends with is accounted for.
    let idle = "vllm:num_requests_running{model_name=\"my-model\",engine=\"0\"} 0";
    let mut text = String::new();
    for _ in 0..200 {
        text = reqwest::get(format!("{}/metrics", node.admin)).await.unwrap().text().await.unwrap();
        if text.lines().any(|line| line == idle) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for line in [
        format!("quern_generated_tokens_total {tokens}"),
        format!("vllm:generation_tokens_total{{model_name=\"my-model\",engine=\"0\"}} {tokens}"),
        idle.to_owned(),
        "# TYPE quern_time_to_first_token_seconds histogram".to_owned(),
        "# TYPE quern_step_duration_seconds histogram".to_owned(),
        "quern_workers{state=\"ready\"} 1".to_owned(),
        "quern_workers{state=\"draining\"} 0".to_owned(),
        "quern_workers_desired 1".to_owned(),
        "quern_sequences_running 0".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("quern_build_info{") && text.contains("engine=\"fake\""), "{text}");

    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn llama_cpp_serves_a_tiny_model_too() {
    let args = ["--kv-capacity", "512", "--max-sequences", "4", "--threads", "1", "--threads-prefill", "1"];
    let node = Node::start("llama", &args);
    let body = json!({ "model": "tiny", "prompt": "one two", "max_tokens": 8, "temperature": 0 });
    let (first, second) = (ask(&node, &body).await, ask(&node, &body).await);
    let (first, second): (Value, Value) = (first.json().await.unwrap(), second.json().await.unwrap());
    assert!(first["usage"]["completion_tokens"].as_u64().unwrap() >= 1, "{first}");
    assert_eq!(first["choices"][0]["text"], second["choices"][0]["text"]);
    node.signal("INT");
    let (code, log) = node.end();
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn draining_answers_what_is_inside_and_refuses_the_rest() {
    let mut node = Node::start("fake", &["--set", "engine.fake.step_time=5ms"]);
    let mut stream = ask(&node, &long_request()).await;
    let mut text = String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()).into_owned();

    node.signal("TERM");
    node.wait_for("draining");
    assert_eq!(status(&format!("{}/ready", node.admin)).await, 503);
    assert_eq!(status(&format!("{}/health", node.admin)).await, 200);
    assert_eq!(ask(&node, &json!({ "model": "tiny", "prompt": "b", "max_tokens": 1 })).await.status(), 503);

    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let (code, log) = node.end();
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off_and_said() {
    let node = Node::start("fake", &["--set", "engine.fake.step_time=100ms", "--drain-timeout", "1ms"]);
    let mut stream = ask(&node, &long_request()).await;
    stream.chunk().await.unwrap().unwrap();
    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, 1);
    assert!(log.contains("drain timeout"), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut node = Node::start("fake", &["--set", "engine.fake.step_time=1s", "--drain-timeout", "1h"]);
    let mut stream = ask(&node, &long_request()).await;
    stream.chunk().await.unwrap().unwrap();
    node.signal("TERM");
    node.wait_for("draining");
    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, 1);
    assert!(log.contains("second signal"), "{log}");
}
