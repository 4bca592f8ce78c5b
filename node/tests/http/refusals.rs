//! What bad input gets: a clear error that names the field, and nothing lost.

use quern::http::{RequestLimits, Settings};
use serde_json::{Value, json};

use crate::support::{MODEL, Options, Reply, Server, chat, completion, server, start, user};

const CHAT: &str = "/v1/chat/completions";

async fn raw(server: &Server, body: impl Into<reqwest::Body>) -> Reply {
    Reply::of(server.client.post(server.url(CHAT)).body(body).send().await.unwrap()).await
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_in_the_same_shape() {
    let server = server().await;
    server.get(server.url("/v2/chat")).await.error(404, None, Some("unknown_url"));
    server.get(server.url(CHAT)).await.error(405, None, Some("method_not_allowed"));
    server.get(server.admin_url("/nothing")).await.error(404, None, Some("unknown_url"));
    server.get(server.admin_url("/admin/drain")).await.error(405, None, Some("method_not_allowed"));
}

#[tokio::test]
async fn a_field_of_the_wrong_type_is_named_by_its_path() {
    let server = server().await;
    let cases = [
        (chat("a", json!({"temperature": "hot"})), "temperature"),
        (chat("a", json!({"stop": [1]})), "stop[0]"),
        (chat("a", json!({"stream_options": {"include_usage": 1}})), "stream_options.include_usage"),
        (chat("a", json!({"logit_bias": {"5": "x"}})), "logit_bias.5"),
        (json!({"model": MODEL, "messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (
            json!({"model": MODEL, "messages": [{"role": "user", "content": [{"text": "a"}]}]}),
            "messages[0].content[0]",
        ),
        (json!({"model": MODEL, "messages": "hello"}), "messages"),
        (json!({"model": 3, "messages": user("a")}), "model"),
        (chat("a", json!({"tools": [{"type": "function"}]})), "tools[0]"),
        (chat("a", json!({"max_tokens": 1.5})), "max_tokens"),
    ];
    for (body, path) in cases {
        let reply = server.post(CHAT, &body).await;
        let message = reply.error(400, Some(path), None);
        assert!(message.contains(path), "{message}");
    }
    let prompt = completion(json!([1, "a"]), json!({}));
    assert_eq!(server.post("/v1/completions", &prompt).await.status, 400);
}

#[tokio::test]
async fn a_value_out_of_range_is_named() {
    let server = server().await;
    let too_long = "x".repeat(300);
    let cases = [
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1000}), "n"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"9999999": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"priority": 256}), "priority"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop": ["ok", too_long]}), "stop[1]"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
        (json!({"guided_regex": "a", "guided_json": {}}), "guided_regex"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos"),
        (json!({"tool_choice": "required"}), "tool_choice"),
    ];
    for (more, param) in cases {
        server.post(CHAT, &chat("a", more)).await.error(400, Some(param), None);
    }
    assert!(server.node.is_idle());
}

#[tokio::test]
async fn what_is_not_served_is_named() {
    let server = server().await;
    let cases = [
        json!({"audio": {"voice": "x"}}),
        json!({"modalities": ["text", "audio"]}),
        json!({"functions": []}),
        json!({"function_call": "auto"}),
        json!({"prediction": {}}),
        json!({"best_of": 2}),
        json!({"suffix": "x"}),
        json!({"echo": true}),
        json!({"use_beam_search": true}),
    ];
    for more in cases {
        let field = more.as_object().unwrap().keys().next().unwrap().clone();
        server.post(CHAT, &chat("a", more)).await.error(400, Some(&field), Some("unsupported_parameter"));
    }
    for more in [json!({"echo": true}), json!({"suffix": "x"}), json!({"best_of": 4})] {
        let field = more.as_object().unwrap().keys().next().unwrap().clone();
        let reply = server.post("/v1/completions", &completion(json!("a"), more)).await;
        reply.error(400, Some(&field), Some("unsupported_parameter"));
    }
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let reply = server.post(CHAT, &json!({"model": MODEL, "messages": image})).await;
    reply.error(400, Some("messages[0].content[0].type"), None);
    // Nulls ask for nothing, and names that nobody knows are let through.
    let harmless =
        json!({"max_tokens": 1, "audio": null, "functions": null, "store": false, "no_such_field": [1]});
    server.post(CHAT, &chat("a", harmless)).await.ok();
}

