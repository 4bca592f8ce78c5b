//! A candidate beside the serving version: asked the same, never obeyed.
//!
//! Step loops hand it copies of what they saw and what was answered, as far as
//! its short queue has room; a thread of its own asks the candidate and counts
//! where plans differ. Where the serving version had no opinion, or there is
//! none, the candidate is compared with the built-in policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::{self, Plan, Planner as _, Snapshot};

use crate::engine::PolicyEngine;
use crate::health::Permit;
use crate::instance::{Instance, Reply};
use crate::load::{Code, LoadError};
use crate::planner::{AdapterColumns, step, take};
use crate::seat;
use crate::settings::{Settings, Trial};
use crate::shared::Shared;
use crate::verdict::{Fault, Hook, Verdict};
use crate::version::Version;

/// Steps that may wait for the candidate.
const QUEUE: usize = 8;

/// A candidate; it ends when this is dropped.
pub(crate) struct Shadow {
    pub(crate) version: Arc<Version>,
    pub(crate) counts: Arc<Counts>,
    queue: SyncSender<Seen>,
}

/// A step: what was seen, and the plan in force if it was a policy's.
struct Seen {
    snapshot: Snapshot,
    plan: Option<Plan>,
}

/// How often a candidate agreed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) same: AtomicU64,
    pub(crate) different: AtomicU64,
    pub(crate) admit: AtomicU64,
    pub(crate) admit_chunk: AtomicU64,
    pub(crate) preempt: AtomicU64,
    pub(crate) running_chunk: AtomicU64,
    pub(crate) adapter: AtomicU64,
    /// Steps that the candidate was too slow for.
    pub(crate) missed: AtomicU64,
    waiting: AtomicUsize,
}

impl Shadow {
    pub(crate) fn start(
        engine: &PolicyEngine,
        settings: &Settings,
        shared: &Shared,
        code: Arc<Code>,
        number: u64,
    ) -> Result<Shadow, LoadError> {
        let shared = Arc::new(shared.for_candidate());
        let mut settings = settings.clone();
        settings.trial = Trial { calls: 0, forgiven: 0 };
        // Its series are told apart from the serving version's.
        settings.name = format!("{} (candidate)", settings.name);
        let first = seat::start(engine, &code, &shared, &settings, None).map_err(LoadError::Start)?;
        let named = (first.name.clone(), first.version.clone());
        let version = Arc::new(Version::new(number, code, named, &settings));
        let counts = Arc::new(Counts::default());
        let (queue, steps) = sync_channel(QUEUE);
        let candidate = Candidate {
            engine: engine.clone(),
            settings,
            shared,
            version: Arc::clone(&version),
            counts: Arc::clone(&counts),
            instance: Some(first),
            columns: AdapterColumns::default(),
            builtin: BuiltinPlanner::default(),
        };
        let thread = std::thread::Builder::new().name("quern-shadow".into());
        // It ends when the queue does, after the step that it has in hands.
        thread.spawn(move || candidate.run(&steps)).map_err(|error| {
            LoadError::Start(Fault::new(Verdict::Error, format!("no thread for a candidate: {error}")))
        })?;
        Ok(Shadow { version, counts, queue })
    }

    /// Copies a step for the candidate if it has room. Never blocks.
    pub(crate) fn offer(&self, snapshot: &Snapshot, plan: Option<&Plan>) {
        // Seen before copying, which is what costs.
        if self.counts.waiting.load(Ordering::Relaxed) >= QUEUE {
            self.counts.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        let seen = Seen { snapshot: snapshot.clone(), plan: plan.cloned() };
        if self.queue.try_send(seen).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread's side.
struct Candidate {
    engine: PolicyEngine,
    settings: Settings,
    shared: Arc<Shared>,
    version: Arc<Version>,
    counts: Arc<Counts>,
    instance: Option<Instance>,
    columns: AdapterColumns,
    builtin: BuiltinPlanner,
}

impl Candidate {
    fn run(mut self, steps: &Receiver<Seen>) {
        while let Ok(Seen { snapshot, plan }) = steps.recv() {
            let mine = self.plan(&snapshot);
            let theirs = plan.or_else(|| self.builtin.plan(&snapshot));
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                self.counts.compare(&mine, &theirs);
            }
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        if self.version.health.permit(|| self.engine.now_us()) == Permit::Refused {
            self.version.stats(Hook::Scheduler).skipped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        match self.reply(snapshot) {
            Ok(Ok(Some(plan))) => match plan::check(snapshot, &plan) {
                Ok(()) => {
                    self.version.count(Hook::Scheduler, Verdict::Used, false);
                    return Some(plan);
                }
                Err(error) => self.fault(Fault::new(Verdict::Invalid, error.to_string())),
            },
            Ok(Ok(None)) => {
                self.version.count(Hook::Scheduler, Verdict::None, false);
            }
            Ok(Err(reason)) => self.fault(Fault::new(Verdict::Error, reason)),
            Err(fault) => {
                self.instance = None;
                self.fault(fault);
            }
        }
        None
    }

    fn fault(&self, fault: Fault) {
        self.version.count_fault(&self.engine, Some(Hook::Scheduler), fault);
    }

    fn reply(&mut self, snapshot: &Snapshot) -> Result<Reply<Plan>, Fault> {
        let Candidate { engine, settings, shared, version, instance, columns, .. } = self;
        let instance = match instance {
            Some(instance) => instance,
            None => instance.insert(seat::start(engine, &version.code, shared, settings, None)?),
        };
        let began = std::time::Instant::now();
        let clock_us = Some(snapshot.step.now_us);
        let reply = instance.call(engine, settings.deadlines.scheduler, clock_us, |exports, store| {
            let Some(hook) = &exports.scheduler else { return Ok(Ok(None)) };
            let (waiting, running) = columns.lend(snapshot);
            let reply = hook.call_plan_step(store, step(snapshot), waiting, running)?;
            Ok(reply.map(|plan| plan.map(take)))
        });
        version.stats(Hook::Scheduler).took(began.elapsed());
        reply
    }
}

impl Counts {
    fn compare(&self, mine: &Plan, theirs: &Plan) {
        // How long a plan may be held is no choice of whom to run.
        let parts = [
            (mine.admit != theirs.admit, &self.admit),
            (mine.admit_chunk != theirs.admit_chunk, &self.admit_chunk),
            (mine.preempt != theirs.preempt, &self.preempt),
            (mine.running_chunk != theirs.running_chunk, &self.running_chunk),
            (mine.adapter != theirs.adapter, &self.adapter),
        ];
        for (_, count) in parts.iter().filter(|(differs, _)| *differs) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let differs = parts.iter().any(|(differs, _)| *differs);
        let sum = if differs { &self.different } else { &self.same };
        sum.fetch_add(1, Ordering::Relaxed);
    }
}
