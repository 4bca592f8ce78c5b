//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Response};
use axum::response::IntoResponse;

use super::admission::Wish;
use super::fields::{PromptItem, Prompts};
use super::logprobs::TextLogprobs;
use super::openai::Usage;
use super::openai_text::{TextChoice, TextCompletion, TextRequest};
use super::params::{self, GrammarFields, SamplingFields};
use super::reply::Problem;
use super::route::{Context, Front};
use super::sse::{self, Events, Shape};
use super::{RequestLimits, unix_now};
use crate::serving::{Ask, Delta, Error, Finish, Generation, Model, Prompt, Served, Update, What, prompt};

/// New tokens where a request says nothing, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Alternatives a token.
const MAX_LOGPROBS: u8 = 20;

pub(super) async fn handle(
    State(front): State<Arc<Front>>,
    Extension(context): Extension<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let received = front.receive_work(&headers, body).await?;
    let mut request: TextRequest = received.parse()?;
    let mut model = front.model(request.model.as_deref()).await?;
    let n = params::choices(request.n, &front.limits)?;
    refuse_unserved(&request, n)?;
    let items = std::mem::replace(&mut request.prompt, Prompts(Vec::new()));
    let items = checked_items(items, "prompt", &front.limits)?;
    let mut terms =
        front.terms(&context, &headers, request.user.as_deref(), request.priority, items.len())?;
    let sampling = params::sampling(
        &sampling_fields(&request),
        &model,
        &front.limits,
        front.node.fresh_seed(terms.first_id),
    )?;
    let max_new = params::positive("max_tokens", request.max_tokens)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let logprobs =
        request.logprobs.map(|count| params::alternatives("logprobs", count, MAX_LOGPROBS)).transpose()?;
    let grammar = params::grammar(&grammar_fields(&request))?;
    params::refuse_endless(request.ignore_eos, grammar.as_ref())?;
    let stream = request.stream == Some(true);
    if request.stream_options.is_some() && !stream {
        return Err(Problem::field("stream_options", "stream_options needs stream to be true"));
    }
    let include_usage = request.stream_options.is_some_and(|options| options.include_usage == Some(true));
    let stop = params::stop(request.stop, &front.limits)?;
    let wish = Wish { body_bytes: received.len(), max_new: Some(max_new), headers: &headers };
    let max_new = front.admit(&mut model, &mut terms, &wish).await?;
    let places = front.reserve(&model, items.len())?;

    let prompts = tokenised(&model, items, "prompt").await?;
    drop(received);
    for prompt in &prompts {
        model.room(prompt, None)?;
    }
    let constraint = params::compile(&model, grammar).await?;
    let ask = Ask {
        prompts,
        n,
        sampling,
        max_new,
        stop,
        stop_tokens: model.tokenizer.eos_tokens().into(),
        constraint,
        logprobs,
        tools: None,
    };
    let generation = Generation::start(&model, places, terms, ask)?;
    let answer = Answer {
        id: front.node.public_id("cmpl-", terms.first_id),
        created: unix_now(),
        fingerprint: front.fingerprint.clone(),
        model,
        logprobs,
        include_usage,
        offsets: vec![0; generation.num_choices()],
    };
    if stream {
        return sse::respond(generation, answer, front.write_timeout, context.timer).await;
    }
    whole(answer, generation).await
}

/// As many prompts as may be, each of which says something.
pub(super) fn checked_items(
    prompts: Prompts,
    field: &'static str,
    limits: &RequestLimits,
) -> Result<Vec<PromptItem>, Problem> {
    let items = prompts.0;
    if items.is_empty() {
        return Err(Problem::field(field, format!("{field} must not be empty")));
    }
    if items.len() > limits.max_prompts {
        let max = limits.max_prompts;
        return Err(Problem::field(field, format!("{field} has {} entries; {max} may be", items.len())));
    }
    Ok(items)
}

/// The items in tokens; an empty or unknown one is blamed on the field.
pub(super) async fn tokenised(
    model: &Arc<Model>,
    items: Vec<PromptItem>,
    field: &'static str,
) -> Result<Vec<Prompt>, Problem> {
    let mut prompts = Vec::with_capacity(items.len());
    for item in items {
        let prompt = match item {
            PromptItem::Text(text) => prompt::from_text(model, text).await,
            PromptItem::Tokens(tokens) => prompt::from_tokens(model, tokens),
        };
        prompts.push(prompt.map_err(|error| match error {
            Error::EmptyPrompt | Error::UnknownToken { .. } => Problem::field(field, error.to_string()),
            error => error.into(),
        })?);
    }
    Ok(prompts)
}

