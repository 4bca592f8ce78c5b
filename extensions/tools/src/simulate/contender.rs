//! A policy that takes part: the built-in one, or a file with its hooks.
//!
//! The scheduler hook is asked before each step, the batcher's four times a
//! second of simulated time, the admission hook for each arrival; feedback comes
//! twice a second. The autoscaler hook has nothing to decide on a single worker.

use std::path::Path;

use anyhow::Context as _;
use quern_extensions::status::VersionStatus;
use quern_extensions::{AdmissionRequest, Completed, Decision, Hook, NodeLoad, Outcome, PolicyEngine, Slot};
use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::{Plan, PlanError, Planner, Snapshot};

use crate::opened::{OpenArgs, open};
use crate::record::Writer;
use crate::simulate::node::{Node, NodeConfig, waiting_tokens};
use crate::simulate::served::{End, Served};
use crate::simulate::trace::{Arrival, Trace};

/// The name of the policy without a file.
pub(crate) const BUILTIN: &str = "builtin";

/// Simulated time between two questions to the batcher's hook.
const TUNE_US: u64 = 250_000;

/// Simulated time between two batches of feedback.
const TELL_US: u64 = 500_000;

/// See the module's text.
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(super) planner: Box<dyn Planner>,
    slot: Option<Slot>,
    recording: Option<Recording>,
    tune_at_us: u64,
    tell_at_us: u64,
}

struct Recording {
    writer: Writer<std::io::BufWriter<std::fs::File>>,
    /// Written when it is known how long its step took.
    pending: Option<crate::record::Step>,
}

impl Contender {
    /// `builtin`, or a policy's file.
    pub(crate) fn new(engine: &PolicyEngine, named: &str, args: &OpenArgs) -> anyhow::Result<Contender> {
        let (name, planner, slot): (_, Box<dyn Planner>, _) = if named == BUILTIN {
            (BUILTIN.to_owned(), Box::new(BuiltinPlanner::default()), None)
        } else {
            let opened = open(engine, Path::new(named), args)?;
            let planner = Box::new(opened.slot.planner());
            (opened.slot.name().to_owned(), planner, Some(opened.slot))
        };
        Ok(Contender { name, planner, slot, recording: None, tune_at_us: 0, tell_at_us: 0 })
    }

    /// Writes all steps to a file.
    pub(crate) fn record_to(&mut self, path: &Path) -> anyhow::Result<()> {
        let file =
            std::fs::File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        let writer = Writer::new(std::io::BufWriter::new(file))?;
        self.recording = Some(Recording { writer, pending: None });
        Ok(())
    }

    /// What the host says about it; nothing for the built-in policy.
    pub(crate) fn status(&self) -> Option<VersionStatus> {
        self.slot.as_ref().and_then(|slot| slot.status().serving)
    }

    pub(super) fn record(
        &mut self,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
        judgement: Option<Result<(), PlanError>>,
    ) -> anyhow::Result<()> {
        let Some(recording) = &mut self.recording else { return Ok(()) };
        let mut step = crate::record::Step::new(snapshot.clone(), plan.cloned());
        step.judge(judgement);
        if let Some(mut before) = recording.pending.replace(step) {
            before.took(&snapshot.step);
            recording.writer.write(&before)?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let Some(mut recording) = self.recording.take() else { return Ok(()) };
        if let Some(last) = recording.pending.take() {
            recording.writer.write(&last)?;
        }
        recording.writer.finish()?;
        Ok(())
    }

    fn serves(&self, hook: Hook) -> Option<&Slot> {
        self.slot.as_ref().filter(|slot| slot.serves(hook))
    }

    /// Priority and new tokens at most of a request that is accepted, an error for
    /// one that is refused; nothing without an opinion.
    pub(super) fn decide(
        &self,
        id: u64,
        arrival: &Arrival,
        tenant: &str,
        load: &NodeLoad,
    ) -> Option<Result<(u8, u32), ()>> {
        let request = AdmissionRequest {
            id,
            tenant: tenant.to_owned(),
            model: "simulated".to_owned(),
            adapter: (arrival.adapter > 0).then(|| arrival.adapter.to_string()),
            prompt_tokens: arrival.prompt,
            max_new: arrival.max_new,
            priority: arrival.priority,
            deadline_ms: arrival.deadline_us.map(|us| u32::try_from(us / 1000).unwrap_or(u32::MAX)),
            attributes: Vec::new(),
        };
        Some(match self.serves(Hook::Admission)?.decide(&request, load)? {
            Decision::Accept { priority, max_new, .. } => Ok((priority, max_new)),
            Decision::Reject { .. } => Err(()),
        })
    }

    /// Tells who is done, as the node does from time to time.
    pub(super) fn tell(&mut self, served: &mut Served, trace: &Trace, now_us: u64) {
        if now_us < self.tell_at_us {
            return;
        }
        self.tell_at_us = now_us + TELL_US;
        let ended = served.take_untold();
        let Some(slot) = self.serves(Hook::Feedback).filter(|_| !ended.is_empty()) else { return };
        let mut completed = Completed::default();
        for idx in ended {
            let (arrival, request) = (&trace.arrivals[idx], &served.requests[idx]);
            let micros = |us: Option<u64>| us.map_or(0, |us| u32::try_from(us).unwrap_or(u32::MAX));
            completed.id.push(idx as u64 + 1);
            completed.tenant.push(arrival.tenant as u32 + 1);
            completed.outcome.push(match request.end {
                Some(End::Finished) => Outcome::Finished,
                Some(End::Expired) => Outcome::Expired,
                _ => Outcome::Failed,
            });
            completed.prompt_tokens.push(arrival.prompt);
            completed.new_tokens.push(request.new_tokens);
            completed.queue_us.push(micros(request.queue_us));
            completed.ttft_us.push(micros(request.ttft_us));
        }
        slot.observe(&completed);
    }
}

impl Node<'_> {
    /// The limits in force, asked for again when it is time.
    pub(super) fn tuned(&mut self) -> NodeConfig {
        let mut config = self.config;
        if self.now_us < self.contender.tune_at_us {
            return config;
        }
        self.contender.tune_at_us = self.now_us + TUNE_US;
        let load = self.load();
        let limits = self.contender.serves(Hook::Batcher).and_then(|slot| slot.tune(&load));
        if let Some(limits) = limits {
            // The node brings what it is told within its own bounds.
            config.token_budget = limits.token_budget.min(self.first_config.token_budget);
            config.max_running = limits.max_running.min(self.first_config.max_running);
            self.hold = None;
            config.target_step_us = u32::try_from(limits.target_step.as_micros()).unwrap_or(u32::MAX);
            self.served.tuned.push((self.now_us, config.target_step_us, config.max_running));
            self.contender.tune_at_us = self.now_us + TUNE_US.max(limits.hold.as_micros() as u64);
        }
        config
    }

    pub(super) fn load(&self) -> NodeLoad {
        let [step_p50_us, step_p99_us] = [0.5, 0.99].map(|share| self.served.recent_step_us(share));
        NodeLoad {
            now_us: self.now_us,
            waiting: self.waiting.len() as u32,
            waiting_tokens: waiting_tokens(&self.waiting),
            running: self.running.len() as u32,
            kv_free: self.available(),
            kv_total: self.config.kv_capacity,
            step_p50_us,
            step_p99_us,
            ttft_p95_ms: self.served.recent_ttft_ms(),
            tpot_p95_us: self.served.recent_gap_us(),
            tokens_per_second: self.served.tokens_in_last_second(self.now_us),
            token_budget: self.config.token_budget,
            max_running: self.config.max_running,
            wait_window_us: 0,
        }
    }
}
