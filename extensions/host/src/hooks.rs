//! The questions other than the step's, in types of this crate, so that the
//! node needs to know nothing of WebAssembly.

use std::time::Duration;

use crate::bindings::exports::quern::policy::{admission, autoscaler, batcher, feedback};
use crate::bindings::quern::policy::types;
use crate::verdict::cut;

/// Longest text from a guest that operators or clients see, in bytes.
const MAX_TEXT: usize = 512;

/// The node's load, taken just before a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeLoad {
    /// Microseconds since the node started.
    pub now_us: u64,
    /// Sequences that wait to start.
    pub waiting: u32,
    /// Prompt tokens among them.
    pub waiting_tokens: u64,
    /// Sequences that hold key-value state.
    pub running: u32,
    /// Tokens of key-value state that are free or can be freed.
    pub kv_free: u32,
    /// Tokens of key-value state altogether.
    pub kv_total: u32,
    /// How long half of the recent steps took at most.
    pub step_p50_us: u32,
    /// How long all but a hundredth of the recent steps took at most.
    pub step_p99_us: u32,
    /// Recent requests' time to first token.
    pub ttft_p95_ms: u32,
    /// Recent requests' time between two tokens.
    pub tpot_p95_us: u32,
    /// Tokens generated in the last second.
    pub tokens_per_second: u32,
    /// Rows in a step, as it is now.
    pub token_budget: u32,
    /// Sequences that may run at once, as it is now.
    pub max_running: u32,
    /// How long a step may wait for company, as it is now.
    pub wait_window_us: u32,
}

impl NodeLoad {
    pub(crate) fn lend(&self) -> types::NodeLoad {
        let &NodeLoad { now_us, waiting, waiting_tokens, running, kv_free, kv_total, .. } = self;
        let &NodeLoad { step_p50_us, step_p99_us, ttft_p95_ms, tpot_p95_us, tokens_per_second, .. } = self;
        let &NodeLoad { token_budget, max_running, wait_window_us, .. } = self;
        types::NodeLoad {
            now_us,
            waiting,
            waiting_tokens,
            running,
            kv_free,
            kv_total,
            step_p50_us,
            step_p99_us,
            ttft_p95_ms,
            tpot_p95_us,
            tokens_per_second,
            token_budget,
            max_running,
            wait_window_us,
        }
    }
}

/// How large steps may be; the node brings it within its own bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows in a step; at least 1.
    pub token_budget: u32,
    /// Sequences that may run at once; at least 1.
    pub max_running: u32,
    /// How long a step may wait for company.
    pub wait_window: Duration,
    /// How long a step should take at most while sequences decode; zero is no limit.
    pub target_step: Duration,
    /// Until when the node need not ask again.
    pub hold: Duration,
}

impl StepLimits {
    /// # Errors
    /// What is wrong with the answer.
    pub(crate) fn take(limits: batcher::Limits) -> Result<StepLimits, String> {
        if limits.token_budget == 0 || limits.max_running == 0 {
            return Err("a step needs a row, and a sequence to run".to_owned());
        }
        Ok(StepLimits {
            token_budget: limits.token_budget,
            max_running: limits.max_running,
            wait_window: Duration::from_micros(limits.wait_window_us.into()),
            target_step: Duration::from_micros(limits.target_step_us.into()),
            hold: Duration::from_millis(limits.hold_ms.into()),
        })
    }
}

/// A request that asks to be served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdmissionRequest {
    /// The request's number.
    pub id: u64,
    /// Who asks; empty if unknown.
    pub tenant: String,
    /// The model that it names.
    pub model: String,
    /// The adapter that it names.
    pub adapter: Option<String>,
    /// An estimate.
    pub prompt_tokens: u32,
    /// New tokens at most.
    pub max_new: u32,
    /// Larger is more urgent.
    pub priority: u8,
    /// Time that it has, in milliseconds.
    pub deadline_ms: Option<u32>,
    /// Headers that the operator allows policies to see.
    pub attributes: Vec<(String, String)>,
}

