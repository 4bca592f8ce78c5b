//! What a workload asks, as an HTTP request: path, headers and body. Made before the clock starts.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::client::Server;
use crate::prompts::Prompt;
use crate::workload::{Api, Workload};

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerShape {
    /// Server-sent events, a chunk of a completion each.
    Stream,
    /// One JSON text with a whole completion.
    Whole,
    /// One JSON text with a list of labels.
    Labels,
}

/// A request that is ready to be sent to a server.
#[derive(Debug, Clone)]
pub struct Question {
    /// The endpoint's path.
    pub path: &'static str,
    /// The JSON text.
    pub body: Bytes,
    /// What is expected back.
    pub shape: AnswerShape,
}

impl Question {
    /// The request that asks a prompt of a server, as the workload wants it.
    pub fn new(workload: &Workload, server: &Server, prompt: &Prompt, max_tokens: u32) -> Self {
        let variant = workload.servers.get(&server.name);
        let api = variant.and_then(|variant| variant.api).unwrap_or(workload.api);
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(server.model));
        if api == Api::Classify {
            body.insert("input".to_owned(), prompt.user.lines().collect());
        } else {
            let system = variant.and_then(|variant| variant.system.as_ref()).or(prompt.system.as_ref());
            let (key, value) = asked(api, system.map(String::as_str), &prompt.user);
            body.insert(key.to_owned(), value);
            let max_tokens = variant.and_then(|variant| variant.max_tokens).unwrap_or(max_tokens);
            body.insert("max_tokens".to_owned(), json!(max_tokens));
            body.insert("temperature".to_owned(), json!(workload.temperature));
            body.insert("stream".to_owned(), json!(workload.is_streamed));
            if workload.is_streamed {
                body.insert("stream_options".to_owned(), json!({"include_usage": true}));
            }
        }
        let lora = variant.and_then(|variant| variant.lora_of(workload.models.as_ref(), &server.model));
        body.extend(lora.map(|lora| ("lora".to_owned(), lora)));
        body.extend(workload.body.clone());
        let (path, shape) = match (api, workload.is_streamed) {
            (Api::Classify, _) => ("/v1/classify", AnswerShape::Labels),
            (Api::Chat, true) => ("/v1/chat/completions", AnswerShape::Stream),
            (Api::Chat, false) => ("/v1/chat/completions", AnswerShape::Whole),
            (Api::Completions, true) => ("/v1/completions", AnswerShape::Stream),
            (Api::Completions, false) => ("/v1/completions", AnswerShape::Whole),
        };
        Self { path, body: Bytes::from(Value::Object(body).to_string()), shape }
    }
}

/// The field that holds the prompt, and its value.
fn asked(api: Api, system: Option<&str>, user: &str) -> (&'static str, Value) {
    if api == Api::Completions {
        let system = system.map(|text| format!("{text}\n")).unwrap_or_default();
        return ("prompt", json!(system + user));
    }
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": user});
    ("messages", system.into_iter().chain([user]).collect())
}
