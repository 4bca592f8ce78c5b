//! Why text could not become an answer.

use quern_scheduler::Refused;
use quern_scheduler::request::Failure;
use quern_text::{TemplateError, TokenizerError};

use super::Unfit;
use crate::adapters;
use crate::workers::NotTaken;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scheduler takes no more.
    #[error("{0}; please retry later")]
    Refused(#[from] Refused),
    /// Nobody is there to compute it.
    #[error("{0}; please retry later")]
    NotTaken(#[from] NotTaken),
    /// The adapter that it names is not there any more.
    #[error(transparent)]
    Adapter(#[from] adapters::Error),
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt with a token that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens that there are.
        vocab_size: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error("this model's maximum context length is {limit} tokens, but the prompt has {tokens} tokens")]
    ContextLength {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The model file came without a chat template.
    #[error("this model has no chat template: use /v1/completions")]
    NoTemplate,
    /// The template does not take these messages.
    #[error(transparent)]
    Template(Box<TemplateError>),
    /// The tokenizer failed.
    #[error("the text could not be processed: {0}")]
    Text(String),
    /// A schema, expression or grammar that cannot be compiled.
    #[error("the grammar cannot be compiled: {0}")]
    Grammar(String),
    /// An operator's classifier does not belong to its model.
    #[error("the classifier cannot be used: {0}")]
    Unfit(#[from] Unfit),
    /// The scheduler gave up on the sequence.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The scheduler is gone.
    #[error("the scheduler ended before the answer did")]
    Lost,
}

impl From<TokenizerError> for Error {
    fn from(error: TokenizerError) -> Error {
        Error::Text(error.to_string())
    }
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Error {
        match error {
            TemplateError::Tokenizer(error) => error.into(),
            error => Error::Template(Box::new(error)),
        }
    }
}

/// A task on a blocking thread panicked, or the runtime ends.
impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Error {
        Error::Text(error.to_string())
    }
}
