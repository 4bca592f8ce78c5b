//! Answers that must look like something: schemas, expressions, tools, stops.

use serde_json::{Value, json};

use crate::golden;
use crate::support::{Server, chat, server};

const CHAT: &str = "/v1/chat/completions";

async fn content(server: &Server, more: Value) -> (String, Value) {
    let body = server.post(CHAT, &chat("hello", more)).await.ok();
    let choice = &body["choices"][0];
    (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].clone())
}

fn forced(text: &str, more: Value) -> Value {
    let mut body = json!({"guided_regex": text, "max_tokens": 200});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn an_expression_is_obeyed() {
    let server = server().await;
    let (text, finish) = content(&server, forced("alpha beta gamma", json!({}))).await;
    assert_eq!((text.as_str(), finish), ("alpha beta gamma", json!("stop")));
    let (text, _) = content(&server, json!({"guided_choice": ["a+b", "(c)"], "max_tokens": 50})).await;
    assert!(["a+b", "(c)"].contains(&text.as_str()), "{text}");
    let (text, _) = content(
        &server,
        json!({"structured_outputs": {"grammar": "start: \"yes\" | \"no\""}, "max_tokens": 9}),
    )
    .await;
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");
    let (text, _) =
        content(&server, json!({"guided_grammar": "root ::= \"on\" | \"off\"", "max_tokens": 9})).await;
    assert!(["on", "off"].contains(&text.as_str()), "{text}");
}

#[tokio::test]
async fn a_stop_string_over_token_borders_ends_the_answer_and_frees_the_sequence() {
    let server = server().await;
    let (text, finish) = content(&server, forced("alpha beta gamma", json!({"stop": "ta ga"}))).await;
    assert_eq!((text.as_str(), finish), ("alpha be", json!("stop")));
    let (text, finish) =
        content(&server, forced("alpha beta gamma", json!({"stop": ["nothing", "gamma!"]}))).await;
    assert_eq!((text.as_str(), finish), ("alpha beta gamma", json!("stop")));

    let chunks =
        server.chunks(CHAT, chat("hello", forced("alpha beta gamma", json!({"stop": ["ta ga"]})))).await;
    let streamed: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, "alpha be");
    crate::support::until(|| server.node.is_idle()).await;
}

#[tokio::test]
async fn a_schema_is_obeyed() {
    let server = server().await;
    let schema = json!({
        "type": "object",
        "properties": {"label": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": false,
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
    let (text, finish) = content(&server, json!({"response_format": format, "max_tokens": 400})).await;
    assert_eq!(finish, "stop", "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["sure"].is_boolean());
    assert!(["red", "green"].contains(&value["label"].as_str().unwrap()));
}

fn tools() -> Value {
    json!([{
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome"]}},
                "required": ["city"],
                "additionalProperties": false,
            },
        },
    }])
}

#[tokio::test]
async fn a_forced_tool_is_called() {
    let server = server().await;
    let choice = json!({"type": "function", "function": {"name": "weather"}});
    let ask = chat("Rome?", json!({"tools": tools(), "tool_choice": choice, "max_tokens": 400}));
    let body = server.post(CHAT, &ask).await.ok();
    let message = &body["choices"][0]["message"];
    assert_eq!(body["choices"][0]["finish_reason"], "tool_calls", "{body}");
    assert_eq!(message["content"], Value::Null);
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"]["name"], "weather");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"city": "Rome"}));
    golden::check("chat_tool_call", &body);

    let chunks = server.chunks(CHAT, ask).await;
    let pieces: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array())
        .flatten()
        .collect();
    assert_eq!(pieces[0]["function"]["name"], "weather");
    assert!(pieces[0]["id"].as_str().unwrap().starts_with("call_"));
    let arguments: String =
        pieces.iter().filter_map(|piece| piece["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, call["function"]["arguments"].as_str().unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn offered_tools_are_in_the_prompt_and_need_not_be_called() {
    let server = server().await;
    let with =
        server.tokens(json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools()})).await;
    let without = server.tokens(json!({"messages": [{"role": "user", "content": "hi"}]})).await;
    assert!(with.len() > without.len());

    let ask = |choice: &str| chat("hi", json!({"tools": tools(), "tool_choice": choice, "max_tokens": 4}));
    let auto = server.post(CHAT, &ask("auto")).await.ok();
    assert_eq!(auto["usage"]["prompt_tokens"], with.len());
    assert_eq!(auto["choices"][0]["finish_reason"], "length");
    let none = server.post(CHAT, &ask("none")).await.ok();
    assert_eq!(none["usage"]["prompt_tokens"], without.len());
}
