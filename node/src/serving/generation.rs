//! Prompts become answers: submits a request's prompts and follows its choices.

use std::sync::Arc;

use quern_engine::TokenId;
use quern_scheduler::Permit;
use quern_scheduler::constraint::Constraint;
use quern_scheduler::request::{Event, FinishReason, Generate, Request, SamplingParams, Work};
use quern_text::{StopStrings, ToolCallParser};
use tokio::sync::mpsc;

use super::choice::{Delta, Finish, Stages};
use super::observe::{self, Observer};
use super::sink::{self, Enough, Tagged};
use super::{Error, Prompt, Served, Terms};

/// What is asked of each prompt.
pub struct Ask {
    /// With one place in the queue each.
    pub prompts: Vec<Prompt>,
    /// Choices for each prompt, at least 1.
    pub n: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// New tokens at most; `None` is all that fit.
    pub max_new: Option<u32>,
    /// Text that ends an answer and is no part of it.
    pub stop: StopStrings,
    /// Tokens that end an answer.
    pub stop_tokens: Arc<[TokenId]>,
    /// What an answer must look like.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Logprobs of tokens, and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Finds tool calls in answers; cloned for each choice.
    pub tools: Option<ToolCallParser>,
}

/// What happened to a choice.
#[derive(Debug)]
pub struct Update {
    /// Counted over all prompts: prompt `choice / n`, choice `choice % n`.
    pub choice: usize,
    /// What happened.
    pub what: What,
}

/// What happens to a choice. `Finished` and `Failed` are its last.
#[derive(Debug)]
pub enum What {
    /// It left the queue.
    Started,
    /// There is something new.
    Delta(Delta),
    /// It ended, with what had been held back.
    Finished(Delta, Finish),
    /// It ended without an answer.
    Failed(Error),
}

/// A request in the making. Dropping it hangs up: whatever it still has in the
/// scheduler is freed before the next step.
pub struct Generation {
    choices: Vec<Choice>,
    events: mpsc::Receiver<Tagged>,
    /// Choices that have not ended.
    open: usize,
    observer: Observer,
    prompt_tokens: usize,
    generated_tokens: usize,
    cached_tokens: usize,
    /// Choices a prompt.
    n: usize,
    /// Keeps the adapter.
    _served: Served,
}

struct Choice {
    stages: Stages,
    enough: Enough,
    ended: bool,
}

impl Generation {
    /// Submits all prompts. `places` has one for each.
    ///
    /// # Errors
    /// [`Error::ContextLength`] for a prompt without room for an answer, before
    /// anything is submitted; [`Error::NotTaken`] when there is nobody to compute it.
    pub fn start(model: &Served, places: Vec<Permit>, terms: Terms, ask: Ask) -> Result<Generation, Error> {
        let n = ask.n as usize;
        let rooms: Vec<u32> =
            ask.prompts.iter().map(|prompt| model.room(prompt, ask.max_new)).collect::<Result<_, _>>()?;
        let (pairs, events) = sink::channel(rooms.iter().flat_map(|&room| std::iter::repeat_n(room, n)));
        let prompt_tokens = ask.prompts.iter().map(|prompt| prompt.len()).sum();

        let mut choices = Vec::with_capacity(pairs.len());
        let mut sinks = Vec::with_capacity(pairs.len());
        for (sink, enough) in pairs {
            let stages = Stages::new(Arc::clone(&model.tokenizer), &ask.stop, ask.tools.clone());
            choices.push(Choice { stages, enough, ended: false });
            sinks.push(sink);
        }
        let mut sinks = sinks.into_iter();
        for (idx, ((prompt, place), max_new)) in ask.prompts.into_iter().zip(places).zip(rooms).enumerate() {
            let request = Request {
                id: terms.first_id + idx as u64,
                prompt,
                adapter: model.adapter_id(),
                tenant: terms.tenant,
                priority: terms.priority,
                deadline: terms.deadline,
                arrived: terms.arrived,
                work: Work::Generate(Generate {
                    sinks: sinks.by_ref().take(n).collect(),
                    sampling: ask.sampling.clone(),
                    max_new,
                    stop_tokens: Arc::clone(&ask.stop_tokens),
                    constraint: ask.constraint.as_ref().map(|constraint| constraint.clone_box()),
                    logprobs: ask.logprobs,
                    speculate: model.defaults.speculate,
                }),
            };
            model.workers.submit(place, request)?;
        }
        Ok(Generation {
            open: choices.len(),
            observer: Observer::new(terms.arrived, choices.len(), prompt_tokens, Arc::clone(&model.recent)),
            choices,
            events,
            prompt_tokens,
            generated_tokens: 0,
            cached_tokens: 0,
            n,
            _served: model.clone(),
        })
    }

    /// Waits for what happens next; `None` once all choices have ended.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Update> {
        while self.open > 0 {
            let Some(event) = self.events.recv().await else { return self.lost() };
            if let Some(update) = self.apply(event) {
                return Some(update);
            }
        }
        None
    }

    /// What has happened already, if anything.
    pub fn try_next(&mut self) -> Option<Update> {
        while self.open > 0 {
            let event = self.events.try_recv().ok()?;
            if let Some(update) = self.apply(event) {
                return Some(update);
            }
        }
        None
    }

    /// Choices, of all prompts together.
    #[must_use]
    pub fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens of all prompts together.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// New tokens of all choices so far.
    #[must_use]
    pub fn generated_tokens(&self) -> usize {
        self.generated_tokens
    }

    /// Prompt tokens that the prefix cache held, each prompt counted once.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    fn apply(&mut self, (idx, event): Tagged) -> Option<Update> {
        let idx = idx as usize;
        if self.choices[idx].ended {
            // It was on its way when a stop string ended the choice.
            return None;
        }
        let what = match event {
            Event::Started { cached_tokens, .. } => {
                // The other choices fork the first one's prompt: that is no cache hit.
                if idx.is_multiple_of(self.n) {
                    self.cached_tokens += cached_tokens as usize;
                }
                What::Started
            }
            Event::Token { token, logprobs } => {
                self.generated_tokens += 1;
                self.observer.token(idx);
                let (delta, stopped) = self.choices[idx].stages.token(token, logprobs);
                if stopped {
                    self.finished(idx, delta, FinishReason::Stop)
                } else if delta.is_empty() {
                    return None;
                } else {
                    What::Delta(delta)
                }
            }
            Event::Finished(reason) => {
                let delta = self.choices[idx].stages.finish();
                self.finished(idx, delta, reason)
            }
            Event::Failed(failure) => {
                observe::failed();
                self.end(idx);
                What::Failed(failure.into())
            }
            Event::Embedding(_) | Event::Scores(_) => return None,
        };
        Some(Update { choice: idx, what })
    }

    fn finished(&mut self, idx: usize, delta: Delta, reason: FinishReason) -> What {
        let finish = self.choices[idx].stages.reason(reason);
        observe::finished(finish);
        self.end(idx);
        What::Finished(delta, finish)
    }

    fn end(&mut self, idx: usize) {
        self.observer.ended(idx);
        let choice = &mut self.choices[idx];
        choice.ended = true;
        choice.enough.say();
        self.open -= 1;
    }

    /// The step thread is gone: the first open choice says so, the rest end with it.
    fn lost(&mut self) -> Option<Update> {
        let choice = self.choices.iter().position(|choice| !choice.ended)?;
        observe::failed();
        self.end(choice);
        Some(Update { choice, what: What::Failed(Error::Lost) })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.open > 0 {
            observe::abandoned(self.open);
        }
    }
}
