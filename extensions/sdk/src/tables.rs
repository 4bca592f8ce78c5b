//! What a policy sees and says, as plain columns.
//!
//! The same records as in `extensions/wit/policy.wit`, under the same names. A
//! table is a struct of columns of equal length; a row number means the same in
//! each. Units stand in the names.

/// Stands for "no deadline" in a `slack_us` column.
pub const NO_DEADLINE: i32 = i32::MAX;

/// The node's load, taken just before the call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Microseconds since the node started.
    pub now_us: u64,
    /// Sequences that wait to start.
    pub waiting: u32,
    /// Prompt tokens among those that wait.
    pub waiting_tokens: u64,
    /// Sequences that hold key-value state.
    pub running: u32,
    /// Tokens of key-value state that are free or can be freed.
    pub kv_free: u32,
    /// Tokens of key-value state altogether.
    pub kv_total: u32,
    /// How long recent steps took, at the median.
    pub step_p50_us: u32,
    /// How long recent steps took, at the 99th percentile.
    pub step_p99_us: u32,
    /// Recent requests' time to first token, at the 95th percentile.
    pub ttft_p95_ms: u32,
    /// Recent requests' time between two tokens, at the 95th percentile.
    pub tpot_p95_us: u32,
    /// Tokens generated in the last second.
    pub tokens_per_second: u32,
    /// Rows in a step at most, as in force.
    pub token_budget: u32,
    /// Sequences that may run at once, as in force.
    pub max_running: u32,
    /// How long a step may wait for company, as in force.
    pub wait_window_us: u32,
}

/// The step to be planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Counts steps from 0.
    pub seq: u64,
    /// Microseconds since the scheduler started.
    pub now_us: u64,
    /// Rows that fit in this step: prefill and decode together.
    pub token_budget: u32,
    /// Sequences that may run at once.
    pub max_running: u32,
    /// Tokens of key-value state that are free or can be freed.
    pub kv_free: u32,
    /// The granularity in which state is taken, in tokens.
    pub kv_page: u32,
    /// How long the last step took.
    pub last_step_us: u32,
    /// Learned: what a step takes however small; 0 before the first step.
    pub fixed_us: u32,
    /// Learned: what each row takes on top.
    pub row_us: u32,
    /// Learned: what each output takes beyond its row. A decoding sequence is one
    /// row with one output; a chunk of prefill has an output where it ends a prompt.
    pub output_us: u32,
    /// How long a step should take at most while sequences decode; 0 is no limit.
    pub target_step_us: u32,
    /// Rows that attention over long sequences takes together: steps of a multiple
    /// cost less a row; 1 where it makes no difference.
    pub row_tile: u32,
    /// Whether one step may mix adapters. If not, the plan names one.
    pub mixes_adapters: bool,
    /// The adapter of the step before.
    pub last_adapter: u32,
}

/// Sequences that have not started or were paused, in order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// A sequence's number.
    pub id: Vec<u64>,
    /// Time since arrival.
    pub age_us: Vec<u32>,
    /// Tokens to compute before the next one can be drawn, cached ones included.
    pub prompt_left: Vec<u32>,
    /// Of these, tokens that the prefix cache holds.
    pub cached: Vec<u32>,
    /// Of these, tokens that it will hold once running sequences have computed
    /// them; at least `cached`.
    pub pending: Vec<u32>,
    /// Tokens that a start takes from `kv_free`.
    pub kv_need: Vec<u32>,
    /// New tokens at most.
    pub max_new: Vec<u32>,
    /// Time to the deadline, negative once missed, or [`NO_DEADLINE`].
    pub slack_us: Vec<i32>,
    /// Larger is more urgent.
    pub priority: Vec<u8>,
    /// Who asks.
    pub tenant: Vec<u32>,
    /// Computed with.
    pub adapter: Vec<u32>,
    /// Where the adapter lies: 0 disk, 1 host memory, 2 device.
    pub adapter_tier: Vec<u8>,
}

impl Waiting {
    /// Rows in the table.
    pub fn len(&self) -> usize {
        self.id.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    /// Tokens of a row's prompt that have to be computed: those that the prefix
    /// cache does not hold.
    pub fn work(&self, row: usize) -> u32 {
        self.prompt_left[row].saturating_sub(self.cached[row])
    }
}

/// Sequences that hold key-value state, in the order of their last start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// A sequence's number.
    pub id: Vec<u64>,
    /// Tokens to compute before the next one can be drawn; 1 while it decodes.
    pub prompt_left: Vec<u32>,
    /// Tokens drawn so far.
    pub generated: Vec<u32>,
    /// New tokens at most.
    pub max_new: Vec<u32>,
    /// Tokens of key-value state that it holds.
    pub kv: Vec<u32>,
    /// Time to the deadline, negative once missed, or [`NO_DEADLINE`].
    pub slack_us: Vec<i32>,
    /// Larger is more urgent.
    pub priority: Vec<u8>,
    /// Who asks.
    pub tenant: Vec<u32>,
    /// Computed with.
    pub adapter: Vec<u32>,
}

impl Running {
    /// Rows in the table.
    pub fn len(&self) -> usize {
        self.id.len()
    }

