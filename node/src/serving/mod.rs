//! Between an endpoint and the scheduler: text in, text out.
//!
//! On the way in a prompt is rendered and tokenised ([`prompt`]), its grammar
//! compiled ([`compile`]) and the request submitted ([`Generation::start`]). On
//! the way out each choice's tokens become text, stop strings and tool calls
//! ([`choice`]). This folder must not know hyper, wire shapes or status codes;
//! JSON values pass through it as they are, for templates and schemas.

mod choice;
mod classify;
mod embed;
mod error;
mod generation;
mod grammar;
mod observe;
pub mod prompt;
mod recent;
mod score;
mod served;
mod sink;
mod temperature;
mod tenants;

use std::sync::Arc;
use std::time::Instant;

use quern_adapters::Head;
use quern_engine::TokenId;
use quern_scheduler::request::{NameIx, Pooling, RequestId};
use quern_text::{ChatTemplate, ConstraintFactory, Tokenizer};

use crate::adapters::Registry;
use crate::workers::Workers;

pub use choice::{CallDelta, Delta, Finish, TokenInfo};
pub use classify::{
    Classified, Classifier, Configured, Means, Ready, Unfit, WINDOW, check_hidden, check_labels, classify,
};
pub use embed::{Embedded, embed, hidden_states};
pub use error::Error;
pub use generation::{Ask, Generation, Update, What};
pub use grammar::compile;
pub use prompt::Prompt;
pub use recent::Recent;
pub use score::{LabelTask, Labelled, TEXT, Wording};
pub use served::Served;
pub use temperature::Temperature;
pub use tenants::Tenants;

/// A served model: its workers, and what turns text into its tokens and back.
pub struct Model {
    /// What clients call it.
    pub id: String,
    /// Unix time of the model file, or of the start.
    pub created: u64,
    /// Who computes it.
    pub workers: Workers,
    /// How its last requests fared.
    pub recent: Arc<Recent>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text, where the model has a template.
    pub template: Option<Arc<ChatTemplate>>,
    /// Compiles grammars for its vocabulary.
    pub constraints: Arc<ConstraintFactory>,
    /// The adapters that requests may name in its place.
    pub adapters: Option<Registry>,
    /// The classification head that its file carries.
    pub head: Option<Arc<Head>>,
    /// What the head's scores are divided by before softmax, 1 where it is not calibrated.
    pub temperature: Temperature,
    /// Longest sequence, prompt and answer together, in tokens.
    pub max_sequence_len: usize,
    /// Length of an embedding.
    pub embedding_size: usize,
    /// What a request gets where it says nothing.
    pub defaults: Defaults,
    /// Ways to classify with it, each under a name that clients send for a model's.
    pub classifiers: Vec<Arc<Configured>>,
}

/// What a request gets where it says nothing: the model's own recommendation,
/// or the operator's.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// New tokens at most; `None` is all that fit.
    pub max_new: Option<u32>,
    /// How embeddings are pooled.
    pub pooling: Pooling,
    /// Whether the scheduler may speculate.
    pub speculate: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new: None,
            pooling: Pooling::Last,
            speculate: true,
        }
    }
}

/// Who asks, and how urgently.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The first of as many numbers as there are prompts.
    pub first_id: RequestId,
    /// See [`Tenants`].
    pub tenant: NameIx,
    /// Larger is more urgent.
    pub priority: u8,
    /// Past it, a request that has not started fails.
    pub deadline: Option<Instant>,
    /// When the front end accepted it.
    pub arrived: Instant,
}

impl Model {
    /// Whether a prompt can be read as a whole, with no answer behind it.
    ///
    /// # Errors
    /// [`Error::ContextLength`] with both numbers.
    pub fn fits(&self, prompt: &[TokenId]) -> Result<(), Error> {
        if prompt.len() > self.max_sequence_len {
            return Err(Error::ContextLength { tokens: prompt.len(), limit: self.max_sequence_len });
        }
        Ok(())
    }

    /// New tokens that fit behind a prompt, and at most `wanted`.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when there is no room for a single one.
    pub fn room(&self, prompt: &[TokenId], wanted: Option<u32>) -> Result<u32, Error> {
        let left = self.max_sequence_len.saturating_sub(prompt.len());
        if left == 0 {
            return Err(Error::ContextLength { tokens: prompt.len(), limit: self.max_sequence_len });
        }
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Ok(wanted.or(self.defaults.max_new).map_or(left, |wanted| wanted.min(left)))
    }
}
