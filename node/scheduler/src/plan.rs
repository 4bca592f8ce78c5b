//! What a planner sees and what it decides.
//!
//! A plan is the only place that decides whom to run. It is pure: a snapshot
//! in columns goes in, row numbers come out, and the step loop checks them
//! before it believes them. The columns are those of the policy contract, so
//! that a sandboxed policy can take the built-in one's place.

use quern_engine::AdapterId;

use crate::request::NameIx;

/// Stands for "no deadline" in a `slack_us` column.
pub const NO_DEADLINE: i32 = i32::MAX;

/// The step to be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepInfo {
    /// Counts steps from 0.
    pub seq: u64,
    /// Microseconds since the scheduler started; constant during one plan.
    pub now_us: u64,
    /// Rows that fit in this step: prefill tokens and decode tokens together.
    pub token_budget: u32,
    /// Sequences that may run at once.
    pub max_running: u32,
    /// Tokens of key-value state that are free or can be freed from the cache.
    pub kv_free: u32,
    /// The granularity in which state is taken, in tokens.
    pub kv_page: u32,
    /// How long the last step took.
    pub last_step_us: u32,
    /// Learned: what a step takes however small; 0 before the first step.
    pub fixed_us: u32,
    /// Learned: what each row takes on top; at least 1 after the first step.
    pub row_us: u32,
    /// Learned: what each output takes beyond its row. A decoding sequence has
    /// one, a chunk of prefill only where it ends a prompt.
    pub output_us: u32,
    /// How long a step should take at most while sequences decode; 0 is no limit.
    pub target_step_us: u32,
    /// Rows that attention over long sequences takes together: steps of a
    /// multiple cost less a row; 1 where it makes no difference.
    pub row_tile: u32,
    /// Whether one batch may mix adapters; if not, each step serves one.
    pub mixes_adapters: bool,
    /// The adapter of the step before.
    pub last_adapter: AdapterId,
}

/// Sequences that have not started, or were preempted, in arrival order.
/// All columns have the same length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Sequence numbers, unique for the life of the process.
    pub id: Vec<u64>,
    /// Time since arrival.
    pub age_us: Vec<u32>,
    /// Tokens to compute before the next one can be drawn, cached ones included.
    pub prompt_left: Vec<u32>,
    /// Of these, tokens that the prefix cache holds now.
    pub cached: Vec<u32>,
    /// Of these, tokens that the cache will hold once a running sequence has
    /// computed them; never less than `cached`.
    pub pending: Vec<u32>,
    /// Tokens that starting it takes from `kv_free`: all of `prompt_left` but
    /// what running sequences hold already. Cached tokens that only the cache
    /// holds count, for they can no longer be freed then.
    pub kv_need: Vec<u32>,
    /// New tokens at most.
    pub max_new: Vec<u32>,
    /// Time to the deadline, negative once missed, or [`NO_DEADLINE`].
    pub slack_us: Vec<i32>,
    /// Larger is more urgent.
    pub priority: Vec<u8>,
    /// Who asks.
    pub tenant: Vec<NameIx>,
    /// Computed with.
    pub adapter: Vec<AdapterId>,
    /// Where the adapter is: 0 disk, 1 host memory, 2 device.
    pub adapter_tier: Vec<u8>,
}

/// Sequences that hold key-value state. All columns have the same length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// Sequence numbers, unique for the life of the process.
    pub id: Vec<u64>,
    /// Tokens to compute before the next one can be drawn; 1 while decoding.
    pub prompt_left: Vec<u32>,
    /// New tokens so far.
    pub generated: Vec<u32>,
    /// New tokens at most.
    pub max_new: Vec<u32>,
    /// Tokens of key-value state that it holds, shared ones included.
    pub kv: Vec<u32>,
    /// Time to the deadline, negative once missed, or [`NO_DEADLINE`].
    pub slack_us: Vec<i32>,
    /// Larger is more urgent.
    pub priority: Vec<u8>,
    /// Who asks.
    pub tenant: Vec<NameIx>,
    /// Computed with.
    pub adapter: Vec<AdapterId>,
}

/// All that a planner sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The step to be planned.
    pub step: StepInfo,
    /// Those who wait.
    pub waiting: Waiting,
    /// Those who run.
    pub running: Running,
}

/// Row numbers, not ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rows of `waiting` to start, best first.
    pub admit: Vec<u32>,
    /// Prefill tokens for each admitted row; empty leaves it to the host.
    pub admit_chunk: Vec<u32>,
    /// Rows of `running` to pause; their state is given back.
    pub preempt: Vec<u32>,
    /// Tokens for each row of `running` in this step, 0 to leave one out;
    /// empty leaves it to the host.
    pub running_chunk: Vec<u32>,
    /// The adapter to serve where the engine cannot mix them; `None` leaves it
    /// to the host.
    pub adapter: Option<AdapterId>,
    /// Steps for which the step loop may repeat this plan's choices without asking,
    /// as long as no sequence comes, goes or starts to decode.
    pub hold_steps: u32,
}

/// Decides each step.
pub trait Planner: Send {
    /// A name for logs and metrics.
    fn name(&self) -> &str;

    /// Plans one step, or has no opinion.
    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan>;

    /// Learns what became of the plan that it just gave: in force, or refused as
    /// a whole. Called once after each plan, before the next.
    fn judged(&mut self, judgement: Result<(), PlanError>) {
        // Most planners know what they do.
        let _ = judgement;
    }

