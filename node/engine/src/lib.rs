//! The contract between a scheduler and whatever computes logits.
//!
//! An engine is a batch calculator: it takes ragged batches of rows, keeps the
//! key-value state of numbered sequences, and gives back logits, hidden states
//! or, where it can, tokens drawn from them. It knows no requests, no queues, no
//! text and no policies. Everything clever (continuous batching, prefix sharing,
//! speculation) is built once, on these calls, by the scheduler.
//!
//! [`fake::FakeEngine`] is the engine for tests; the real ones live in crates
//! of their own. [`suite`] holds the checks that every engine must pass, [`draw`]
//! what a draw is, [`saved`] what states begin with that leave an engine.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod draw;
pub mod fake;
pub mod saved;
pub mod suite;

pub use draw::Draw;

/// A token's number in the model's vocabulary.
pub type TokenId = u32;

/// Names one sequence's state in an engine: `0..max_sequences`. The caller
/// chooses the numbers; the engine keeps no list of which are in use.
pub type SeqId = u32;

/// Names an adapter that was loaded with [`Engine::load_adapter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct AdapterId(pub u32);

impl AdapterId {
    /// The base model without an adapter.
    pub const BASE: AdapterId = AdapterId(0);
}

/// What a row gives back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Output {
    /// Nothing: the row only extends the sequence's state.
    #[default]
    None,
    /// The logits over the vocabulary.
    Logits,
    /// The last hidden state, after the final norm.
    Hidden,
    /// The token that is drawn from the logits, for the position behind the row's; for engines
    /// with [`Capabilities::samples`].
    Token(Draw),
}

/// One token of one sequence in a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The sequence that the token extends.
    pub seq: SeqId,
    /// The token's position in its sequence, from 0. A sequence's rows in one
    /// batch are consecutive and start at its present length.
    pub pos: u32,
    /// The token.
    pub token: TokenId,
    /// The adapter to compute this row with.
    pub adapter: AdapterId,
    /// What this row gives back.
    pub output: Output,
}

/// What an engine can do. Constant for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Length of a logits row.
    pub vocab_size: usize,
    /// Length of a hidden-state row.
    pub hidden_size: usize,
    /// Tokens of key-value state over all sequences; shared tokens count once.
    pub kv_capacity: usize,
    /// Sequences at once; valid [`SeqId`]s are below it.
    pub max_sequences: usize,
    /// Longest sequence, in tokens.
    pub max_sequence_len: usize,
    /// Rows in one step.
    pub max_rows: usize,
    /// Rows with an output in one step.
    pub max_outputs: usize,
    /// Whether one batch may hold rows of different adapters.
    pub mixes_adapters: bool,
    /// Whether one batch may hold both [`Output::Hidden`] and other outputs.
    pub mixes_outputs: bool,
    /// Whether rows may ask for an [`Output::Token`], whatever its [`Draw`]. Beside rows that ask
    /// for logits they may stand in any case.
    pub samples: bool,
    /// Rows that attention takes together. Where sequences are long, a row of a
    /// step of so many rows, or a multiple, costs less than one of fewer; 1
    /// where it makes no difference.
    pub row_tile: usize,
    /// Whether every row's attention walks past the state of sequences that take no
    /// part in its step, so that tokens which only lie there make steps slower.
    pub walks_idle_state: bool,
}

/// What a step gave back, borrowed from the engine's own buffers.
///
/// `logits` is `[num_logits, vocab]` and `hidden` is `[num_hidden, hidden]`,
/// f32, row-major; `tokens` is `[num_tokens]`. Each is in the order in which the batch asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOutput<'a> {
    /// `[num_logits, vocab]`.
    pub logits: &'a [f32],
    /// `[num_hidden, hidden]`.
    pub hidden: &'a [f32],
    /// `[num_tokens]`; `None` where the row has no logit above negative infinity that its mask
    /// allows.
    pub tokens: &'a [Option<TokenId>],
}

