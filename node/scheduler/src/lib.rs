//! Who runs next, for how many tokens, and what comes out.
//!
//! One thread owns an engine and its scheduler. Requests come in through a
//! [`Handle`], events go out through a [`request::Sink`] for each sequence, and
//! between them one loop runs (`step_loop.rs`): ingest, plan, assemble, step,
//! commit. The scheduler knows token numbers; it must not know text, HTTP or an
//! async runtime.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapters;
mod assemble;
mod batch;
pub mod builtin;
mod commit;
mod completed;
pub mod constraint;
mod cost;
pub mod draft;
mod handle;
pub mod hold;
mod metrics;
mod offloaded;
mod pace;
pub mod plan;
pub mod prefix_cache;
mod queue;
pub mod request;
pub mod sampler;
mod score;
mod sequence;
mod snapshot;
mod step_loop;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quern_engine::{AdapterId, Capabilities, Engine};

use crate::builtin::BuiltinPlanner;
use crate::completed::Completions;
use crate::draft::Drafter;
use crate::plan::Planner;
use crate::request::Failure;
use crate::step_loop::{StepCosts, StepLoop};

pub use adapters::{AdapterFiles, AdapterLoad, AdapterSource, Prepared};
pub use completed::{Completion, Outcome};
pub use handle::{Backlog, Handle, Load, NotTaken};
pub use pace::{Limits, Pace};
pub use queue::{Permit, Queue, Refused};
pub use score::LabelTrie;

/// Tokens of unshared tails that stay on an engine where they make steps slower.
const MAX_UNSHARED: usize = 512;

/// Places in the command channel beyond those that permits can fill.
const SPARE_COMMANDS: usize = 16;

/// What becomes of the state of a paused sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preemption {
    /// It stays in the prefix cache, as that of finished ones does, until the place is
    /// needed, and is computed again after that.
    #[default]
    Recompute,
    /// It is copied to host memory and back.
    Host,
}

/// How a scheduler is set up.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Requests that may be queued.
    pub max_queued: usize,
    /// Sequences that may run at once; the engine's own limit holds too.
    pub max_running: usize,
    /// Rows in a step; the engine's own limit holds too.
    pub token_budget: usize,
    /// How long a step should take at most while sequences decode; zero is no limit.
    pub target_step: Duration,
    /// How long a step may wait, after others finished, for the requests that
    /// follow on their answers; at most a part of the last step, see
    /// `step_loop.rs`. Zero never waits.
    pub wait_window: Duration,
    /// Keep finished sequences' state for prompts that begin alike.
    pub prefix_cache: bool,
    /// Tokens that the cache keeps for nobody who runs; 0 is an eighth of the
    /// engine's. Engines whose sequences share one pool of state walk over all of
    /// it for each row, cached tokens included: a full cache makes steps slower.
    pub max_cached: usize,
    /// Of these, tokens of prompts and answers that only one sequence had so far. What
    /// is beyond, and long enough, moves to host memory, from where it comes back
    /// sooner than it is computed. 0 is 512 where idle state makes steps slower
    /// ([`walks_idle_state`](quern_engine::Capabilities)) and there is room in host
    /// memory; elsewhere there is no such limit.
    pub max_unshared: usize,
    /// What becomes of the state of a paused sequence.
    pub preemption: Preemption,
    /// Host memory for the state of paused and of finished sequences, in bytes.
    pub host_state_bytes: usize,
    /// The adapters that requests may name, shared with whoever registers them.
    pub adapters: AdapterFiles,
    /// Adapters that the engine holds at once, at least 1.
    pub max_adapters: usize,
    /// Bytes that they may take there together.
    pub max_adapter_bytes: u64,
    /// Steps that one adapter is served in a row while others have work, where a step
    /// cannot mix them.
    pub adapter_quantum: u32,
    /// Tokens to guess ahead at most, where there is a drafter.
    pub max_draft: u32,
    /// Check all books after every step; costs time, meant for tests.
    pub check_invariants: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            max_queued: 256,
            max_running: 64,
            token_budget: 512,
            target_step: Duration::from_millis(400),
            wait_window: Duration::from_millis(10),
            prefix_cache: true,
            max_cached: 0,
            max_unshared: 0,
            preemption: Preemption::Recompute,
            host_state_bytes: 256 << 20,
            adapters: AdapterFiles::default(),
            max_adapters: 8,
            max_adapter_bytes: 1 << 30,
            adapter_quantum: builtin::ADAPTER_QUANTUM,
            max_draft: 8,
            check_invariants: false,
        }
    }
}

