//! `/v1/completions`, `/tokenize` and `/detokenize`.

use serde_json::json;

use crate::golden;
use crate::support::{MODEL, completion, server};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn prompts_come_in_four_shapes() {
    let server = server().await;
    let one = server.tokens(json!({"prompt": "one"})).await;
    let two = server.tokens(json!({"prompt": "two"})).await;
    let expected = [server.expected(&one, 5), server.expected(&two, 5)];
    for prompt in [json!("one"), json!(one)] {
        let body = server.post(PATH, &completion(prompt, json!({"max_tokens": 5}))).await.ok();
        assert_eq!(body["choices"][0]["text"], expected[0]);
    }
    for prompt in [json!(["one", "two"]), json!([one, two])] {
        let body = server.post(PATH, &completion(prompt, json!({"max_tokens": 5}))).await.ok();
        assert_eq!(body["choices"][0]["text"], expected[0]);
        assert_eq!(body["choices"][1]["text"], expected[1]);
        assert_eq!(body["usage"]["prompt_tokens"], one.len() + two.len());
    }
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let server = server().await;
    let body = server.post(PATH, &completion(json!("one"), json!({}))).await.ok();
    assert_eq!(body["usage"]["completion_tokens"], 16);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    golden::check("text_completion", &body);
}

#[tokio::test]
async fn choices_of_each_prompt_lie_together() {
    let server = server().await;
    let body =
        server.post(PATH, &completion(json!(["one", "two"]), json!({"n": 2, "max_tokens": 4}))).await.ok();
    let texts: Vec<&str> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    // Without temperature all choices of a prompt are the same.
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[2], texts[3]);
    assert_ne!(texts[0], texts[2]);
}

#[tokio::test]
async fn logprobs_have_the_older_shape() {
    let server = server().await;
    let body =
        server.post(PATH, &completion(json!("one"), json!({"max_tokens": 4, "logprobs": 2}))).await.ok();
    let logprobs = &body["choices"][0]["logprobs"];
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[column].as_array().unwrap().len(), 4, "{column}");
    }
    assert_eq!(logprobs["text_offset"][0], 0);
    golden::check("text_logprobs", &body);

    let bare =
        server.post(PATH, &completion(json!("one"), json!({"max_tokens": 1, "logprobs": 0}))).await.ok();
    assert!(bare["choices"][0]["logprobs"]["top_logprobs"].is_null());
}

#[tokio::test]
async fn an_answer_ends_where_the_context_does() {
    let options = crate::support::Options { max_sequence_len: 32, ..Default::default() };
    let server = crate::support::start(options).await;
    let prompt = server.tokens(json!({"prompt": "one two"})).await;
    let body = server.post(PATH, &completion(json!("one two"), json!({"max_tokens": 5000}))).await.ok();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let generated = body["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert!(generated <= 32 - prompt.len() + 1 && generated + 1 >= 32 - prompt.len(), "{generated}");
}

#[tokio::test]
async fn text_goes_to_tokens_and_back() {
    let server = server().await;
    for text in ["hello", "Grüße, 世界 🦀", "<|im_start|>user\n", "a".repeat(20_000).as_str()] {
        let reply = server.post("/tokenize", &json!({"model": MODEL, "prompt": text})).await.ok();
        assert_eq!(reply["count"], reply["tokens"].as_array().unwrap().len());
        assert_eq!(reply["max_model_len"], 2048);
        let back = server.post("/detokenize", &json!({"tokens": reply["tokens"]})).await.ok();
        assert_eq!(back["prompt"], text);
    }
    let strings =
        server.post("/tokenize", &json!({"prompt": "the end", "return_token_strs": true})).await.ok();
    let joined: String =
        strings["token_strs"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(joined, "the end");
}
