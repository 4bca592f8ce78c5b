//! The seam for constrained sampling: what the scheduler asks of a grammar.
//!
//! The scheduler knows no text; whoever compiles a JSON schema or a grammar
//! hands in an object that bans tokens and is told which one was drawn.

use quern_engine::TokenId;

/// A grammar's state in one sequence.
pub trait Constraint: Send {
    /// Writes which tokens may come next: bit `t % 32` of word `t / 32` for token `t`.
    /// `mask` has a bit for each logit, which may be more than there are tokens; what it
    /// held before is overwritten. Asking changes nothing: the same state gives the same
    /// mask.
    ///
    /// # Errors
    /// [`ConstraintError`] when the grammar cannot go on; the sequence fails.
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError>;

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

/// Sets the logits of what `mask` bans to negative infinity. Masks mostly allow nearly all
/// or nearly nothing, so whole words are dealt with at once.
pub(crate) fn ban(mask: &[u32], logits: &mut [f32]) {
    for (word, logits) in mask.iter().zip(logits.chunks_mut(32)) {
        match *word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            bits => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if bits >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// A grammar that cannot go on, with its own words for why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_mask_are_applied_right() {
        for len in [1, 31, 32, 33, 64, 150] {
            let is_allowed = |idx: usize| !idx.is_multiple_of(5) || (64..96).contains(&idx);
            let mut mask = vec![0_u32; usize::div_ceil(len, 32)];
            (0..len).filter(|&idx| is_allowed(idx)).for_each(|idx| mask[idx / 32] |= 1 << (idx % 32));
            let mut logits = vec![1.0; len];
            ban(&mask, &mut logits);
            for (idx, logit) in logits.into_iter().enumerate() {
                assert_eq!(logit, if is_allowed(idx) { 1.0 } else { f32::NEG_INFINITY }, "token {idx}");
            }
        }
    }
}