impl AdmissionRequest {
    pub(crate) fn lend<'a>(&'a self, attributes: &'a [(&'a str, &'a str)]) -> admission::Request<'a> {
        admission::Request {
            id: self.id,
            tenant: &self.tenant,
            model: &self.model,
            adapter: self.adapter.as_deref(),
            prompt_tokens: self.prompt_tokens,
            max_new: self.max_new,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            attributes,
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is served, like this.
    Accept {
        /// Larger is more urgent.
        priority: u8,
        /// New tokens at most; at least 1.
        max_new: u32,
        /// The adapter to serve it with.
        adapter: Option<String>,
    },
    /// It is not served.
    Reject {
        /// Why.
        reason: Reason,
        /// When to try again.
        retry_after: Option<Duration>,
        /// For the client; 512 bytes at most.
        message: String,
    },
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node has too much to do.
    Overloaded,
    /// Whoever asks had enough.
    Quota,
    /// Whoever asks may not.
    Forbidden,
    /// Nobody could serve it.
    Unservable,
}

impl Decision {
    /// # Errors
    /// What is wrong with the answer.
    pub(crate) fn take(decision: admission::Decision) -> Result<Decision, String> {
        Ok(match decision {
            admission::Decision::Accept(grant) if grant.max_new == 0 => {
                return Err("a request for no tokens cannot be accepted".to_owned());
            }
            admission::Decision::Accept(admission::Grant { priority, max_new, adapter }) => {
                Decision::Accept { priority, max_new, adapter }
            }
            admission::Decision::Reject(mut refusal) => {
                cut(&mut refusal.message, MAX_TEXT);
                Decision::Reject {
                    reason: match refusal.reason {
                        admission::Reason::Overloaded => Reason::Overloaded,
                        admission::Reason::Quota => Reason::Quota,
                        admission::Reason::Forbidden => Reason::Forbidden,
                        admission::Reason::Unservable => Reason::Unservable,
                    },
                    retry_after: refusal.retry_after_ms.map(|ms| Duration::from_millis(ms.into())),
                    message: refusal.message,
                }
            }
        })
    }
}

/// What happened lately; one row for each interval, oldest first. All columns
/// have the same length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Length of an interval.
    pub interval_ms: u32,
    /// Requests that arrived.
    pub arrivals: Vec<u32>,
    /// Requests that were refused.
    pub rejected: Vec<u32>,
    /// Sequences that waited at the interval's end.
    pub waiting: Vec<u32>,
    /// Sequences that ran at the interval's end.
    pub running: Vec<u32>,
    /// Thousandths of the ready workers' time in which they computed.
    pub busy_permille: Vec<u32>,
    /// Thousandths of key-value state in use by sequences.
    pub kv_used_permille: Vec<u32>,
    /// Time to first token.
    pub ttft_p95_ms: Vec<u32>,
    /// Time between two tokens.
    pub tpot_p95_us: Vec<u32>,
    /// Draw of the accelerators; 0 where it cannot be read.
    pub power_mw: Vec<u32>,
}

impl Window {
    pub(crate) fn lend(&self) -> autoscaler::Window<'_> {
        autoscaler::Window {
            interval_ms: self.interval_ms,
            arrivals: &self.arrivals,
            rejected: &self.rejected,
            waiting: &self.waiting,
            running: &self.running,
            busy_permille: &self.busy_permille,
            kv_used_permille: &self.kv_used_permille,
            ttft_p95_ms: &self.ttft_p95_ms,
            tpot_p95_us: &self.tpot_p95_us,
            power_mw: &self.power_mw,
        }
    }
}

/// Workers by state, their bounds, and how long a start takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replicas {
    /// Serving.
    pub ready: u32,
    /// Not serving yet.
    pub starting: u32,
    /// Serving what they have, and no more.
    pub draining: u32,
    /// Workers at least.
    pub min: u32,
    /// Workers at most.
    pub max: u32,
    /// How long a start takes.
    pub start_ms: u32,
}

impl Replicas {
    pub(crate) fn lend(self) -> autoscaler::Replicas {
        let Replicas { ready, starting, draining, min, max, start_ms } = self;
        autoscaler::Replicas { ready, starting, draining, min, max, start_ms }
    }
}

/// How many workers there should be; the node brings it within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Workers.
    pub desired: u32,
    /// For operators; 512 bytes at most.
    pub reason: String,
    /// Until when the node need not ask again.
    pub hold: Duration,
}

impl Target {
    pub(crate) fn take(mut target: autoscaler::Target) -> Target {
        cut(&mut target.reason, MAX_TEXT);
        let hold = Duration::from_millis(target.hold_ms.into());
        Target { desired: target.desired, reason: target.reason, hold }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To its end.
    Finished,
    /// Nobody waited for it any more.
    Cancelled,
    /// With an error.
    Failed,
    /// Past its deadline.
    Expired,
}

/// Finished requests. All columns have the same length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Completed {
    /// Their numbers.
    pub id: Vec<u64>,
    /// Who asked.
    pub tenant: Vec<u32>,
    /// How they ended.
    pub outcome: Vec<Outcome>,
    /// Tokens of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Tokens that were drawn.
    pub new_tokens: Vec<u32>,
    /// Time until the start.
    pub queue_us: Vec<u32>,
    /// Time until the first token.
    pub ttft_us: Vec<u32>,
}

impl Completed {
    /// The one column that a guest sees in another form.
    pub(crate) fn outcomes(&self) -> Vec<feedback::Outcome> {
        let each = self.outcome.iter().map(|outcome| match outcome {
            Outcome::Finished => feedback::Outcome::Finished,
            Outcome::Cancelled => feedback::Outcome::Cancelled,
            Outcome::Failed => feedback::Outcome::Failed,
            Outcome::Expired => feedback::Outcome::Expired,
        });
        each.collect()
    }

    pub(crate) fn lend<'a>(&'a self, outcome: &'a [feedback::Outcome]) -> feedback::Completed<'a> {
        feedback::Completed {
            id: &self.id,
            tenant: &self.tenant,
            outcome,
            prompt_tokens: &self.prompt_tokens,
            new_tokens: &self.new_tokens,
            queue_us: &self.queue_us,
            ttft_us: &self.ttft_us,
        }
    }
}
