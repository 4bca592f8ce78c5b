//! Streamed answers.

use serde_json::{Value, json};

use crate::golden;
use crate::support::{Options, chat, completion, long_chat, server, start};

const CHAT: &str = "/v1/chat/completions";

fn text(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str())).collect()
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = server().await;
    let ask = chat("hello", json!({"max_tokens": 24}));
    let whole = server.post(CHAT, &ask).await.ok();
    let chunks = server.chunks(CHAT, ask).await;
    assert_eq!(text(&chunks, 0), whole["choices"][0]["message"]["content"].as_str().unwrap());

    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk.get("usage").is_none()));
    assert!(chunks[1..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test]
async fn usage_comes_last_when_it_is_asked_for() {
    let server = server().await;
    let ask = chat("hello", json!({"max_tokens": 4, "stream_options": {"include_usage": true}}));
    let chunks = server.chunks(CHAT, ask).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    golden::check("chat_chunks", &Value::Array(chunks));
}

#[tokio::test]
async fn choices_of_a_stream_are_told_apart() {
    let server = server().await;
    let ask = chat("roll", json!({"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 16}));
    let whole = server.post(CHAT, &ask).await.ok();
    let chunks = server.chunks(CHAT, ask).await;
    for index in 0..3 {
        assert_eq!(text(&chunks, index), whole["choices"][index]["message"]["content"].as_str().unwrap());
    }
}

#[tokio::test]
async fn streamed_logprobs_are_those_of_the_whole_answer() {
    let server = server().await;
    let ask = chat("hello", json!({"max_tokens": 8, "logprobs": true, "top_logprobs": 2}));
    let whole = server.post(CHAT, &ask).await.ok();
    let chunks = server.chunks(CHAT, ask).await;
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(Value::Array(streamed), whole["choices"][0]["logprobs"]["content"]);
}

#[tokio::test]
async fn completions_stream_too() {
    let server = server().await;
    let ask = completion(
        json!(["one", "two"]),
        json!({"max_tokens": 6, "stream_options": {"include_usage": true}}),
    );
    let mut unstreamed = ask.clone();
    unstreamed["stream_options"] = Value::Null;
    let whole = server.post("/v1/completions", &unstreamed).await.ok();
    let chunks = server.chunks("/v1/completions", ask).await;
    for index in 0..2 {
        assert_eq!(text(&chunks, index), whole["choices"][index]["text"].as_str().unwrap());
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);

    let one = completion(json!("one"), json!({"max_tokens": 3}));
    golden::check("text_chunks", &Value::Array(server.chunks("/v1/completions", one).await));
}

#[tokio::test]
async fn a_token_is_sent_before_the_next_one_is_computed() {
    // So slow that the answer is far from its end when its first tokens are here.
    let options = Options { step_time: std::time::Duration::from_millis(50), ..Options::default() };
    let server = start(options).await;
    let ask = long_chat(2000, json!({"stream": true}));
    let mut response = server.client.post(server.url(CHAT)).json(&ask).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("\"finish_reason\":null}]}\n\ndata:") {
        let piece = crate::support::soon(response.chunk()).await.unwrap().expect("it has only begun");
        seen.push_str(std::str::from_utf8(&piece).unwrap());
    }
    drop(response);
}