/// Why an engine could not do as told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A batch breaks the contract; the engine's state is unchanged.
    #[error("batch row {row}: {why}")]
    InvalidBatch {
        /// Index of the first bad row.
        row: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The state needs more room than there is; the engine's state is unchanged.
    #[error("no room for {wanted} more tokens of key-value state")]
    OutOfKv {
        /// Rows in the refused batch.
        wanted: usize,
    },
    /// The engine does not offer this call.
    #[error("this engine cannot {0}")]
    Unsupported(&'static str),
    /// An adapter could not be loaded.
    #[error("adapter {path}: {why}")]
    Adapter {
        /// The file that was refused.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The computation failed. Sequences in the batch are in an unknown state
    /// and must be truncated to 0; the engine itself may be used again.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// What the engine computes on is gone, and all state with it. Every later
    /// call ends the same way or does nothing: make a new engine.
    #[error("the engine is lost: {0}")]
    Lost(String),
}

/// Computes batches and keeps the key-value state of sequences.
///
/// One thread owns an engine; every call blocks until its work is done.
pub trait Engine: Send {
    /// What this engine can do.
    fn capabilities(&self) -> &Capabilities;

    /// Computes one ragged batch and extends each row's sequence by its token.
    ///
    /// # Errors
    /// See [`EngineError`]; only [`EngineError::Failed`] and [`EngineError::Lost`]
    /// leave sequences changed.
    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError>;

    /// As [`Engine::step`], with the masks that rows' [`Draw`]s name: `[num_masks, mask_words]`,
    /// see [`draw::mask_words`]. Engines with [`Capabilities::samples`] offer it.
    ///
    /// # Errors
    /// As [`Engine::step`]; [`EngineError::Unsupported`] where the engine knows no masks.
    fn step_masked(&mut self, rows: &[Row], masks: &[u32]) -> Result<StepOutput<'_>, EngineError> {
        if masks.is_empty() { self.step(rows) } else { Err(EngineError::Unsupported("draw under a mask")) }
    }

    /// Makes `to`, which must be empty, share the first `len` tokens of `from`.
    ///
    /// # Errors
    /// [`EngineError::Failed`] when the state cannot be shared.
    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError>;

    /// Forgets all of `seq` past its first `len` tokens; 0 drops the sequence.
    ///
    /// # Errors
    /// [`EngineError::Failed`] when the state cannot be cut there.
    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError>;

    /// Copies a sequence's state to host memory, for [`Engine::restore`].
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] where the state cannot leave the engine.
    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError>;

    /// Puts a saved state into `seq`, which must be empty.
    ///
    /// # Errors
    /// [`EngineError::OutOfKv`] when there is no room, [`EngineError::Failed`]
    /// when the bytes are not a state of this engine.
    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError>;

    /// Loads an adapter file under `id`, which is not [`AdapterId::BASE`].
    ///
    /// # Errors
    /// [`EngineError::Adapter`] with the reason; nothing is half loaded.
    fn load_adapter(&mut self, id: AdapterId, path: &std::path::Path) -> Result<(), EngineError>;

    /// Forgets an adapter. No sequence may use it afterwards.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when no such adapter is loaded.
    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError>;
}

/// Checks a batch against the contract, as far as it can be checked without
/// knowing sequences' lengths. Engines call it first; those that do not sample have no `masks`.
///
/// # Errors
/// [`EngineError::InvalidBatch`] naming the first bad row.
pub fn check_batch(caps: &Capabilities, rows: &[Row], masks: &[u32]) -> Result<(), EngineError> {
    let bad = |row, why| Err(EngineError::InvalidBatch { row, why });
    if rows.is_empty() {
        return bad(0, "the batch is empty");
    }
    if rows.len() > caps.max_rows {
        return bad(caps.max_rows, "more rows than the engine takes in one step");
    }
    let mask_words = draw::mask_words(caps.vocab_size);
    if !masks.len().is_multiple_of(mask_words) {
        return bad(0, "the masks are not a bit for each token of the vocabulary");
    }
    let num_masks = masks.len() / mask_words;
    if num_masks > caps.max_outputs {
        return bad(0, "more masks than the engine gives outputs in one step");
    }
    let (mut num_others, mut num_hidden) = (0, 0);
    for (idx, row) in rows.iter().enumerate() {
        match row.output {
            Output::None => {}
            Output::Logits => num_others += 1,
            Output::Hidden => num_hidden += 1,
            Output::Token(_) if !caps.samples => return bad(idx, "this engine does not sample"),
            Output::Token(Draw { mask: Some(mask), .. }) if mask as usize >= num_masks => {
                return bad(idx, "there is no such mask");
            }
            Output::Token(_) => num_others += 1,
        }
        if row.seq as usize >= caps.max_sequences {
            return bad(idx, "no such sequence number");
        }
        if row.token as usize >= caps.vocab_size {
            return bad(idx, "token is not in the vocabulary");
        }
        if row.pos as usize >= caps.max_sequence_len {
            return bad(idx, "position is past the longest sequence");
        }
        if num_others + num_hidden > caps.max_outputs {
            return bad(idx, "more outputs than the engine gives in one step");
        }
        if !caps.mixes_adapters && row.adapter != rows[0].adapter {
            return bad(idx, "this engine serves one adapter a step");
        }
        if !caps.mixes_outputs && num_others > 0 && num_hidden > 0 {
            return bad(idx, "this engine gives hidden states or other outputs in one step, not both");
        }
    }
    Ok(())
}