#[tokio::test]
async fn broken_bodies_are_refused_whole() {
    let server = server().await;
    for body in ["", "{", "[]", "\"text\"", "nul", "{\"model\": \"tiny\", \"messages\": []} trailing"] {
        let reply = raw(&server, body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        assert_eq!(reply.body["error"]["type"], "invalid_request_error");
    }
    let mut invalid = b"{\"model\": \"tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"".to_vec();
    invalid.extend_from_slice(b"\xff\xfe\"}]}");
    let reply = raw(&server, invalid).await;
    assert!(reply.error(400, None, None).contains("UTF-8"));
}

#[tokio::test]
async fn nesting_is_bounded() {
    let server = server().await;
    for field in ["messages", "unknown", "guided_json", "chat_template_kwargs"] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let bomb = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
            let reply = raw(&server, format!("{{\"model\": \"tiny\", \"{field}\": {bomb}}}")).await;
            assert_eq!(reply.status, 400, "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn a_body_too_large_is_refused_before_it_is_read() {
    let settings = Settings { max_body_bytes: 1000, ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;
    let reply = server.post(CHAT, &chat(&"x".repeat(2000), json!({}))).await;
    reply.error(413, None, Some("request_too_large"));
    server.post(CHAT, &chat("small", json!({"max_tokens": 1}))).await.ok();
}

#[tokio::test]
async fn bodies_share_a_bounded_memory() {
    let settings = Settings { max_buffered_bytes: 4096, ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;
    let reply = server.post(CHAT, &chat(&"x".repeat(20_000), json!({}))).await;
    reply.error(429, None, Some("server_busy"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    server.post(CHAT, &chat("small", json!({"max_tokens": 1}))).await.ok();
}

#[tokio::test]
async fn models_are_named_and_known() {
    let server = server().await;
    let unknown = json!({"model": "gpt-4", "messages": user("a")});
    let reply = server.post(CHAT, &unknown).await;
    assert_eq!(reply.error(404, Some("model"), Some("model_not_found")), "the model `gpt-4` does not exist");
    server.post(CHAT, &json!({"messages": user("a")})).await.error(400, Some("model"), None);
}

#[tokio::test]
async fn a_prompt_over_the_context_is_told_both_numbers() {
    let server = start(Options { max_sequence_len: 64, ..Options::default() }).await;
    let long = "one two three four ".repeat(40);
    let num_tokens = server.tokens(json!({"prompt": long})).await.len();
    let reply = server.post("/v1/completions", &completion(json!(long), json!({}))).await;
    let message = reply.error(400, None, Some("context_length_exceeded"));
    assert!(message.contains("64 tokens") && message.contains(&format!("{num_tokens} tokens")), "{message}");
    server.post(CHAT, &chat(&long, json!({}))).await.error(400, None, Some("context_length_exceeded"));
    let embedding = json!({"model": MODEL, "input": long});
    server.post("/v1/embeddings", &embedding).await.error(400, None, Some("context_length_exceeded"));
    assert!(server.node.is_idle());
}

#[tokio::test]
async fn a_grammar_that_cannot_be_compiled_is_blamed_on_its_field() {
    let server = server().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "no such type"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let cases = [
        (json!({"response_format": format}), "response_format"),
        (json!({"guided_regex": "(unclosed"}), "guided_regex"),
        (json!({"guided_grammar": "start: ("}), "guided_grammar"),
        (json!({"structured_outputs": {"grammar": "root ::= missing"}}), "structured_outputs"),
    ];
    for (more, param) in cases {
        server.post(CHAT, &chat("a", more)).await.error(400, Some(param), Some("invalid_grammar"));
    }
    assert!(server.node.is_idle());
}

#[tokio::test]
async fn limits_of_a_request_are_settings() {
    let limits = RequestLimits { max_n: 2, max_prompts: 2, ..RequestLimits::default() };
    let server =
        start(Options { settings: Settings { limits, ..Settings::default() }, ..Options::default() }).await;
    server.post(CHAT, &chat("a", json!({"n": 3}))).await.error(400, Some("n"), None);
    let prompts = completion(json!(["a", "b", "c"]), json!({}));
    server.post("/v1/completions", &prompts).await.error(400, Some("prompt"), None);
    let empty = completion(json!(""), json!({}));
    server.post("/v1/completions", &empty).await.error(400, Some("prompt"), None);
}

#[tokio::test]
async fn a_deadline_is_a_number_and_is_kept() {
    let server = server().await;
    let ask = |deadline: &'static str| {
        let request = server.client.post(server.url(CHAT)).header("X-Request-Deadline-Ms", deadline);
        let request = request.json(&chat("a", json!({"max_tokens": 1})));
        async { Reply::of(request.send().await.unwrap()).await }
    };
    ask("soon").await.error(400, Some("X-Request-Deadline-Ms"), None);
    ask("0").await.error(504, None, Some("deadline_exceeded"));
    ask("60000").await.ok();
}

#[tokio::test]
async fn requests_keep_their_id_or_get_one() {
    let server = server().await;
    let ask =
        |id: &'static str| server.client.get(server.url("/v1/models")).header("X-Request-Id", id).send();
    assert_eq!(ask("abc-1").await.unwrap().headers()["x-request-id"], "abc-1");
    let own = ask("not good for a log").await.unwrap();
    assert!(own.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
    let refused: Value = own.json().await.unwrap();
    assert_eq!(refused["object"], "list");
}

#[tokio::test]
async fn keys_are_asked_for_after_the_path_and_before_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "alice=sk-1\nsk-2\n").unwrap();
    let settings = Settings { api_keys_file: Some(keys), ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;

    let reply = server.post(CHAT, &json!("not even a request")).await;
    reply.error(401, None, Some("missing_api_key"));
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    let with = |key: &str| server.client.get(server.url("/v1/models")).bearer_auth(key).send();
    Reply::of(with("sk-3").await.unwrap()).await.error(401, None, Some("invalid_api_key"));
    assert_eq!(with("sk-1").await.unwrap().status(), 200);
    assert_eq!(with("sk-2").await.unwrap().status(), 200);
    server.get(server.url("/nothing")).await.error(404, None, Some("unknown_url"));
    assert_eq!(server.get(server.url("/health")).await.status, 200);
    assert_eq!(server.get(server.admin_url("/ready")).await.status, 200);
}