impl SchedulerConfig {
    /// What can be changed while the loop runs.
    pub(crate) fn limits(&self) -> Limits {
        let &SchedulerConfig { token_budget, max_running, target_step, wait_window, .. } = self;
        Limits { token_budget, max_running, target_step, wait_window }
    }

    /// Takes new limits, as far as the engine can follow.
    pub(crate) fn limit(&mut self, limits: Limits, caps: &Capabilities) {
        // A sequence without an output in sight would run for nothing.
        self.max_running = limits.max_running.min(caps.max_sequences).min(caps.max_outputs).max(1);
        self.token_budget = limits.token_budget.min(caps.max_rows).max(1);
        (self.target_step, self.wait_window) = (limits.target_step, limits.wait_window);
    }
}

/// Starts the thread that owns `engine`. `planner` stands in for the built-in
/// policy, `drafter` switches speculation on.
///
/// # Errors
/// The operating system's, when it gives no thread.
pub fn spawn(
    engine: Box<dyn Engine>,
    config: SchedulerConfig,
    planner: Option<Box<dyn Planner>>,
    drafter: Option<Box<dyn Drafter>>,
) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let queue = Queue::new(config.max_queued);
    spawn_on(&queue, engine, config, planner, drafter)
}

/// As [`spawn`], on a queue that several schedulers share; it holds no more
/// requests than `config.max_queued`.
///
/// # Errors
/// The operating system's, when it gives no thread.
pub fn spawn_on(
    queue: &Queue,
    engine: Box<dyn Engine>,
    config: SchedulerConfig,
    planner: Option<Box<dyn Planner>>,
    drafter: Option<Box<dyn Drafter>>,
) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let (scheduler, handle) = build(queue, engine, config, planner, drafter);
    let thread = std::thread::Builder::new().name("quern-step".into()).spawn(move || {
        // Set in whatever way the thread ends, so that health checks see it.
        let _guard = DeadOnDrop(Arc::clone(&scheduler.shared));
        scheduler.run();
    })?;
    Ok((handle, thread))
}

fn build(
    queue: &Queue,
    engine: Box<dyn Engine>,
    config: SchedulerConfig,
    planner: Option<Box<dyn Planner>>,
    drafter: Option<Box<dyn Drafter>>,
) -> (StepLoop, Handle) {
    let caps = engine.capabilities().clone();
    let mut config = config;
    config.limit(config.limits(), &caps);
    if config.max_cached == 0 {
        config.max_cached = caps.kv_capacity / 8;
    }
    if config.max_unshared == 0 {
        let has_cost = caps.walks_idle_state && config.host_state_bytes > 0;
        config.max_unshared = if has_cost { MAX_UNSHARED } else { usize::MAX };
    }
    let (sender, commands) = mpsc::sync_channel(config.max_queued + SPARE_COMMANDS);
    let shared = handle::Shared::new(queue.clone(), caps.kv_capacity, config.limits());
    let builtin = || BuiltinPlanner::with_quantum(config.adapter_quantum);
    let (files, max_bytes) = (config.adapters.clone(), config.max_adapter_bytes);
    let residents = adapters::Residents::new(files, config.max_adapters, max_bytes);
    let scheduler = StepLoop {
        planner: planner.unwrap_or_else(|| Box::new(builtin())),
        fallback: builtin(),
        drafter,
        commands,
        shared: Arc::clone(&shared),
        metrics: metrics::SchedulerMetrics::register(),
        cache: prefix_cache::PrefixCache::new(caps.kv_capacity, caps.max_sequences),
        ops: Vec::new(),
        residents,
        waiting: Vec::new(),
        running: Vec::new(),
        snapshot: plan::Snapshot::default(),
        batch: batch::Batch::default(),
        costs: StepCosts::default(),
        hold: None,
        parting: Failure::ShuttingDown,
        completions: Completions::default(),
        last_adapter: AdapterId::BASE,
        saved_bytes: 0,
        offloaded: offloaded::Offloaded::default(),
        seen_requests: 0,
        seen_tokens: 0,
        stalled: false,
        expected: 0,
        committed: Instant::now(),
        planning_started: Instant::now(),
        caps,
        config,
        engine,
    };
    (scheduler, Handle { commands: sender, shared })
}

struct DeadOnDrop(Arc<handle::Shared>);

impl Drop for DeadOnDrop {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.dead.store(true, Ordering::Release);
    }
}
