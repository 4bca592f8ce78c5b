//! What becomes of sequences, for whoever learns from it.
//!
//! The step thread writes one row as a sequence leaves, into a bounded channel;
//! where the other side does not keep up, rows are dropped and counted.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use metrics::Counter;

use crate::request::NameIx;

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has all that was asked for.
    Finished,
    /// Nobody listened any more.
    Cancelled,
    /// With an error.
    Failed,
    /// Its deadline passed before it started.
    Expired,
}

/// A sequence that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The number by which planners knew it.
    pub id: u64,
    /// Who asked.
    pub tenant: NameIx,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens that were drawn.
    pub new_tokens: u32,
    /// Time from arrival to the start, or to the end without one.
    pub queued: Duration,
    /// Time from arrival to the first token; zero where none came.
    pub first_token: Duration,
}

/// The step thread's end.
#[derive(Default)]
pub(crate) struct Completions {
    to: Option<SyncSender<Completion>>,
    dropped: Option<Counter>,
}

impl Completions {
    pub(crate) fn to(to: SyncSender<Completion>) -> Completions {
        let dropped = metrics::counter!("quern_feedback_dropped_total");
        Completions { to: Some(to), dropped: Some(dropped) }
    }

    /// Whether anybody wants to know.
    pub(crate) fn are_wanted(&self) -> bool {
        self.to.is_some()
    }

    pub(crate) fn tell(&self, completion: Completion) {
        let Some(to) = &self.to else { return };
        if to.try_send(completion).is_err()
            && let Some(dropped) = &self.dropped
        {
            dropped.increment(1);
        }
    }
}
