//! One answer in the making, and what is known about it.
//!
//! There is no prefill phase and no decode phase, only computed tokens catching
//! up with known tokens: a sequence that lacks one is decoding, one that lacks
//! more is prefilling (the idea is vLLM's).

use std::sync::Arc;
use std::time::{Duration, Instant};

use quern_engine::{AdapterId, Output, SeqId, TokenId};

use crate::completed::{Completion, Outcome};
use crate::constraint::Constraint;
use crate::draft::DraftLength;
use crate::offloaded::Saved;
use crate::queue::Permit;
use crate::request::{Event, Failure, FinishReason, NameIx, Pooling, RequestId, Sink};
use crate::sampler::Sampler;
use crate::score::Scoring;

/// Prompts that are only read and shorter than this are computed again sooner than
/// every row of every step walks past what is kept of them.
const SHORT_PROMPT: usize = 32;

/// See the module's text.
pub(crate) struct Sequence {
    /// Unique for the life of the scheduler; ascends with arrival.
    pub(crate) id: u64,
    pub(crate) request: RequestId,
    pub(crate) adapter: AdapterId,
    pub(crate) tenant: NameIx,
    pub(crate) priority: u8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) arrived: Instant,
    /// All known tokens: the prompt, then the answer, or the label path that is scored.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    /// Tokens whose state the slot holds: `tokens[..computed]`.
    pub(crate) computed: usize,
    /// Held while running.
    pub(crate) slot: Option<SeqId>,
    /// State in host memory to go on from.
    pub(crate) saved: Option<Saved>,
    pub(crate) task: Task,
    pub(crate) sink: Box<dyn Sink>,
    /// The place in the queue; given back when the last choice has started.
    pub(crate) permit: Option<Arc<Permit>>,
    pub(crate) started: bool,
    /// Set when no more work is to be done for it.
    pub(crate) ended: bool,
    /// How it ended; cancelled as long as nobody said otherwise.
    pub(crate) outcome: Outcome,
    /// Time from arrival to the start.
    pub(crate) queued: Option<Duration>,
    /// Time from arrival to the first token.
    pub(crate) first_token: Option<Duration>,
    /// Set when the engine may hold other state than the books say.
    pub(crate) poisoned: bool,
}

/// What a sequence is for.
pub(crate) enum Task {
    Generate(Box<Generation>),
    Embed(Embedding),
    Score(Box<Scoring>),
}

pub(crate) struct Generation {
    pub(crate) sampler: Sampler,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) max_new: usize,
    pub(crate) stop_tokens: Arc<[TokenId]>,
    /// How far to draft ahead; `None` where the request or the node does not want it.
    pub(crate) draft_length: Option<DraftLength>,
}

pub(crate) struct Embedding {
    pub(crate) pooling: Pooling,
    /// Sum of the hidden states so far, `[hidden]`.
    pub(crate) sum: Vec<f32>,
}

impl Sequence {
    /// Tokens to compute before the next one can be drawn; 1 while decoding. Where labels
    /// are scored, those of other paths are among them once the prompt is computed.
    pub(crate) fn left(&self) -> usize {
        self.known_left() + self.scores_paths().map_or(0, Scoring::num_other_rows)
    }

    /// Known tokens to compute in the sequence's own slot.
    pub(crate) fn known_left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The labels to be scored, once the prompt that they follow is computed.
    pub(crate) fn scores_paths(&self) -> Option<&Scoring> {
        match &self.task {
            Task::Score(scoring) if self.computed >= self.prompt_len => Some(scoring),
            _ => None,
        }
    }

    /// New tokens so far.
    pub(crate) fn generated(&self) -> usize {
        match &self.task {
            Task::Score(_) => 0,
            _ => self.tokens.len() - self.prompt_len,
        }
    }

    /// New tokens at most.
    pub(crate) fn max_new(&self) -> usize {
        match &self.task {
            Task::Generate(generation) => generation.max_new,
            Task::Embed(_) | Task::Score(_) => 0,
        }
    }

    /// The tokens whose state may come from the cache. The last one never may,
    /// since its output is wanted; a mean wants every token's output, labels that are
    /// scored that of every token behind the prompt.
    pub(crate) fn reusable(&self) -> &[TokenId] {
        match &self.task {
            Task::Embed(Embedding { pooling: Pooling::Mean, .. }) => &[],
            Task::Score(scoring) if scoring.knows_prompt() => &self.tokens[..self.prompt_len],
            _ => &self.tokens[..self.tokens.len() - 1],
        }
    }