fn refuse_unserved(request: &TextRequest, n: u32) -> Result<(), Problem> {
    params::refuse_unserved(&[
        // As many candidates as choices need no ranking.
        ("best_of", request.best_of.is_some_and(|best_of| best_of != i64::from(n))),
        ("echo", request.echo == Some(true)),
        ("suffix", request.suffix.is_some()),
        ("use_beam_search", request.use_beam_search == Some(true)),
        ("prompt_logprobs", request.prompt_logprobs.is_some()),
        ("prompt_embeds", request.prompt_embeds.is_some()),
    ])
}

fn sampling_fields(request: &TextRequest) -> SamplingFields<'_> {
    SamplingFields {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias.as_ref(),
        seed: request.seed,
        ignore_eos: request.ignore_eos,
    }
}

fn grammar_fields(request: &TextRequest) -> GrammarFields<'_> {
    GrammarFields {
        response_format: request.response_format.as_ref(),
        guided_json: request.guided_json.as_ref(),
        guided_regex: request.guided_regex.as_deref(),
        guided_grammar: request.guided_grammar.as_deref(),
        guided_choice: request.guided_choice.as_deref(),
        structured_outputs: request.structured_outputs.as_ref(),
    }
}

/// What all pieces of an answer have in common, and how far each choice is.
struct Answer {
    id: String,
    created: u64,
    fingerprint: String,
    model: Served,
    logprobs: Option<u8>,
    include_usage: bool,
    /// Characters of each choice's tokens so far, for `text_offset`.
    offsets: Vec<usize>,
}

impl Answer {
    fn completion<'a>(
        &'a self,
        choices: &'a [TextChoice<'a>],
        usage: Option<Option<Usage>>,
    ) -> TextCompletion<'a> {
        TextCompletion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: self.model.model_id(),
            choices,
            usage,
            system_fingerprint: &self.fingerprint,
        }
    }

    fn logprobs(&mut self, choice: usize, delta: &Delta) -> Option<TextLogprobs> {
        let with_top = self.logprobs? > 0;
        let offset = self.offsets[choice];
        let (columns, offset) = TextLogprobs::columns(&self.model.tokenizer, &delta.tokens, with_top, offset);
        self.offsets[choice] = offset;
        Some(columns)
    }

    fn piece(&self, events: &mut Events, choices: &[TextChoice<'_>], usage: Option<Usage>) {
        events.push(&self.completion(choices, self.include_usage.then_some(usage)));
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::ToolCalls => "stop",
        Finish::Length => "length",
    }
}

fn usage(generation: &Generation) -> Usage {
    Usage::new(generation.prompt_tokens(), generation.generated_tokens(), generation.cached_tokens())
}

/// What has come of one choice.
#[derive(Default)]
struct Collected {
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Collects all choices into one body.
async fn whole(mut answer: Answer, mut generation: Generation) -> Result<Response<Body>, Problem> {
    let mut collected: Vec<Collected> = (0..generation.num_choices()).map(|_| Collected::default()).collect();
    while let Some(Update { choice, what }) = generation.next().await {
        let (delta, finish) = match what {
            What::Started => continue,
            What::Failed(error) => return Err(error.into()),
            What::Delta(delta) => (delta, None),
            What::Finished(delta, finish) => (delta, Some(finish)),
        };
        let columns = answer.logprobs(choice, &delta);
        let entry = &mut collected[choice];
        entry.text.push_str(&delta.content);
        entry.finish_reason = finish.map(finish_reason);
        match (&mut entry.logprobs, columns) {
            (Some(all), Some(more)) => all.append(more),
            (all, columns) => *all = columns,
        }
    }
    let choices: Vec<TextChoice<'_>> = collected
        .iter_mut()
        .enumerate()
        .map(|(index, entry)| TextChoice {
            logprobs: entry.logprobs.take(),
            text: &entry.text,
            index,
            finish_reason: entry.finish_reason,
        })
        .collect();
    Ok(Json(answer.completion(&choices, Some(Some(usage(&generation))))).into_response())
}

impl Shape for Answer {
    fn update(&mut self, update: Update, events: &mut Events) {
        let index = update.choice;
        let (delta, finish) = match update.what {
            What::Started | What::Failed(_) => return,
            What::Delta(delta) => (delta, None),
            What::Finished(delta, finish) => (delta, Some(finish)),
        };
        if !delta.is_empty() {
            let logprobs = self.logprobs(index, &delta);
            let piece = TextChoice { text: &delta.content, index, logprobs, finish_reason: None };
            self.piece(events, &[piece], None);
        }
        if let Some(finish) = finish {
            let finish_reason = Some(finish_reason(finish));
            self.piece(events, &[TextChoice { text: "", index, logprobs: None, finish_reason }], None);
        }
    }

    fn end(&mut self, generation: &Generation, events: &mut Events) {
        if self.include_usage {
            self.piece(events, &[], Some(usage(generation)));
        }
    }
}
