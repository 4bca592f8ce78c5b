//! The scheduler hook, as the planner of one step loop.

use std::sync::Arc;

use quern_engine::AdapterId;
use quern_scheduler::plan::{self, Plan, PlanError, Planner, Snapshot};

use crate::bindings::exports::quern::policy::scheduler;
use crate::seat::{Asked, Seat};
use crate::slot::SlotCore;
use crate::verdict::Hook;
use crate::version::Version;

/// Asks whatever version serves in its place; without one it has no opinion.
/// The step loop checks the plan and says what came of it.
pub struct SlotPlanner {
    core: Arc<SlotCore>,
    seat: Arc<Seat>,
    columns: AdapterColumns,
    /// Whose plan the step loop has in hands.
    asked: Option<Arc<Version>>,
    /// Whose plan was good last: it may be held.
    author: Option<u64>,
    warmed: bool,
}

impl SlotPlanner {
    pub(crate) fn new(core: Arc<SlotCore>, seat: Arc<Seat>) -> SlotPlanner {
        SlotPlanner {
            core,
            seat,
            columns: AdapterColumns::default(),
            asked: None,
            author: None,
            warmed: false,
        }
    }

    fn asked(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        let core = &*self.core;
        let columns = &mut self.columns;
        let clock_us = Some(snapshot.step.now_us);
        let asked =
            self.seat.ask(&core.engine, &core.settings, Hook::Scheduler, clock_us, |exports, store| {
                let Some(hook) = &exports.scheduler else { return Ok(Ok(None)) };
                let (waiting, running) = columns.lend(snapshot);
                hook.call_plan_step(store, step(snapshot), waiting, running)
            });
        let Asked { answer, version, rehearsal } = asked?;
        let plan = take(answer);
        if !rehearsal {
            self.asked = Some(version);
            return Some(plan);
        }
        let judgement = plan::check(snapshot, &plan).map_err(|error| error.to_string());
        self.seat.judge(&core.engine, Hook::Scheduler, &version, true, judgement);
        None
    }
}

impl Planner for SlotPlanner {
    fn name(&self) -> &str {
        &self.core.settings.name
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        if !std::mem::replace(&mut self.warmed, true) {
            // Else the first call of a thread would pay for it.
            wasmtime::Engine::tls_eager_initialize();
        }
        (self.asked, self.author) = (None, None);
        let plan = self.asked(snapshot);
        if let Some(shadow) = self.core.shadow.load().as_deref() {
            shadow.offer(snapshot, plan.as_ref());
        }
        plan
    }

    fn judged(&mut self, judgement: Result<(), PlanError>) {
        let Some(version) = self.asked.take() else { return };
        self.author = judgement.is_ok().then_some(version.number);
        let judgement = judgement.map_err(|error| error.to_string());
        self.seat.judge(&self.core.engine, Hook::Scheduler, &version, false, judgement);
    }

    fn stands(&self) -> bool {
        self.author.is_some() && self.author == self.seat.version()
    }
}

/// Adapters are numbers of another type in the step loop. The other columns are
/// lent as they are; these two are copied, some tens of nanoseconds for a
/// hundred rows.
#[derive(Default)]
pub(crate) struct AdapterColumns {
    waiting: Vec<u32>,
    running: Vec<u32>,
}

impl AdapterColumns {
    pub(crate) fn lend<'a>(
        &'a mut self,
        snapshot: &'a Snapshot,
    ) -> (scheduler::Waiting<'a>, scheduler::Running<'a>) {
        let Snapshot { waiting, running, .. } = snapshot;
        refill(&mut self.waiting, &waiting.adapter);
        refill(&mut self.running, &running.adapter);
        let waiting = scheduler::Waiting {
            id: &waiting.id,
            age_us: &waiting.age_us,
            prompt_left: &waiting.prompt_left,
            cached: &waiting.cached,
            pending: &waiting.pending,
            kv_need: &waiting.kv_need,
            max_new: &waiting.max_new,
            slack_us: &waiting.slack_us,
            priority: &waiting.priority,
            tenant: &waiting.tenant,
            adapter: &self.waiting,
            adapter_tier: &waiting.adapter_tier,
        };
        let running = scheduler::Running {
            id: &running.id,
            prompt_left: &running.prompt_left,
            generated: &running.generated,
            max_new: &running.max_new,
            kv: &running.kv,
            slack_us: &running.slack_us,
            priority: &running.priority,
            tenant: &running.tenant,
            adapter: &self.running,
        };
        (waiting, running)
    }
}

fn refill(column: &mut Vec<u32>, adapters: &[AdapterId]) {
    column.clear();
    column.extend(adapters.iter().map(|adapter| adapter.0));
}

pub(crate) fn step(snapshot: &Snapshot) -> scheduler::Step {
    let step = &snapshot.step;
    scheduler::Step {
        seq: step.seq,
        now_us: step.now_us,
        token_budget: step.token_budget,
        max_running: step.max_running,
        kv_free: step.kv_free,
        kv_page: step.kv_page,
        last_step_us: step.last_step_us,
        fixed_us: step.fixed_us,
        row_us: step.row_us,
        output_us: step.output_us,
        target_step_us: step.target_step_us,
        row_tile: step.row_tile,
        mixes_adapters: step.mixes_adapters,
        last_adapter: step.last_adapter.0,
    }
}

pub(crate) fn take(plan: scheduler::Plan) -> Plan {
    Plan {
        admit: plan.admit,
        admit_chunk: plan.admit_chunk,
        preempt: plan.preempt,
        running_chunk: plan.running_chunk,
        adapter: plan.adapter.map(AdapterId),
        hold_steps: plan.hold_steps,
    }
}
