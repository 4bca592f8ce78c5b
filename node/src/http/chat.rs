//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Response};
use axum::response::IntoResponse;
use quern_text::ToolCallParser;

use super::admission::Wish;
use super::chat_request;
use super::logprobs::ChatLogprobs;
use super::openai::Usage;
use super::openai_chat::{
    AnswerFunction, AnswerMessage, AnswerToolCall, ChatChoice, ChatChunk, ChatCompletion, ChatRequest,
    ChunkChoice, ChunkDelta, ChunkFunction, ChunkToolCall,
};
use super::params;
use super::reply::Problem;
use super::route::{Context, Front};
use super::sse::{self, Events, Shape};
use super::unix_now;
use crate::serving::{Ask, CallDelta, Delta, Finish, Generation, Served, Update, What, prompt};

pub(super) async fn handle(
    State(front): State<Arc<Front>>,
    Extension(context): Extension<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let received = front.receive_work(&headers, body).await?;
    let request: ChatRequest = received.parse()?;
    let mut model = front.model(request.model.as_deref()).await?;
    let mut terms = front.terms(&context, &headers, request.user.as_deref(), request.priority, 1)?;
    let checked = chat_request::check(request, &model, &front.limits, front.node.fresh_seed(terms.first_id))?;
    let wish = Wish { body_bytes: received.len(), max_new: checked.max_new, headers: &headers };
    let max_new = front.admit(&mut model, &mut terms, &wish).await?;
    let places = front.reserve(&model, 1)?;

    let prompt = prompt::from_chat(&model, checked.input).await?;
    drop(received);
    model.room(&prompt, None)?;
    let constraint = params::compile(&model, checked.grammar).await?;
    let ask = Ask {
        prompts: vec![prompt],
        n: checked.n,
        sampling: checked.sampling,
        max_new,
        stop: checked.stop,
        stop_tokens: model.tokenizer.eos_tokens().into(),
        constraint,
        logprobs: checked.logprobs,
        tools: checked.finds_calls.then(ToolCallParser::new),
    };
    let generation = Generation::start(&model, places, terms, ask)?;
    let answer = Answer {
        id: front.node.public_id("chatcmpl-", terms.first_id),
        created: unix_now(),
        fingerprint: front.fingerprint.clone(),
        model,
        logprobs: checked.logprobs.is_some(),
        single_call: checked.single_call,
    };
    if checked.stream {
        let shape = ChatStream {
            choices: (0..generation.num_choices()).map(|_| Begun::default()).collect(),
            include_usage: checked.include_usage,
            answer,
        };
        return sse::respond(generation, shape, front.write_timeout, context.timer).await;
    }
    whole(&answer, generation).await
}

/// What all pieces of an answer have in common.
struct Answer {
    id: String,
    created: u64,
    fingerprint: String,
    model: Served,
    logprobs: bool,
    single_call: bool,
}

impl Answer {
    fn call_id(&self, choice: usize, call: usize) -> String {
        let id = self.id.trim_start_matches("chatcmpl-");
        format!("call_{id}{choice:02x}{call:02x}")
    }