    /// Forgets outputs of tokens that will be computed again.
    pub(crate) fn begin_anew(&mut self) {
        if let Task::Embed(embedding) = &mut self.task {
            embedding.sum.clear();
        }
    }

    /// Whether its state may serve a prompt that begins alike.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        !matches!(self.task, Task::Embed(_)) || self.prompt_len >= SHORT_PROMPT
    }

    /// The kind of output that this sequence's steps give.
    pub(crate) fn output(&self) -> Output {
        match &self.task {
            Task::Generate(_) | Task::Score(_) => Output::Logits,
            Task::Embed(_) => Output::Hidden,
        }
    }

    /// Whether the output behind the known token at `idx` is wanted.
    pub(crate) fn wants_output(&self, idx: usize) -> bool {
        match &self.task {
            Task::Embed(Embedding { pooling: Pooling::Mean, .. }) => true,
            Task::Score(_) => self.label_node(idx).is_some(),
            _ => idx + 1 == self.tokens.len(),
        }
    }

    /// The labels' node whose logits the known token at `idx` gives, if they are wanted.
    pub(crate) fn label_node(&self, idx: usize) -> Option<usize> {
        let Task::Score(scoring) = &self.task else { return None };
        let behind = (idx + 1).checked_sub(self.prompt_len)?;
        scoring.wants(behind.checked_sub(1))
    }

    /// Goes on with the next of the labels' paths, if the last one, or the prompt, is
    /// computed. Whether it was.
    pub(crate) fn next_path(&mut self) -> bool {
        let is_done = self.known_left() == 0;
        let Task::Score(scoring) = &mut self.task else { return false };
        if is_done {
            self.computed = self.prompt_len;
            self.tokens.truncate(self.prompt_len);
            self.tokens.extend(scoring.choose_path());
        }
        is_done
    }

    /// Sends an event; nobody listening ends the sequence.
    pub(crate) fn send(&mut self, event: Event) {
        if self.sink.send(event).is_err() {
            self.ended = true;
        }
    }

    /// Ends the sequence with a last event.
    pub(crate) fn end(&mut self, event: Event) {
        self.outcome = match &event {
            Event::Failed(Failure::Expired) => Outcome::Expired,
            Event::Failed(_) => Outcome::Failed,
            _ => Outcome::Finished,
        };
        // The sequence is over whether or not anybody listens.
        let _ = self.sink.send(event);
        self.ended = true;
    }

    /// What is told of it when it leaves.
    pub(crate) fn completion(&self) -> Completion {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let satisfied = self.outcome == Outcome::Cancelled && self.sink.has_enough();
        Completion {
            id: self.id,
            tenant: self.tenant,
            outcome: if satisfied { Outcome::Finished } else { self.outcome },
            prompt_tokens: number(self.prompt_len),
            new_tokens: number(self.generated()),
            queued: self.queued.unwrap_or_else(|| self.arrived.elapsed()),
            first_token: self.first_token.unwrap_or_default(),
        }
    }

    /// Takes in a drawn token: sends it, or ends the sequence because of it.
    pub(crate) fn take_token(&mut self, drawn: crate::sampler::Sampled, max_len: usize) {
        let Task::Generate(generation) = &mut self.task else { return };
        if generation.stop_tokens.contains(&drawn.token) {
            return self.end(Event::Finished(FinishReason::Stop));
        }
        if let Some(constraint) = &mut generation.constraint
            && let Err(error) = constraint.accept(drawn.token)
        {
            return self.end(Event::Failed(crate::request::Failure::Constraint(error.0)));
        }
        self.tokens.push(drawn.token);
        if self.first_token.is_none() {
            self.first_token = Some(self.arrived.elapsed());
        }
        let complete = generation.constraint.as_ref().is_some_and(|c| c.is_finished());
        let max_new = generation.max_new;
        self.send(Event::Token { token: drawn.token, logprobs: drawn.logprobs });
        if self.ended {
            return;
        }
        if complete {
            self.end(Event::Finished(FinishReason::Stop));
        } else if self.generated() >= max_new || self.tokens.len() >= max_len {
            self.end(Event::Finished(FinishReason::Length));
        }
    }
}