    /// Whether nobody runs.
    pub fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    /// Whether a row's prompt is done, so that one token is its next step.
    pub fn decodes(&self, row: usize) -> bool {
        self.prompt_left[row] == 1
    }
}

/// What to do in a step, by row numbers.
/// [`PlanBuilder`](crate::plan::PlanBuilder) makes plans that the node accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rows of [`Waiting`] to start, best first.
    pub admit: Vec<u32>,
    /// Tokens to compute for each of `admit`; empty leaves it to the node.
    pub admit_chunk: Vec<u32>,
    /// Rows of [`Running`] to pause; their key-value state is given back.
    pub preempt: Vec<u32>,
    /// Tokens to compute for each row of [`Running`], 0 to leave one out; empty
    /// leaves it to the node.
    pub running_chunk: Vec<u32>,
    /// The adapter to serve where a step cannot mix them; none leaves it to the node.
    pub adapter: Option<u32>,
    /// Steps for which the node may repeat this plan without asking.
    pub hold_steps: u32,
}

/// How large steps may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a step.
    pub token_budget: u32,
    /// Sequences that may run at once.
    pub max_running: u32,
    /// How long a step may wait for company.
    pub wait_window_us: u32,
    /// How long a step should take at most while sequences decode; 0 is no limit.
    pub target_step_us: u32,
    /// Until when the node need not ask again.
    pub hold_ms: u32,
}

/// A request that arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub id: u64,
    /// Who asks; empty if unknown.
    pub tenant: String,
    /// The model that the request names.
    pub model: String,
    /// The adapter that it names.
    pub adapter: Option<String>,
    /// An estimate, since prompts are tokenized after admission.
    pub prompt_tokens: u32,
    /// New tokens at most.
    pub max_new: u32,
    /// Larger is more urgent.
    pub priority: u8,
    /// From arrival.
    pub deadline_ms: Option<u32>,
    /// Headers that the operator allows policies to see.
    pub attributes: Vec<(String, String)>,
}

/// The request as it will be served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Larger is more urgent.
    pub priority: u8,
    /// New tokens at most.
    pub max_new: u32,
    /// Computed with.
    pub adapter: Option<String>,
}

impl Grant {
    /// The request as it was asked for.
    pub fn unchanged(request: &Request) -> Grant {
        Grant { priority: request.priority, max_new: request.max_new, adapter: request.adapter.clone() }
    }
}

/// Why a request is refused. The first two become status 429, the others 403.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node has too much to do.
    Overloaded,
    /// The tenant has used up what it may use.
    Quota,
    /// The tenant may not ask this.
    Forbidden,
    /// The node cannot serve this.
    Unservable,
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Becomes `Retry-After`.
    pub retry_after_ms: Option<u32>,
    /// Shown to the client.
    pub message: String,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is served like this.
    Accept(Grant),
    /// It is refused.
    Reject(Refusal),
}

/// What happened lately: one row for each interval, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// How long an interval is.
    pub interval_ms: u32,
    /// Requests that arrived.
    pub arrivals: Vec<u32>,
    /// Requests that were refused.
    pub rejected: Vec<u32>,
    /// Sequences that waited at the interval's end.
    pub waiting: Vec<u32>,
    /// Sequences that ran at the interval's end.
    pub running: Vec<u32>,
    /// Share of the interval that workers computed, of all ready workers' time.
    pub busy_permille: Vec<u32>,
    /// Share of key-value state in use by sequences.
    pub kv_used_permille: Vec<u32>,
    /// Time to first token at the 95th percentile.
    pub ttft_p95_ms: Vec<u32>,
    /// Time between two tokens at the 95th percentile.
    pub tpot_p95_us: Vec<u32>,
    /// Draw of the accelerators; 0 where it cannot be read.
    pub power_mw: Vec<u32>,
}

/// Workers by state, their bounds, and how long a start takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Workers that serve.
    pub ready: u32,
    /// Workers that load.
    pub starting: u32,
    /// Workers that finish what they have and then stop.
    pub draining: u32,
    /// Fewest workers allowed.
    pub min: u32,
    /// Most workers allowed.
    pub max: u32,
    /// How long a start takes.
    pub start_ms: u32,
}

/// How many workers are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Brought between `min` and `max` by the node.
    pub desired: u32,
    /// Shown to operators.
    pub reason: String,
    /// Until when the node need not ask again.
    pub hold_ms: u32,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Finished,
    /// The client went away.
    Cancelled,
    /// The node failed it.
    Failed,
    /// It missed its deadline.
    Expired,
}

/// Requests that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completed {
    /// A request's number.
    pub id: Vec<u64>,
    /// Who asked.
    pub tenant: Vec<u32>,
    /// How it ended.
    pub outcome: Vec<Outcome>,
    /// Tokens of its prompt.
    pub prompt_tokens: Vec<u32>,
    /// Tokens that were generated.
    pub new_tokens: Vec<u32>,
    /// From arrival to its start.
    pub queue_us: Vec<u32>,
    /// From arrival to its first token.
    pub ttft_us: Vec<u32>,
}
