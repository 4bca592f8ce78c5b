//! What can become of a call, and how often it did.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Histogram, counter, histogram};

use crate::latency::Latency;
use crate::lock;

/// A question that the node asks policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Whom to run in the next step.
    Scheduler,
    /// How large steps may be.
    Batcher,
    /// Whether to take a request.
    Admission,
    /// How many workers to have.
    Autoscaler,
    /// What became of requests; no question, but counted like one.
    Feedback,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 5] =
        [Hook::Scheduler, Hook::Batcher, Hook::Admission, Hook::Autoscaler, Hook::Feedback];

    /// The name of its interface in the contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Scheduler => "scheduler",
            Hook::Batcher => "batcher",
            Hook::Admission => "admission",
            Hook::Autoscaler => "autoscaler",
            Hook::Feedback => "feedback",
        }
    }
}

/// Some of the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HookSet(u8);

impl HookSet {
    /// Every hook.
    pub const ALL: HookSet = HookSet(0b1_1111);
    /// No hook.
    pub const NONE: HookSet = HookSet(0);

    /// These and one more.
    #[must_use]
    pub const fn with(self, hook: Hook) -> HookSet {
        HookSet(self.0 | 1 << hook as u8)
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: HookSet) -> HookSet {
        HookSet(self.0 & other.0)
    }

    /// Whether `hook` is one of them.
    #[must_use]
    pub const fn has(self, hook: Hook) -> bool {
        self.0 & 1 << hook as u8 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Hook> {
        Hook::ALL.into_iter().filter(move |&hook| self.has(hook))
    }
}

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is in force.
    Used,
    /// It has no opinion.
    None,
    /// It answered with an error of its own.
    Error,
    /// It broke: unreachable code, memory, stack, or an answer that cannot be read.
    Trapped,
    /// It missed its deadline.
    Late,
    /// The answer breaks a rule.
    Invalid,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 6] =
        [Verdict::Used, Verdict::None, Verdict::Error, Verdict::Trapped, Verdict::Late, Verdict::Invalid];

    /// As in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Used => "used",
            Verdict::None => "none",
            Verdict::Error => "error",
            Verdict::Trapped => "trapped",
            Verdict::Late => "late",
            Verdict::Invalid => "invalid",
        }
    }

    /// Whether the policy is to blame.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(self, Verdict::Used | Verdict::None)
    }
}

/// Why a call did not give an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", verdict.name())]
pub struct Fault {
    /// Never `Used` or `None`.
    pub verdict: Verdict,
    /// For people; cut to [`Fault::MAX_REASON`] bytes.
    pub reason: String,
}

impl Fault {
    /// Longest reason that is kept.
    pub const MAX_REASON: usize = 512;

    pub(crate) fn new(verdict: Verdict, mut reason: String) -> Fault {
        cut(&mut reason, Fault::MAX_REASON);
        Fault { verdict, reason }
    }
}

/// Cuts a guest's text at the last character that fits.
pub(crate) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

/// A fault that is remembered for operators.
#[derive(Debug, Clone)]
pub(crate) struct FaultNote {
    pub(crate) at: SystemTime,
    pub(crate) hook: Option<Hook>,
    pub(crate) fault: Fault,
}

/// Faults that are remembered for each version.
const KEPT_FAULTS: usize = 8;

/// The last faults of one version.
#[derive(Debug, Default)]
pub(crate) struct FaultLog(Mutex<VecDeque<FaultNote>>);

impl FaultLog {
    pub(crate) fn note(&self, hook: Option<Hook>, fault: Fault) {
        let mut notes = lock(&self.0);
        if notes.len() == KEPT_FAULTS {
            notes.pop_front();
        }
        notes.push_back(FaultNote { at: SystemTime::now(), hook, fault });
    }

    pub(crate) fn list(&self) -> Vec<FaultNote> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// Counts of one hook of one version; read without stopping whoever counts.
pub(crate) struct HookStats {
    verdicts: [AtomicU64; 6],
    counters: [Counter; 6],
    /// Steps or requests for which it was not asked.
    pub(crate) skipped: AtomicU64,
    /// Calls whose answer was thrown away.
    pub(crate) rehearsed: AtomicU64,
    /// Of all calls, where the engine counts them.
    pub(crate) instructions: AtomicU64,
    pub(crate) latency: Latency,
    duration: Histogram,
}

impl HookStats {
    pub(crate) fn new(policy: &str, hook: Hook) -> HookStats {
        let counter = |verdict: Verdict| counter!("quern_policy_calls_total", "policy" => policy.to_owned(), "hook" => hook.name(), "verdict" => verdict.name());
        HookStats {
            verdicts: Default::default(),
            counters: Verdict::ALL.map(counter),
            skipped: AtomicU64::new(0),
            rehearsed: AtomicU64::new(0),
            instructions: AtomicU64::new(0),
            latency: Latency::default(),
            duration: histogram!("quern_policy_call_duration_seconds", "policy" => policy.to_owned(), "hook" => hook.name()),
        }
    }

    pub(crate) fn took(&self, time: Duration) {
        self.latency.record(time);
        self.duration.record(time.as_secs_f64());
    }

    pub(crate) fn count(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].fetch_add(1, Ordering::Relaxed);
        self.counters[verdict as usize].increment(1);
    }

    pub(crate) fn verdicts(&self) -> [(Verdict, u64); 6] {
        Verdict::ALL.map(|verdict| (verdict, self.verdicts[verdict as usize].load(Ordering::Relaxed)))
    }
}