    /// Whether what it planned last is still its word: a plan that may be held is
    /// not repeated once its author was replaced.
    fn stands(&self) -> bool {
        true
    }
}

/// What is wrong with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A row number past its table.
    #[error("row {row} of {table} does not exist")]
    NoSuchRow {
        /// `waiting` or `running`.
        table: &'static str,
        /// The row.
        row: u32,
    },
    /// A row named twice.
    #[error("row {row} of {table} is named twice")]
    Duplicate {
        /// `waiting` or `running`.
        table: &'static str,
        /// The row.
        row: u32,
    },
    /// A chunk column that is neither empty nor as long as what it belongs to.
    #[error("{column} has {len} entries for {rows} rows")]
    WrongLength {
        /// The column.
        column: &'static str,
        /// Its length.
        len: usize,
        /// The rows it belongs to.
        rows: usize,
    },
    /// A row that is to run and to pause at once.
    #[error("row {row} of running is both run and paused")]
    RunAndPaused {
        /// The row.
        row: u32,
    },
    /// Rows of two adapters in a step that cannot mix them.
    #[error("adapters {} and {} in a step that cannot mix them", one.0, other.0)]
    MixedAdapters {
        /// One of them.
        one: AdapterId,
        /// Another.
        other: AdapterId,
    },
    /// More tokens than fit in the step.
    #[error("{tokens} tokens in a step of {budget}")]
    OverBudget {
        /// Tokens that the plan asks for.
        tokens: u64,
        /// Tokens that fit.
        budget: u32,
    },
    /// More sequences than may run.
    #[error("{sequences} sequences where {max} may run")]
    TooManyRunning {
        /// Sequences that would run.
        sequences: usize,
        /// Those that may.
        max: u32,
    },
    /// More tokens than key-value state has room for.
    #[error("{tokens} tokens of key-value state where {free} are free")]
    OverKv {
        /// Tokens that the plan would take.
        tokens: u64,
        /// Tokens that are free.
        free: u64,
    },
}

/// Checks a plan against its snapshot. Every number in a plan is an allegation
/// until this has passed.
///
/// # Errors
/// [`PlanError`] naming the first thing that is wrong.
pub fn check(snapshot: &Snapshot, plan: &Plan) -> Result<(), PlanError> {
    let (num_waiting, num_running) = (snapshot.waiting.id.len(), snapshot.running.id.len());
    check_rows("waiting", &plan.admit, num_waiting)?;
    check_rows("running", &plan.preempt, num_running)?;
    check_len("admit_chunk", &plan.admit_chunk, plan.admit.len())?;
    check_len("running_chunk", &plan.running_chunk, num_running)?;

    let runs = |row: u32| plan.running_chunk.get(row as usize).is_some_and(|&chunk| chunk > 0);
    if let Some(&row) = plan.preempt.iter().find(|&&row| runs(row)) {
        return Err(PlanError::RunAndPaused { row });
    }
    check_adapters(snapshot, plan)?;

    let step = &snapshot.step;
    let chunks = plan.admit_chunk.iter().chain(&plan.running_chunk);
    let tokens: u64 = chunks.map(|&n| u64::from(n)).sum();
    if tokens > u64::from(step.token_budget) {
        return Err(PlanError::OverBudget { tokens, budget: step.token_budget });
    }
    let sequences = num_running - plan.preempt.len() + plan.admit.len();
    if !plan.admit.is_empty() && sequences > step.max_running as usize {
        return Err(PlanError::TooManyRunning { sequences, max: step.max_running });
    }
    // Shared tokens that a preempted row holds may not come free, so this is an
    // upper bound; the loop admits no more than there is room for in the end.
    let freed: u64 = plan.preempt.iter().map(|&row| u64::from(snapshot.running.kv[row as usize])).sum();
    let free = u64::from(step.kv_free) + freed;
    if tokens > free {
        return Err(PlanError::OverKv { tokens, free });
    }
    Ok(())
}

fn check_rows(table: &'static str, rows: &[u32], len: usize) -> Result<(), PlanError> {
    let mut seen = vec![false; len];
    for &row in rows {
        match seen.get_mut(row as usize) {
            None => return Err(PlanError::NoSuchRow { table, row }),
            Some(true) => return Err(PlanError::Duplicate { table, row }),
            Some(mark) => *mark = true,
        }
    }
    Ok(())
}

/// Rows whose chunk is left to the host are left out where they do not fit.
fn check_adapters(snapshot: &Snapshot, plan: &Plan) -> Result<(), PlanError> {
    if snapshot.step.mixes_adapters {
        return Ok(());
    }
    let admitted = plan.admit.iter().map(|&row| snapshot.waiting.adapter[row as usize]);
    let admitted = admitted.zip(&plan.admit_chunk);
    let run = snapshot.running.adapter.iter().copied().zip(&plan.running_chunk);
    let mut adapters = admitted.chain(run).filter(|&(_, &chunk)| chunk > 0).map(|(adapter, _)| adapter);
    let Some(one) = plan.adapter.or_else(|| adapters.next()) else { return Ok(()) };
    match adapters.find(|&other| other != one) {
        Some(other) => Err(PlanError::MixedAdapters { one, other }),
        None => Ok(()),
    }
}

fn check_len(column: &'static str, values: &[u32], rows: usize) -> Result<(), PlanError> {
    if values.is_empty() || values.len() == rows {
        return Ok(());
    }
    Err(PlanError::WrongLength { column, len: values.len(), rows })
}
