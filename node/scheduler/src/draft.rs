//! Guesses at the next tokens, for the engine to verify many in one step.
//!
//! A draft is never believed: the step loop computes it, samples as it would
//! without it, and keeps what agrees. So a bad draft costs time and nothing
//! else, and a drafter that cannot help gives an empty one. Drafters know
//! tokens; they know no sampling parameters and no text.

mod length;
mod lookup;
mod model;
#[cfg(test)]
mod tests;

use quern_engine::TokenId;

pub use length::DraftLength;
pub use lookup::{LookupError, PromptLookup};
pub use model::{ModelDrafter, ModelDrafterConfig, VocabMismatch};

/// One sequence that wants a draft.
#[derive(Debug, Clone, Copy)]
pub struct DraftAsk<'a> {
    /// Its number, unique for the life of the process; once in each call.
    pub seq: u64,
    /// All tokens of the sequence that are known, prompt and output.
    pub tokens: &'a [TokenId],
    /// Tokens to guess at most.
    pub max: u32,
}

/// Guesses the tokens that follow.
pub trait Drafter: Send {
    /// A name for logs and metrics.
    fn name(&self) -> &str;

    /// Writes one draft for each ask into `out`, whose old contents are lost.
    /// A draft holds at most `max` tokens and may be empty. Blocks while it works.
    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<TokenId>>);

    /// Drops what is kept for a sequence that will not ask again.
    fn forget(&mut self, seq: u64);
}

/// Makes `out` hold `len` empty drafts, keeping their memory.
fn clear_drafts(out: &mut Vec<Vec<TokenId>>, len: usize) {
    out.iter_mut().for_each(Vec::clear);
    out.resize_with(len, Vec::new);
}
