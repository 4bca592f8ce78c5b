//! The loop that owns an engine: ingest, plan, assemble, run, commit.
//!
//! This file holds the loop itself, what comes in, and the way from a snapshot
//! to a checked plan. Acting on the plan is in `assemble.rs`, what follows from
//! the engine's output in `commit.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use quern_engine::{AdapterId, Capabilities, Engine};

use crate::adapters::Residents;
use crate::batch::Batch;
use crate::builtin::BuiltinPlanner;
use crate::completed::{Completions, Outcome};
use crate::cost::CostModel;
use crate::draft::{DraftLength, Drafter};
use crate::handle::{Command, Shared};
use crate::hold::Hold;
use crate::metrics::SchedulerMetrics;
use crate::offloaded::Offloaded;
use crate::plan::{self, Plan, Planner, Snapshot, StepInfo};
use crate::prefix_cache::{KvOp, PrefixCache};
use crate::queue::Permit;
use crate::request::{Event, Failure, Generate, Request, Score, Work};
use crate::sampler::Sampler;
use crate::score::Scoring;
use crate::sequence::{Embedding, Generation, Sequence, Task};
use crate::{SchedulerConfig, snapshot};

/// How long the loop rests when it has work but nothing can be done for it.
const REST: Duration = Duration::from_millis(1);

/// The part of a step that may be spent on waiting for requests that follow on
/// answers. Whoever comes a moment after a step began waits for all of it.
const WAIT_PART: u32 = 32;

/// Numbers sequences. All loops of a process count together, so that a policy
/// which plans for several never meets a number twice.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// See the module's text.
pub(crate) struct StepLoop {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) caps: Capabilities,
    pub(crate) config: SchedulerConfig,
    pub(crate) planner: Box<dyn Planner>,
    pub(crate) fallback: BuiltinPlanner,
    pub(crate) drafter: Option<Box<dyn Drafter>>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: SchedulerMetrics,
    pub(crate) cache: PrefixCache,
    pub(crate) ops: Vec<KvOp>,
    /// The adapters on the engine.
    pub(crate) residents: Residents,
    /// Not started, or preempted; in order of arrival.
    pub(crate) waiting: Vec<Sequence>,
    /// Holding state; in order of their last start.
    pub(crate) running: Vec<Sequence>,
    pub(crate) snapshot: Snapshot,
    pub(crate) batch: Batch,
    pub(crate) costs: StepCosts,
    /// The last plan, as far as it may be repeated.
    pub(crate) hold: Option<Hold>,
    /// Where those who leave are told of.
    pub(crate) completions: Completions,
    pub(crate) last_adapter: AdapterId,
    /// Bytes of state that waiting sequences have in host memory.
    pub(crate) saved_bytes: usize,
    /// What finished ones left there.
    pub(crate) offloaded: Offloaded,
    /// Requests taken in, and their prompt tokens.
    pub(crate) seen_requests: u64,
    pub(crate) seen_tokens: u64,
    /// Whether the last turn could do nothing although there was work.
    pub(crate) stalled: bool,
    /// Requests that may follow on the answers which the last step finished.
    pub(crate) expected: usize,
    /// What those who are left are told in the end.
    pub(crate) parting: Failure,
    /// When the last step was done.
    pub(crate) committed: Instant,
    /// When the present turn of the loop began to plan.
    pub(crate) planning_started: Instant,
}

/// What steps cost, as far as planning needs to know.
#[derive(Debug, Default)]
pub(crate) struct StepCosts {
    pub(crate) num_steps: u64,
    pub(crate) last_step: Duration,
    pub(crate) model: CostModel,
}

impl StepLoop {
    /// Runs until told to stop, or until every handle is gone.
    pub(crate) fn run(mut self) {
        while self.ingest() {
            let plan = self.plan();
            self.assemble(&plan);
            // Starts gave their places in the queue back: without fresh numbers
            // a node that drains would look idle during a first, long step.
            self.publish_load();
            self.step();
            self.commit();
        }
        let parting = self.parting.clone();
        self.fail_all(&parting);
    }

    /// Takes in commands and drops what nobody waits for. Blocks while there is
    /// nothing to do. False when the loop is to end.
    fn ingest(&mut self) -> bool {
        let idle = self.waiting.is_empty() && self.running.is_empty();
        self.shared.busy.store(!idle, Ordering::Release);
        if idle {
            let Ok(command) = self.commands.recv() else { return false };
            self.shared.beat();
            self.shared.busy.store(true, Ordering::Release);
            if !self.apply(command) {
                return false;
            }
        } else if self.stalled {
            // A loop with work that the last turn could do nothing for must not spin.
            let go_on = match self.commands.recv_timeout(REST) {
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !go_on {
                return false;
            }
        }
        self.await_followers() && self.ingest_now()
    }

    /// Gives clients whose answers just ended a moment to ask again.
    fn await_followers(&mut self) -> bool {
        let window = self.config.wait_window.min(self.costs.last_step / WAIT_PART);
        while self.expected > 0 {
            let left = window.saturating_sub(self.committed.elapsed());
            let go_on = match self.commands.recv_timeout(left) {
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !go_on {
                return false;
            }
        }
        self.expected = 0;
        true
    }

    /// Takes in what is there, without blocking.
    pub(crate) fn ingest_now(&mut self) -> bool {
        loop {
            let go_on = match self.commands.try_recv() {
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => false,
            };
            if !go_on {
                return false;
            }
        }
        self.reap();
        self.drop_retired();
        self.shared.beat();
        true
    }

    fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(request, permit) => {
                self.expected = self.expected.saturating_sub(1);
                self.enqueue(*request, Arc::new(permit));
            }
            Command::SetPlanner(planner) => {
                self.planner = planner;
                self.hold = None;
            }
            Command::SetCompletions(completions) => self.completions = completions,
            Command::LookAtAdapters => {}
            Command::SetLimits(limits) => {
                self.config.limit(limits, &self.caps);
                self.hold = None;
                self.shared.pulse.set_limits(self.config.limits());
            }
            Command::Stop(why) => {
                self.parting = why;
                return false;
            }
        }
        true
    }

