//! The seam for constrained sampling: what the scheduler asks of a grammar.
//!
//! The scheduler knows no text; whoever compiles a JSON schema or a grammar
//! hands in an object that bans tokens and is told which one was drawn.

use quern_engine::TokenId;

/// A grammar's state in one sequence.
pub trait Constraint: Send {
    /// Sets the logits of all tokens that may not come next to negative
    /// infinity. `logits` is `[vocab]`.
    ///
    /// # Errors
    /// [`ConstraintError`] when the grammar cannot go on; the sequence fails.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError>;

    /// Moves on by a drawn token.
    ///
    /// # Errors
    /// [`ConstraintError`] when the token is not allowed here.
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// Whether the text is complete and nothing may follow.
    fn is_finished(&self) -> bool;

    /// A copy in the same state, for another choice of the same request.
    fn clone_box(&self) -> Box<dyn Constraint>;
}

/// A grammar that cannot go on, with its own words for why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);
