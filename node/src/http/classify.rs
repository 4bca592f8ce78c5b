//! `POST /v1/classify`: one text or many, each with the label that fits it best.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::admission::Wish;
use super::fields::{PromptItem, Prompts};
use super::openai_classify::{ClassifyObject, ClassifyRequest, ClassifyResponse, ClassifyUsage, TopLabel};
use super::params;
use super::reply::Problem;
use super::route::{Context, Front};
use super::{RequestLimits, unix_now};
use crate::serving::{
    self, Classified, Classifier, Configured, Error, Means, Model, Ready, Served, Unfit, WINDOW, prompt,
};

pub(super) async fn handle(
    State(front): State<Arc<Front>>,
    Extension(context): Extension<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received = front.receive_work(&headers, body).await?;
    let request: ClassifyRequest = received.parse()?;
    let (mut served, configured) = front.classifier(request.model.as_deref()).await?;
    let threshold = request.abstain_below;
    // Told before anything else is looked at, where there is nothing to classify with.
    resolved(&served, configured.as_deref(), threshold)?;
    refuse_unserved(&request)?;
    let top_k = request.top_k.map(top_k).transpose()?;
    let items = checked_texts(request.input, &front.limits)?;
    let mut terms =
        front.terms(&context, &headers, request.user.as_deref(), request.priority, items.len())?;
    // Nothing is written, and a policy may grant no less than one token.
    let wish = Wish { body_bytes: received.len(), max_new: Some(1), headers: &headers };
    front.admit(&mut served, &mut terms, &wish).await?;
    let classifier = resolved(&served, configured.as_deref(), threshold)?;
    // The texts behind the first ones take the places that those give back.
    let places = front.reserve(&served, items.len().min(WINDOW))?;

    let texts = read(&served, &classifier, items).await?;
    drop(received);
    let prompt_tokens = texts.iter().map(Ready::num_tokens).sum();
    let found = serving::classify(&served, &classifier, places, terms, texts).await?;
    let found = found.into_iter().enumerate();
    let response = ClassifyResponse {
        id: front.node.public_id("classify-", terms.first_id),
        object: "list",
        created: unix_now(),
        model: &classifier.name,
        data: found.map(|(index, found)| object(&classifier, index, found, top_k)).collect(),
        usage: ClassifyUsage {
            prompt_tokens,
            total_tokens: prompt_tokens,
            completion_tokens: 0,
            prompt_tokens_details: None,
        },
    };
    Ok(Json(response).into_response())
}

impl Front {
    /// What is served under a name, and how an operator has it classify.
    async fn classifier(&self, name: Option<&str>) -> Result<(Served, Option<Arc<Configured>>), Problem> {
        for model in self.node.models() {
            let named = model.classifiers.iter().find(|one| Some(one.name.as_str()) == name);
            let Some(configured) = named else { continue };
            let served = match &configured.adapter {
                None => Served::base(model),
                Some(adapter) => {
                    let found = Served::find(std::slice::from_ref(model), adapter).await?;
                    found.ok_or_else(|| Error::from(Unfit::NoAdapter(adapter.clone())))?
                }
            };
            return Ok((served, Some(Arc::clone(configured))));
        }
        Ok((self.model(name).await?, None))
    }
}

/// What classifies, with the request's own threshold.
fn resolved(
    served: &Served,
    configured: Option<&Configured>,
    abstain_below: Option<f32>,
) -> Result<Classifier, Problem> {
    let classifier = match configured {
        Some(configured) => configured.with(served).map_err(Error::from)?,
        None => Classifier::by_head(served).ok_or_else(|| Problem::Field {
            param: "model".to_owned(),
            message: format!(
                "`{}` does not classify: it has no classification head, and no [[classifier]] has this name",
                served.model_id()
            ),
            code: Some("not_a_classifier"),
        })?,
    };
    match abstain_below {
        None => Ok(classifier),
        Some(below) if (0.0..=1.0).contains(&below) => Ok(Classifier { abstain_below: below, ..classifier }),
        Some(_) => Err(Problem::field("abstain_below", "abstain_below must be from 0 to 1")),
    }
}

fn refuse_unserved(request: &ClassifyRequest) -> Result<(), Problem> {
    let is_off = |switch: Option<bool>| switch == Some(false);
    params::refuse_unserved(&[
        ("messages", request.messages.is_some()),
        ("truncate_prompt_tokens", request.truncate_prompt_tokens.is_some()),
        ("activation", is_off(request.activation)),
        ("softmax", is_off(request.softmax)),
        ("use_activation", is_off(request.use_activation)),
    ])
}

fn top_k(top_k: i64) -> Result<usize, Problem> {
    let at_least_one = usize::try_from(top_k).ok().filter(|&count| count > 0);
    at_least_one.ok_or_else(|| Problem::field("top_k", "top_k must be at least 1"))
}

/// As many texts as may be.
fn checked_texts(input: Option<Prompts>, limits: &RequestLimits) -> Result<Vec<PromptItem>, Problem> {
    let items = input.ok_or_else(|| Problem::field("input", "you must provide an input parameter"))?.0;
    if items.is_empty() {
        return Err(Problem::field("input", "input must not be empty"));
    }
    if items.len() > limits.max_texts {
        let (len, max) = (items.len(), limits.max_texts);
        let message = format!("input has {len} texts; {max} may be in one request");
        return Err(Problem::Field { param: "input".to_owned(), message, code: Some("too_many_texts") });
    }
    Ok(items)
}

/// The texts in tokens; one that cannot be classified is blamed by its place.
async fn read(
    model: &Arc<Model>,
    classifier: &Classifier,
    items: Vec<PromptItem>,
) -> Result<Vec<Ready>, Problem> {
    let mut texts = Vec::with_capacity(items.len());
    for (idx, item) in items.into_iter().enumerate() {
        if idx > 0 {
            // Many texts must not hold up the other connections of this thread.
            tokio::task::yield_now().await;
        }
        let ready = match item {
            PromptItem::Text(text) if text.is_empty() => Err(Error::EmptyPrompt),
            PromptItem::Text(text) => classifier.read(model, text).await,
            PromptItem::Tokens(_) if matches!(classifier.means, Means::Labels(_)) => {
                let message = "this classifier takes texts, and no tokens";
                return Err(Problem::field("input", message));
            }
            PromptItem::Tokens(tokens) => {
                prompt::from_tokens(model, tokens).and_then(|tokens| classifier.read_tokens(model, tokens))
            }
        };
        let blame = |code, error: Error| Problem::Field {
            param: "input".to_owned(),
            message: format!("input[{idx}]: {error}"),
            code,
        };
        texts.push(ready.map_err(|error| match error {
            Error::EmptyPrompt => blame(Some("empty_text"), error),
            Error::UnknownToken { .. } => blame(None, error),
            Error::ContextLength { .. } => blame(Some("context_length_exceeded"), error),
            error => error.into(),
        })?);
    }
    Ok(texts)
}

fn object(
    classifier: &Classifier,
    index: usize,
    found: Classified,
    top_k: Option<usize>,
) -> ClassifyObject<'_> {
    let labels = classifier.labels();
    let top = top_k.map(|count| {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        // A stable sort: among equals the first label stays first, as in `label`.
        order.sort_by(|&one, &other| found.probs[other].total_cmp(&found.probs[one]));
        let top = order.into_iter().take(count);
        top.map(|label| TopLabel { label: &labels[label], prob: found.probs[label] }).collect()
    });
    ClassifyObject {
        index,
        label: found.label.map(|label| labels[label].as_str()),
        num_classes: labels.len(),
        probs: found.probs,
        top,
    }
}