    /// Turns a request into waiting sequences, one for each choice.
    fn enqueue(&mut self, request: Request, permit: Arc<Permit>) {
        let Request { id, prompt, adapter, tenant, priority, deadline, arrived, work } = request;
        self.seen_requests += 1;
        self.seen_tokens += prompt.len() as u64;
        let tasks: Vec<(Task, Box<dyn crate::request::Sink>)> = match work {
            Work::Generate(generate) => self.generations(&prompt, generate),
            Work::Embed { pooling, sink } => {
                vec![(Task::Embed(Embedding { pooling, sum: Vec::new() }), sink)]
            }
            Work::Score(Score { labels, skip_below, sink }) => {
                vec![(Task::Score(Box::new(Scoring::new(labels, skip_below))), sink)]
            }
        };
        let capacity = self.caps.kv_capacity.min(self.caps.max_sequence_len);
        for (task, mut sink) in tasks {
            let num_behind = match &task {
                Task::Generate(_) => 1,
                Task::Embed(_) => 0,
                Task::Score(scoring) => scoring.max_depth(),
            };
            if prompt.is_empty() || prompt.len() + num_behind > capacity {
                // Nobody listening is no error: the request is over either way.
                let _ = sink.send(Event::Failed(Failure::TooLong { tokens: prompt.len(), capacity }));
                continue;
            }
            self.waiting.push(Sequence {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                request: id,
                adapter,
                tenant,
                priority,
                deadline,
                arrived,
                tokens: prompt.to_vec(),
                prompt_len: prompt.len(),
                computed: 0,
                slot: None,
                saved: None,
                task,
                sink,
                permit: Some(Arc::clone(&permit)),
                started: false,
                ended: false,
                outcome: Outcome::Cancelled,
                queued: None,
                first_token: None,
                poisoned: false,
            });
        }
    }

    fn generations(&self, prompt: &[u32], generate: Generate) -> Vec<(Task, Box<dyn crate::request::Sink>)> {
        let Generate { sinks, sampling, max_new, stop_tokens, constraint, logprobs, speculate } = generate;
        let task = |choice: usize| {
            let mut params = sampling.clone();
            params.seed = params.seed.wrapping_add(choice as u64);
            let drafts = speculate && self.drafter.is_some();
            Task::Generate(Box::new(Generation {
                sampler: Sampler::new(params, prompt, logprobs),
                constraint: constraint.as_ref().map(|constraint| constraint.clone_box()),
                max_new: (max_new as usize).max(1),
                stop_tokens: Arc::clone(&stop_tokens),
                draft_length: drafts.then(|| DraftLength::new(self.config.max_draft)),
            }))
        };
        sinks.into_iter().enumerate().map(|(choice, sink)| (task(choice), sink)).collect()
    }

    /// Frees what nobody listens to, and fails what waited past its deadline.
    fn reap(&mut self) {
        let now = Instant::now();
        for sequence in self.waiting.iter_mut().chain(&mut self.running) {
            sequence.ended |= sequence.sink.is_closed();
            if !sequence.started && !sequence.ended && sequence.deadline.is_some_and(|at| at < now) {
                sequence.end(Event::Failed(Failure::Expired));
            }
        }
        self.drop_ended();
    }

    /// Lets go of adapters that were retired, and of the state computed with them.
    fn drop_retired(&mut self) {
        if !self.residents.drop_retired(&mut *self.engine) {
            return;
        }
        self.offloaded.keep_adapters(|id| self.residents.is_offered(id));
        let is_retired = |id: &AdapterId| !self.residents.is_offered(*id);
        let retired: Vec<AdapterId> = self.cache.adapters().filter(is_retired).collect();
        for id in retired {
            // A sequence may still hold some, until it fails for want of its adapter.
            if !self.cache.forget_adapter(id, &mut self.ops) {
                self.residents.look_again();
            }
        }
        self.apply_ops();
        self.publish_load();
    }