    fn logprobs(&self, delta: &Delta) -> Option<ChatLogprobs> {
        self.logprobs.then(|| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.extend(&self.model.tokenizer, &delta.tokens);
            logprobs
        })
    }

    fn keeps(&self, call: &CallDelta) -> bool {
        !self.single_call || call.index == 0
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

fn usage(generation: &Generation) -> Usage {
    Usage::new(generation.prompt_tokens(), generation.generated_tokens(), generation.cached_tokens())
}

/// Collects all choices into one body.
async fn whole(answer: &Answer, mut generation: Generation) -> Result<Response<Body>, Problem> {
    let mut choices: Vec<ChatChoice> =
        (0..generation.num_choices()).map(|index| empty_choice(index, answer.logprobs)).collect();
    while let Some(Update { choice, what }) = generation.next().await {
        let (delta, finish) = match what {
            What::Started => continue,
            What::Failed(error) => return Err(error.into()),
            What::Delta(delta) => (delta, None),
            What::Finished(delta, finish) => (delta, Some(finish)),
        };
        let entry = &mut choices[choice];
        if let Some(logprobs) = &mut entry.logprobs {
            logprobs.extend(&answer.model.tokenizer, &delta.tokens);
        }
        add(answer, entry, delta);
        if let Some(finish) = finish {
            entry.finish_reason = finish_reason(finish);
        }
    }
    for choice in &mut choices {
        let message = &mut choice.message;
        if !message.tool_calls.is_empty()
            && message.content.as_deref().is_some_and(|text| text.trim().is_empty())
        {
            message.content = None;
        }
    }
    let completion = ChatCompletion {
        id: &answer.id,
        object: "chat.completion",
        created: answer.created,
        model: answer.model.model_id(),
        choices,
        usage: usage(&generation),
        system_fingerprint: &answer.fingerprint,
    };
    Ok(Json(completion).into_response())
}

fn empty_choice(index: usize, logprobs: bool) -> ChatChoice {
    let message = AnswerMessage {
        role: "assistant",
        content: Some(String::new()),
        refusal: None,
        tool_calls: Vec::new(),
    };
    ChatChoice { index, message, logprobs: logprobs.then(ChatLogprobs::default), finish_reason: "stop" }
}

fn add(answer: &Answer, choice: &mut ChatChoice, delta: Delta) {
    if let Some(content) = &mut choice.message.content {
        content.push_str(&delta.content);
    }
    for call in delta.calls {
        if !answer.keeps(&call) {
            continue;
        }
        let calls = &mut choice.message.tool_calls;
        match call.name {
            Some(name) => calls.push(AnswerToolCall {
                id: answer.call_id(choice.index, call.index),
                kind: "function",
                function: AnswerFunction { name, arguments: call.arguments },
            }),
            None => {
                if let Some(begun) = calls.last_mut() {
                    begun.function.arguments.push_str(&call.arguments);
                }
            }
        }
    }
}

/// Writes an answer piece by piece.
struct ChatStream {
    answer: Answer,
    include_usage: bool,
    choices: Vec<Begun>,
}

/// What of a choice has been written.
#[derive(Default)]
struct Begun {
    role: bool,
}

impl ChatStream {
    fn chunk(&self, events: &mut Events, choices: &[ChunkChoice<'_>], usage: Option<Usage>) {
        events.push(&ChatChunk {
            id: &self.answer.id,
            object: "chat.completion.chunk",
            created: self.answer.created,
            model: self.answer.model.model_id(),
            system_fingerprint: &self.answer.fingerprint,
            choices,
            usage: self.include_usage.then_some(usage),
        });
    }

    fn piece(
        &self,
        events: &mut Events,
        index: usize,
        delta: ChunkDelta<'_>,
        logprobs: Option<ChatLogprobs>,
    ) {
        self.chunk(events, &[ChunkChoice { index, delta, logprobs, finish_reason: None }], None);
    }

    /// The role stands before a choice's first news.
    fn begin(&mut self, events: &mut Events, index: usize) {
        if !std::mem::replace(&mut self.choices[index].role, true) {
            let delta = ChunkDelta { role: Some("assistant"), content: Some(""), tool_calls: Vec::new() };
            self.piece(events, index, delta, None);
        }
    }

    fn delta(&self, events: &mut Events, index: usize, delta: &Delta) {
        let calls: Vec<&CallDelta> = delta.calls.iter().filter(|call| self.answer.keeps(call)).collect();
        if delta.content.is_empty() && delta.tokens.is_empty() && calls.is_empty() {
            return;
        }
        let ids: Vec<Option<String>> = calls
            .iter()
            .map(|call| call.name.is_some().then(|| self.answer.call_id(index, call.index)))
            .collect();
        let tool_calls = calls.iter().zip(&ids).map(|(call, id)| ChunkToolCall {
            index: call.index,
            id: id.as_deref(),
            kind: id.as_ref().map(|_| "function"),
            function: ChunkFunction { name: call.name.as_deref(), arguments: &call.arguments },
        });
        let content = (calls.is_empty() || !delta.content.is_empty()).then_some(delta.content.as_str());
        let news = ChunkDelta { role: None, content, tool_calls: tool_calls.collect() };
        self.piece(events, index, news, self.answer.logprobs(delta));
    }
}

impl Shape for ChatStream {
    fn update(&mut self, update: Update, events: &mut Events) {
        let index = update.choice;
        match update.what {
            What::Started | What::Failed(_) => {}
            What::Delta(delta) => {
                self.begin(events, index);
                self.delta(events, index, &delta);
            }
            What::Finished(delta, finish) => {
                self.begin(events, index);
                self.delta(events, index, &delta);
                let finish_reason = Some(finish_reason(finish));
                let delta = ChunkDelta::default();
                self.chunk(events, &[ChunkChoice { index, delta, logprobs: None, finish_reason }], None);
            }
        }
    }

    fn end(&mut self, generation: &Generation, events: &mut Events) {
        if self.include_usage {
            self.chunk(events, &[], Some(usage(generation)));
        }
    }
}
