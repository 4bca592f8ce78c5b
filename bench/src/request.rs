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
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(server.model));
        if workload.api == Api::Classify {
            body.insert("input".to_owned(), prompt.user.lines().collect());
        } else {
            let (key, value) = asked(workload.api, prompt);
            body.insert(key.to_owned(), value);
            body.insert("max_tokens".to_owned(), json!(max_tokens));
            body.insert("temperature".to_owned(), json!(workload.temperature));
            body.insert("stream".to_owned(), json!(workload.is_streamed));
            if workload.is_streamed {
                body.insert("stream_options".to_owned(), json!({"include_usage": true}));
            }
        }
        body.extend(workload.body.clone());
        let (path, shape) = match (workload.api, workload.is_streamed) {
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
fn asked(api: Api, prompt: &Prompt) -> (&'static str, Value) {
    if api == Api::Completions {
        let system = prompt.system.iter().map(|text| format!("{text}\n")).collect::<String>();
        return ("prompt", json!(system + &prompt.user));
    }
    let system = prompt.system.iter().map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": prompt.user});
    ("messages", system.chain([user]).collect())
}
