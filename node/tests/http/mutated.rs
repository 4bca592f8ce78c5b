//! Requests that are almost right: bodies of every endpoint with values, types,
//! names or bytes changed at random, by a fixed seed. Whatever comes, it is
//! served or refused with an error in OpenAI's shape, never with a failure of
//! the node's own, and the node answers as before afterwards.

use serde_json::{Value, json};

use crate::support::{MODEL, Server, chat, server, soon, until, user};

/// Requests sent.
const CASES: u32 = 1200;

#[tokio::test]
async fn whatever_comes_is_served_or_refused() {
    let server = server().await;
    let sound = chat("the same as ever", json!({"max_tokens": 8}));
    let before = server.post("/v1/chat/completions", &sound).await.ok();

    let mut random = Random(0x5eed);
    let (mut served, mut refused) = (0, 0);
    for case in 0..CASES {
        let (path, mut body) = random.pick(&requests()).clone();
        for _ in 0..=random.below(2) {
            random.change(&mut body);
        }
        let bytes = random.bytes(&body);
        let shown = format!("case {case}: {path} {}", String::from_utf8_lossy(&bytes));
        let status = send(&server, path, bytes, &shown).await;
        if status == 200 { served += 1 } else { refused += 1 }
    }
    assert!(served > CASES / 20 && refused > CASES / 4, "{served} served, {refused} refused");

    until(|| server.node.is_idle()).await;
    let after = server.post("/v1/chat/completions", &sound).await.ok();
    assert_eq!(before["choices"], after["choices"]);
}

/// Sends a body, and checks what comes back.
async fn send(server: &Server, path: &str, body: Vec<u8>, shown: &str) -> u16 {
    let request = server.client.post(server.url(path)).header("content-type", "application/json");
    let response = soon(request.body(body).send()).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let status = response.status().as_u16();
    let text = soon(response.text()).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    if status != 200 {
        assert!((400..500).contains(&status), "{shown}: {status} {text}");
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{shown}: {text}"));
        let told = error["error"]["message"].as_str().unwrap_or_default();
        assert!(!told.is_empty() && error["error"]["type"].is_string(), "{shown}: {text}");
    }
    status
}

/// A sound request for each endpoint, with as many fields as it has.
fn requests() -> Vec<(&'static str, Value)> {
    let tool = json!({"type": "function", "function": {
        "name": "look_up", "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    }});
    let sampling = json!({
        "model": MODEL, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 7, "n": 2,
        "stop": ["\n\n", "end"], "presence_penalty": 0.5, "logit_bias": {"5": -1.5}, "priority": 3,
    });
    let with = |more: Value| {
        let mut body = sampling.clone();
        let fields = body.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        body
    };
    vec![
        (
            "/v1/chat/completions",
            with(json!({
                "messages": [{"role": "system", "content": "Be short."}, {"role": "user",
                    "content": [{"type": "text", "text": "hello"}]}],
                "logprobs": true, "top_logprobs": 2, "stream": true, "stream_options": {"include_usage": true},
                "ignore_eos": true,
            })),
        ),
        (
            "/v1/chat/completions",
            with(json!({"messages": user("hello"), "tools": [tool], "tool_choice": "auto"})),
        ),
        (
            "/v1/chat/completions",
            with(
                json!({"messages": user("hello"), "response_format": {"type": "json_schema", "json_schema": {
                    "name": "answer", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
                }}}),
            ),
        ),
        ("/v1/completions", with(json!({"prompt": ["one", "two"], "logprobs": 2}))),
        ("/v1/completions", with(json!({"prompt": [1, 2, 3], "guided_regex": "[a-z]+"}))),
        ("/v1/embeddings", json!({"model": MODEL, "input": ["one", "two"], "encoding_format": "float"})),
        ("/tokenize", json!({"model": MODEL, "prompt": "hello"})),
        ("/detokenize", json!({"model": MODEL, "tokens": [1, 2, 3]})),
    ]
}

/// Steele, Lea and Flood's SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Changes one value somewhere in a document.
    fn change(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.below(6) > 0 => {
                let name = self.pick(&fields.keys().cloned().collect::<Vec<_>>()).clone();
                match self.below(8) {
                    0 => drop(fields.remove(&name)),
                    1 => {
                        let value = fields.remove(&name).expect("it is there");
                        fields.insert(format!("{name}{}", self.text()), value);
                    }
                    _ => self.change(fields.get_mut(&name).expect("it is there")),
                }
            }
            Value::Array(items) if !items.is_empty() && self.below(6) > 0 => {
                let at = self.below(items.len());
                match self.below(5) {
                    0 => drop(items.remove(at)),
                    1 => items.push(items[at].clone()),
                    _ => self.change(&mut items[at]),
                }
            }
            other => *other = self.value(),
        }
    }

    fn value(&mut self) -> Value {
        match self.below(12) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(0),
            3 => json!(-1),
            4 => json!(self.next()),
            5 => json!(i64::MIN),
            6 => json!(1e308),
            7 => json!(-0.5),
            8 => json!([]),
            9 => json!({}),
            10 => (0..self.below(200)).fold(json!(1), |inner, _| json!([inner])),
            _ => json!(self.text()),
        }
    }

    fn text(&mut self) -> String {
        let all =
            ["", "\0", "\u{feff}", "<|im_end|>", "{{", "é\u{301}🦀", "\r\n", "data: [DONE]", "(((((", "\\"];
        self.pick(&all).repeat(1 + self.below(3))
    }

    /// The document as it is sent; now and then cut, or with a wrong byte.
    fn bytes(&mut self, body: &Value) -> Vec<u8> {
        let mut bytes = body.to_string().into_bytes();
        let at = self.below(bytes.len());
        match self.below(10) {
            0 => bytes.truncate(at),
            1 => bytes[at] = self.next() as u8,
            2 => bytes.insert(at, 0xff),
            _ => {}
        }
        bytes
    }
}