    /// Asks the planner, checks what it says, and falls back where it is wrong.
    pub(crate) fn plan(&mut self) -> Plan {
        let now = Instant::now();
        self.planning_started = now;
        let tier = |adapter| self.residents.tier(adapter);
        let (waiting, running) = (&self.waiting, &self.running);
        snapshot::fill(&mut self.snapshot, waiting, running, &self.cache, &self.offloaded, tier, now);
        let cost = self.costs.model.now();
        self.snapshot.step = StepInfo {
            seq: self.costs.num_steps,
            now_us: self.shared.started.elapsed().as_micros() as u64,
            token_budget: self.config.token_budget.min(self.caps.max_rows) as u32,
            max_running: self.config.max_running as u32,
            kv_free: self.cache.available() as u32,
            kv_page: 1,
            last_step_us: self.costs.last_step.as_micros() as u32,
            fixed_us: cost.fixed_us,
            row_us: cost.row_us,
            output_us: cost.output_us,
            target_step_us: self.config.target_step.as_micros() as u32,
            row_tile: self.caps.row_tile as u32,
            mixes_adapters: self.caps.mixes_adapters,
            last_adapter: self.last_adapter,
        };
        let plan = self.held_plan().or_else(|| self.checked_plan()).unwrap_or_else(|| {
            let plan = self.fallback.plan(&self.snapshot);
            plan.expect("the built-in policy always has an opinion")
        });
        self.metrics.plan_duration.record(now.elapsed().as_secs_f64());
        plan
    }

    /// What the planner said of an earlier step, if that still holds. It is
    /// checked like any other plan: state may have run short meanwhile.
    fn held_plan(&mut self) -> Option<Plan> {
        let mut hold = self.hold.take().filter(|_| !self.stalled && self.planner.stands())?;
        let plan = hold.repeat(&self.snapshot)?;
        plan::check(&self.snapshot, &plan).ok()?;
        self.metrics.plans_held.increment(1);
        self.hold = Some(hold);
        Some(plan)
    }

    fn checked_plan(&mut self) -> Option<Plan> {
        // A plan that left everybody standing is not asked for twice.
        if std::mem::take(&mut self.stalled) {
            return None;
        }
        let Some(plan) = self.planner.plan(&self.snapshot) else {
            self.metrics.plans_none.increment(1);
            return None;
        };
        let judgement = plan::check(&self.snapshot, &plan);
        self.planner.judged(judgement);
        match judgement {
            Ok(()) => {
                self.metrics.plans_used.increment(1);
                self.hold = Hold::after(&self.snapshot, &plan);
                Some(plan)
            }
            Err(error) => {
                self.metrics.plans_invalid.increment(1);
                tracing::debug!(planner = self.planner.name(), error = %error, "plan refused");
                None
            }
        }
    }

    pub(crate) fn publish_load(&self) {
        let shared = &self.shared;
        shared.waiting.store(self.waiting.len(), Ordering::Relaxed);
        shared.running.store(self.running.len(), Ordering::Relaxed);
        let waiting_tokens = self.waiting.iter().map(|sequence| sequence.left() as u64).sum();
        shared.pulse.waiting_tokens.store(waiting_tokens, Ordering::Relaxed);
        shared.kv_used.store(self.cache.used(), Ordering::Relaxed);
        shared.kv_live.store(self.cache.live(), Ordering::Relaxed);
        self.publish_adapters();
        shared.inside.store(self.waiting.len() + self.running.len(), Ordering::Release);
        // Last, so that whoever sees a request taken in sees it waiting or running too.
        shared.seen.tokens.store(self.seen_tokens, Ordering::Release);
        shared.seen.requests.store(self.seen_requests, Ordering::Release);
    }

    /// Says which adapters there is work for, and which are there.
    fn publish_adapters(&self) {
        fn each_once(to: &mut Vec<AdapterId>, from: impl Iterator<Item = AdapterId>) {
            to.clear();
            to.extend(from.filter(|&adapter| adapter != AdapterId::BASE));
            to.sort_unstable();
            to.dedup();
        }
        let mut load = self.shared.adapters();
        each_once(&mut load.running, self.running.iter().map(|sequence| sequence.adapter));
        each_once(&mut load.waiting, self.waiting.iter().map(|sequence| sequence.adapter));
        each_once(&mut load.resident, self.residents.ids());
    }

    fn fail_all(&mut self, failure: &Failure) {
        for sequence in self.waiting.iter_mut().chain(&mut self.running) {
            sequence.end(Event::Failed(failure.clone()));
        }
        self.drop_ended();
    }

    /// Checks what must hold between two steps; for tests and debug builds.
    pub(crate) fn assert_consistent(&self) {
        self.cache.assert_consistent();
        self.residents.assert_consistent();
        for sequence in &self.running {
            let slot = sequence.slot.expect("a running sequence holds a slot");
            assert_eq!(self.cache.len(slot), sequence.computed);
            assert!(sequence.computed < sequence.tokens.len());
            assert!(sequence.started && !sequence.ended);
        }
        for sequence in &self.waiting {
            assert!(sequence.slot.is_none() && sequence.computed == 0 && !sequence.ended);
        }
        // A limit that was lowered meanwhile pauses nobody.
        assert!(self.running.len() <= self.caps.max_sequences.min(self.caps.max_outputs));
    }
}
