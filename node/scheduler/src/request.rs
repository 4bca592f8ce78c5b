//! What comes into the scheduler and what comes out of it.
//!
//! A request is a prompt in tokens and what to do with it; a sequence is one
//! answer in the making. A request for `n` choices becomes `n` sequences that
//! share their prompt through the prefix cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quern_engine::{AdapterId, TokenId};

use crate::LabelTrie;
use crate::constraint::Constraint;

/// Unique for the life of the process.
pub type RequestId = u64;

/// A name interned by the caller; 0 is "none".
pub type NameIx = u32;

/// The priority of a request that states none. Larger is more urgent.
pub const DEFAULT_PRIORITY: u8 = 128;

/// One prompt and what to do with it.
pub struct Request {
    /// Appears in spans, never in metrics.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Arc<[TokenId]>,
    /// The adapter that computes it.
    pub adapter: AdapterId,
    /// Who asks, for policies that share between tenants.
    pub tenant: NameIx,
    /// Larger is more urgent.
    pub priority: u8,
    /// A queued request past this moment fails with [`Failure::Expired`].
    pub deadline: Option<Instant>,
    /// When the front end accepted it.
    pub arrived: Instant,
    /// What to do.
    pub work: Work,
}

/// What a request asks for.
pub enum Work {
    /// One sequence of new tokens for each sink.
    Generate(Generate),
    /// One vector for the prompt.
    Embed {
        /// How hidden states become one vector.
        pooling: Pooling,
        /// Where the vector goes.
        sink: Box<dyn Sink>,
    },
    /// How likely each of some continuations is.
    Score(Score),
}

/// Labels to score behind a prompt.
pub struct Score {
    /// The labels in tokens, as they would stand behind the prompt.
    pub labels: Arc<LabelTrie>,
    /// Labels that are at most this times as likely as the likeliest need not be
    /// computed; they score what is known of their first tokens, which is no less than
    /// their due. So each probability over `n` labels is at most `n * skip_below` off.
    /// 0 skips none.
    pub skip_below: f32,
    /// Where the scores go.
    pub sink: Box<dyn Sink>,
}

/// The terms of generation, the same for each choice.
pub struct Generate {
    /// One for each choice; its length is `n`, at least 1.
    pub sinks: Vec<Box<dyn Sink>>,
    /// How tokens are drawn. Choice `i` draws with seed `seed + i`.
    pub sampling: SamplingParams,
    /// At most this many new tokens.
    pub max_new: u32,
    /// Tokens that end the answer; they are not sent.
    pub stop_tokens: Arc<[TokenId]>,
    /// Cloned for each choice.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Send each token's logprob and this many alternatives.
    pub logprobs: Option<u8>,
    /// Send logprobs of prompt tokens is not offered; speculation may be switched off.
    pub speculate: bool,
}

/// How a prompt's hidden states become one vector. Not normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean over all tokens.
    Mean,
}

/// How the next token is drawn from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy: the largest logit, ties to the lowest token.
    pub temperature: f32,
    /// Keep the `top_k` likeliest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of seen tokens (prompt and output), multiplies negative ones; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from each token that the output holds.
    pub presence_penalty: f32,
    /// Subtracted from each token for each time that the output holds it.
    pub frequency_penalty: f32,
    /// Added to logits before anything else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The draw at a position depends on this and the position alone.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A token with its logprob and the likeliest alternatives, natural logarithm,
/// from the model's own distribution before temperature, penalties and masks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Of the token that was drawn.
    pub logprob: f32,
    /// Likeliest first.
    pub top: Vec<(TokenId, f32)>,
}

/// What happens to one sequence. `Finished`, `Embedding`, `Scores` and `Failed` end it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It left the queue.
    Started {
        /// Time from arrival to the first step.
        queued: Duration,
        /// Prompt tokens that the prefix cache held.
        cached_tokens: u32,
    },
    /// The next token.
    Token {
        /// Its number.
        token: TokenId,
        /// As the request asked.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// No more tokens will come.
    Finished(FinishReason),
    /// The prompt's vector, `[hidden]`, not normalised.
    Embedding(Vec<f32>),
    /// The log-probability of each label, `[num_labels]`: the sum over its tokens of the
    /// log-softmax over the whole vocabulary. Natural logarithm.
    Scores(Vec<f32>),
    /// It ended without an answer.
    Failed(Failure),
}

/// Why generation ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token came, or the constraint allows nothing more.
    Stop,
    /// `max_new`, or the longest sequence that the engine holds.
    Length,
}

/// Why a sequence ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its deadline passed while it was queued.
    #[error("the deadline passed before the request could start")]
    Expired,
    /// It can never fit.
    #[error("{tokens} tokens do not fit in a cache of {capacity}")]
    TooLong {
        /// Prompt tokens.
        tokens: usize,
        /// What the engine holds.
        capacity: usize,
    },
    /// The engine failed in a step that this sequence was part of.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The adapter that it asks for cannot be brought to the engine.
    #[error("the adapter cannot be used: {0}")]
    Adapter(String),
    /// The constraint could not go on.
    #[error("the constraint failed: {0}")]
    Constraint(String),
    /// The node stops.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Whoever computed it was ended before it was done, and the node goes on.
    #[error("the worker that computed this was ended before it was done; ask again")]
    WorkerEnded,
    /// Nobody is there to compute it, and nobody could be brought.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
}

/// Where a sequence's events go. Dropping the receiving side is a hang-up: the
/// sequence is freed before the next step.
pub trait Sink: Send {
    /// Delivers without blocking.
    ///
    /// # Errors
    /// [`Closed`] when nobody listens any more.
    fn send(&mut self, event: Event) -> Result<(), Closed>;

    /// Whether the other side is gone.
    fn is_closed(&self) -> bool;

    /// Whether the other side is gone because it has all that it wants, as after
    /// a stop string, and not because it gave up.
    fn has_enough(&self) -> bool {
        false
    }
}

/// The other side of a [`Sink`] is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;
