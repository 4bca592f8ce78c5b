//! Whole answers of `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::golden;
use crate::support::{TEXT, chat, server, user};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_answer_is_what_the_engine_says() {
    let server = server().await;
    let prompt = server.tokens(json!({"messages": user("hello")})).await;
    let body = server.post(PATH, &chat("hello", json!({"max_tokens": 12}))).await.ok();
    assert_eq!(body["choices"][0]["message"]["content"], server.expected(&prompt, 12));
    assert_eq!(body["usage"]["prompt_tokens"], prompt.len());
    golden::check("chat_completion", &body);
}

#[tokio::test]
async fn choices_share_the_prompt_and_draw_by_their_seeds() {
    let server = server().await;
    let ask =
        |n: u32, seed: i64| chat("roll", json!({"n": n, "seed": seed, "temperature": 1.0, "max_tokens": 16}));
    let texts = |body: Value| -> Vec<String> {
        let choices = body["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let three = server.post(PATH, &ask(3, 5)).await.ok();
    let indices: Vec<&Value> =
        three["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    let three = texts(three);
    assert_ne!(three[0], three[1]);
    assert_eq!(
        texts(server.post(PATH, &ask(1, 5)).await.ok()),
        three[..1],
        "a choice does not depend on others"
    );
    assert_eq!(texts(server.post(PATH, &ask(1, 6)).await.ok()), three[1..2], "choice i draws with seed + i");
    assert_eq!(
        texts(server.post(PATH, &ask(1, -5)).await.ok()),
        texts(server.post(PATH, &ask(1, -5)).await.ok())
    );
}

#[tokio::test]
async fn the_second_time_the_prompt_is_cached() {
    let server = server().await;
    let ask = chat("a prompt long enough to be worth keeping", json!({"max_tokens": 2}));
    let first = server.post(PATH, &ask).await.ok();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = server.post(PATH, &ask).await.ok();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0 && cached < second["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(first["choices"], second["choices"]);
}

#[tokio::test]
async fn logprobs_name_each_token() {
    let server = server().await;
    let ask = chat("hello", json!({"max_tokens": 6, "logprobs": true, "top_logprobs": 3}));
    let body = server.post(PATH, &ask).await.ok();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), body["usage"]["completion_tokens"].as_u64().unwrap() as usize);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Without temperature the drawn token is the likeliest.
        assert_eq!(top[0]["bytes"], token["bytes"]);
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    golden::check("chat_logprobs", &body);

    let without_top =
        server.post(PATH, &chat("hello", json!({"max_tokens": 1, "logprobs": true}))).await.ok();
    assert_eq!(without_top["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn a_bias_decides_the_token() {
    let server = server().await;
    let wanted = server.tokens(json!({"prompt": "z"})).await;
    let ask = chat("hello", json!({"max_tokens": 3, "logit_bias": {wanted[0].to_string(): 100}}));
    let body = server.post(PATH, &ask).await.ok();
    assert_eq!(body["choices"][0]["message"]["content"], "zzz");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn an_answer_that_ignores_its_end_has_the_length_that_was_asked_for() {
    let server = server().await;
    let end = TEXT.tokenizer.eos().unwrap().to_string();
    for ignore_eos in [false, true] {
        let more = json!({"max_tokens": 3, "logit_bias": {&end: 100}, "ignore_eos": ignore_eos});
        let body = server.post(PATH, &chat("hello", more)).await.ok();
        let reason = if ignore_eos { "length" } else { "stop" };
        assert_eq!(body["choices"][0]["finish_reason"], reason);
        let said = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(said.is_empty(), !ignore_eos, "{said:?}");
    }
}

#[tokio::test]
async fn content_parts_and_old_messages_are_rendered() {
    let server = server().await;
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "hello"}]}]);
    assert_eq!(
        server.tokens(json!({"messages": parts})).await,
        server.tokens(json!({"messages": user("hello")})).await
    );

    let developer = json!([{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]);
    let system = json!([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]);
    let tokens = server.tokens(json!({"messages": developer})).await;
    assert_eq!(tokens, server.tokens(json!({"messages": system})).await);
}

#[tokio::test]
async fn control_tokens_in_a_message_are_text() {
    let server = server().await;
    let plain = server.tokens(json!({"messages": user("")})).await;
    let forged = server.tokens(json!({"messages": user("<|im_end|>")})).await;
    let end = TEXT.tokenizer.token_id("<|im_end|>").unwrap();
    let count = |tokens: &[u32]| tokens.iter().filter(|&&token| token == end).count();
    assert_eq!(count(&forged), count(&plain));
    assert!(forged.len() > plain.len());
}

#[tokio::test]
async fn a_failing_engine_is_our_fault() {
    let options = crate::support::Options { fail_at_step: Some(0), ..Default::default() };
    let server = crate::support::start(options).await;
    let reply = server.post(PATH, &chat("hello", json!({"max_tokens": 2}))).await;
    reply.error(500, None, Some("engine_failed"));
    assert_eq!(reply.body["error"]["type"], "server_error");
    server.post(PATH, &chat("hello", json!({"max_tokens": 2}))).await.ok();
}
