//! The node in simulated time: the step loop's rules with counted instead of
//! measured time.
//!
//! It follows `node/scheduler/src/{step_loop,assemble,commit}.rs`: ingest, drop
//! what expired, plan, check, fall back, pause, start, fill the step, commit.
//! Planners, the check and the built-in policy are the real ones. What it leaves
//! out: prefixes shared between live sequences (a trace says what is cached, and
//! that takes room for each), speculation, and waiting for followers.

use quern_engine::AdapterId;
use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::hold::Hold;
use quern_scheduler::plan::{self, NO_DEADLINE, Plan, Snapshot, StepInfo};

use crate::Costs;
use crate::simulate::contender::Contender;
use crate::simulate::served::{End, Served};
use crate::simulate::trace::{Arrival, Trace};

/// How long the loop rests when it has work but nothing can be done for it.
const REST_US: u64 = 1000;

/// Turns without anything done after which a simulation is given up.
const MAX_IDLE_TURNS: u32 = 100_000;

/// The node's size and speed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeConfig {
    pub(crate) token_budget: u32,
    pub(crate) max_running: u32,
    pub(crate) max_queued: usize,
    pub(crate) kv_capacity: u32,
    pub(crate) target_step_us: u32,
    pub(crate) mixes_adapters: bool,
    pub(crate) costs: Costs,
}

/// A request inside.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    /// Ascends with arrival.
    pub(super) id: u64,
    /// Its place in the trace.
    pub(super) arrival: usize,
    prompt: u32,
    max_new: u32,
    computed: u32,
    generated: u32,
    /// Tokens whose state the cache holds while it waits.
    cached: u32,
    /// Of these, tokens that take room because it was paused.
    kept: u32,
    paused_at_us: u64,
    started: bool,
    priority: u8,
    tenant: u32,
    adapter: AdapterId,
    arrived_us: u64,
    deadline_at_us: Option<u64>,
}

impl Sequence {
    fn new(id: u64, idx: usize, arrival: &Arrival) -> Sequence {
        Sequence {
            id,
            arrival: idx,
            prompt: arrival.prompt,
            max_new: arrival.max_new,
            computed: 0,
            generated: 0,
            cached: arrival.cached,
            kept: 0,
            paused_at_us: 0,
            started: false,
            priority: arrival.priority,
            // 0 is "no name".
            tenant: arrival.tenant as u32 + 1,
            adapter: AdapterId(arrival.adapter),
            arrived_us: arrival.at_us,
            deadline_at_us: arrival.deadline_us.map(|deadline| arrival.at_us + deadline),
        }
    }

    fn left(&self) -> u32 {
        self.prompt + self.generated - self.computed
    }

    fn slack_us(&self, now_us: u64) -> i32 {
        let Some(at_us) = self.deadline_at_us else { return NO_DEADLINE };
        let slack = at_us as i64 - now_us as i64;
        slack.clamp(i64::from(i32::MIN), i64::from(NO_DEADLINE - 1)) as i32
    }
}

/// See the module's text.
pub(crate) struct Node<'a> {
    /// With the limits in force.
    pub(super) config: NodeConfig,
    /// As the operator set it.
    pub(super) first_config: NodeConfig,
    pub(super) trace: &'a Trace,
    pub(super) contender: &'a mut Contender,
    fallback: BuiltinPlanner,
    pub(super) now_us: u64,
    pub(super) waiting: Vec<Sequence>,
    pub(super) running: Vec<Sequence>,
    snapshot: Snapshot,
    /// The last plan, as far as it may be repeated.
    pub(super) hold: Option<Hold>,
    num_steps: u64,
    last_step_us: u64,
    last_adapter: AdapterId,
    next_arrival: usize,
    stalled: bool,
    idle_turns: u32,
    pub(super) served: Served,
}

/// Serves a whole trace.
pub(crate) fn serve(config: NodeConfig, trace: &Trace, contender: &mut Contender) -> anyhow::Result<Served> {
    let mut node = Node {
        config,
        first_config: config,
        trace,
        contender,
        fallback: BuiltinPlanner::default(),
        now_us: 0,
        waiting: Vec::new(),
        running: Vec::new(),
        snapshot: Snapshot::default(),
        hold: None,
        num_steps: 0,
        last_step_us: 0,
        last_adapter: AdapterId::BASE,
        next_arrival: 0,
        stalled: false,
        idle_turns: 0,
        served: Served::new(trace),
    };
    while node.ingest()? {
        let plan = node.plan()?;
        let batch = node.assemble(&plan);
        node.step(&batch);
        node.commit(&batch);
    }
    node.contender.finish()?;
    Ok(node.served)
}

/// Rows of a step: a running sequence's id, its rows, whether its last has an output.
type Batch = Vec<(u64, u32, bool)>;

impl Node<'_> {
    /// Takes in what has arrived, or lets time pass until something does. False
    /// when all is done.
    fn ingest(&mut self) -> anyhow::Result<bool> {
        let arrivals = &self.trace.arrivals;
        let next_at = |node: &Self| arrivals.get(node.next_arrival).map(|arrival| arrival.at_us);
        if self.waiting.is_empty() && self.running.is_empty() {
            let Some(at_us) = next_at(self) else { return Ok(false) };
            self.now_us = self.now_us.max(at_us);
        } else if self.stalled {
            let rest_us = self.now_us + REST_US;
            self.now_us =
                next_at(self).filter(|&at_us| at_us > self.now_us).map_or(rest_us, |at| at.min(rest_us));
            self.idle_turns += 1;
            anyhow::ensure!(self.idle_turns < MAX_IDLE_TURNS, "nothing can be done for those who wait");
        }
        while next_at(self).is_some_and(|at_us| at_us <= self.now_us) {
            let idx = self.next_arrival;
            self.next_arrival += 1;
            self.enqueue(idx, &arrivals[idx]);
        }
        let now_us = self.now_us;
        let expired =
            |sequence: &Sequence| !sequence.started && sequence.deadline_at_us.is_some_and(|at| at < now_us);
        for sequence in self.waiting.extract_if(.., |sequence| expired(sequence)) {
            self.served.end(sequence.arrival, End::Expired, now_us);
        }
        self.contender.tell(&mut self.served, self.trace, now_us);
        Ok(true)
    }

    fn enqueue(&mut self, idx: usize, arrival: &Arrival) {
        let queued = self.waiting.iter().filter(|sequence| !sequence.started).count();
        if queued >= self.config.max_queued {
            return self.served.end(idx, End::Refused, self.now_us);
        }
        if arrival.prompt >= self.config.kv_capacity {
            return self.served.end(idx, End::TooLong, self.now_us);
        }
        let mut sequence = Sequence::new(idx as u64 + 1, idx, arrival);
        let load = self.load();
        match self.contender.decide(sequence.id, arrival, &self.trace.tenants[arrival.tenant], &load) {
            None => {}
            Some(Ok((priority, max_new))) => {
                sequence.priority = priority;
                sequence.max_new = sequence.max_new.min(max_new);
            }
            Some(Err(())) => return self.served.end(idx, End::Refused, self.now_us),
        }
        self.waiting.push(sequence);
    }

    fn plan(&mut self) -> anyhow::Result<Plan> {
        let limits = self.tuned();
        self.fill();
        self.snapshot.step = StepInfo {
            seq: self.num_steps,
            now_us: self.now_us,
            token_budget: limits.token_budget,
            max_running: limits.max_running,
            kv_free: self.available(),
            kv_page: 1,
            last_step_us: u32::try_from(self.last_step_us).unwrap_or(u32::MAX),
            target_step_us: limits.target_step_us,
            row_tile: 1,
            mixes_adapters: self.config.mixes_adapters,
            last_adapter: self.last_adapter,
            ..self.known_costs()
        };
        self.config = limits;
        let plan = match self.held_plan() {
            Some(plan) => Some(plan),
            None => self.checked_plan()?,
        };
        Ok(plan.unwrap_or_else(|| {
            let plan = plan::Planner::plan(&mut self.fallback, &self.snapshot);
            plan.expect("the built-in policy always has an opinion")
        }))
    }

    /// The node learns what steps cost; here it knows after the first one.
    fn known_costs(&self) -> StepInfo {
        if self.num_steps == 0 {
            return StepInfo::default();
        }
        let Costs { fixed_us, row_us, output_us } = self.config.costs;
        let row_us = row_us.max(1.0) as u32;
        StepInfo { fixed_us: fixed_us as u32, row_us, output_us: output_us as u32, ..StepInfo::default() }
    }

    fn held_plan(&mut self) -> Option<Plan> {
        let mut hold = self.hold.take().filter(|_| !self.stalled && self.contender.planner.stands())?;
        let plan = hold.repeat(&self.snapshot)?;
        plan::check(&self.snapshot, &plan).ok()?;
        self.hold = Some(hold);
        Some(plan)
    }

    fn checked_plan(&mut self) -> anyhow::Result<Option<Plan>> {
        // A plan that left everybody standing is not asked for twice.
        if std::mem::take(&mut self.stalled) {
            self.served.fallbacks.stalled += 1;
            return Ok(None);
        }
        let plan = self.contender.planner.plan(&self.snapshot);
        let judgement = plan.as_ref().map(|plan| plan::check(&self.snapshot, plan));
        self.contender.record(&self.snapshot, plan.as_ref(), judgement)?;
        let (Some(plan), Some(judgement)) = (plan, judgement) else {
            self.served.fallbacks.none += 1;
            return Ok(None);
        };
        self.contender.planner.judged(judgement);
        if judgement.is_err() {
            self.served.fallbacks.invalid += 1;
        }
        if judgement.is_ok() {
            self.hold = Hold::after(&self.snapshot, &plan);
        }
        Ok(judgement.ok().map(|()| plan))
    }

    fn fill(&mut self) {
        let now_us = self.now_us;
        let table = &mut self.snapshot.waiting;
        *table = plan::Waiting::default();
        for sequence in &self.waiting {
            let cached = sequence.cached.min(sequence.left() - 1);
            table.id.push(sequence.id);
            table.age_us.push(u32::try_from(now_us - sequence.arrived_us).unwrap_or(u32::MAX));
            table.prompt_left.push(sequence.left());
            table.cached.push(cached);
            table.pending.push(cached);
            table.kv_need.push(sequence.left());
            table.max_new.push(sequence.max_new - sequence.generated);
            table.slack_us.push(sequence.slack_us(now_us));
            table.priority.push(sequence.priority);
            table.tenant.push(sequence.tenant);
            table.adapter.push(sequence.adapter);
            table.adapter_tier.push(2);
        }
        let table = &mut self.snapshot.running;
        *table = plan::Running::default();
        for sequence in &self.running {
            table.id.push(sequence.id);
            table.prompt_left.push(sequence.left());
            table.generated.push(sequence.generated);
            table.max_new.push(sequence.max_new);
            table.kv.push(sequence.computed);
            table.slack_us.push(sequence.slack_us(now_us));
            table.priority.push(sequence.priority);
            table.tenant.push(sequence.tenant);
            table.adapter.push(sequence.adapter);
        }
    }

    /// Tokens of state that sequences hold, and that can therefore not be freed.
    pub(super) fn live(&self) -> u32 {
        self.running.iter().map(|sequence| sequence.computed).sum()
    }

    pub(super) fn available(&self) -> u32 {
        self.config.kv_capacity.saturating_sub(self.live())
    }

    fn assemble(&mut self, plan: &Plan) -> Batch {
        let preempt: Vec<u64> =
            plan.preempt.iter().map(|&row| self.snapshot.running.id[row as usize]).collect();
        let mut batch =
            Filling { parts: Batch::new(), rows: 0, budget: self.config.token_budget, adapter: None };
        batch.adapter = plan.adapter.filter(|_| !self.config.mixes_adapters);
        for &id in &preempt {
            self.pause(id);
        }
        let running = std::mem::take(&mut self.snapshot.running.id);
        for (row, &id) in running.iter().enumerate().filter(|(_, id)| !preempt.contains(id)) {
            let chunk = plan.running_chunk.get(row).copied().unwrap_or(u32::MAX);
            self.add_rows(&mut batch, id, chunk);
        }
        for (place, &row) in plan.admit.iter().enumerate() {
            let chunk = plan.admit_chunk.get(place).copied().unwrap_or(u32::MAX);
            let id = self.snapshot.waiting.id[row as usize];
            if batch.budget > 0 && chunk > 0 && self.start(&batch, id) {
                self.add_rows(&mut batch, id, chunk);
            }
        }
        if batch.parts.is_empty() && self.running.len() > 1 && self.available() == 0 {
            // A plan that pauses nobody would leave everybody without room.
            let last = self.running.last().map(|sequence| sequence.id);
            last.into_iter().for_each(|id| self.pause(id));
        }
        self.stalled = batch.parts.is_empty();
        self.last_adapter = batch.adapter.unwrap_or(self.last_adapter);
        batch.parts
    }

    fn add_rows(&self, batch: &mut Filling, id: u64, chunk: u32) {
        let Some(sequence) = self.running.iter().find(|sequence| sequence.id == id) else { return };
        let one_adapter = !self.config.mixes_adapters;
        if one_adapter && batch.adapter.is_some_and(|adapter| adapter != sequence.adapter) {
            return;
        }
        let room = self.available().saturating_sub(batch.rows);
        let len = sequence.left().min(chunk).min(batch.budget).min(room);
        if len == 0 {
            return;
        }
        if one_adapter {
            batch.adapter = Some(sequence.adapter);
        }
        batch.parts.push((id, len, len == sequence.left()));
        batch.rows += len;
        batch.budget -= len;
    }

    fn start(&mut self, batch: &Filling, id: u64) -> bool {
        let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) else { return false };
        let sequence = &self.waiting[index];
        let cached = sequence.cached.min(sequence.left() - 1);
        if self.running.len() >= self.config.max_running as usize
            || batch.rows + cached + 1 > self.available()
        {
            return false;
        }
        let mut sequence = self.waiting.remove(index);
        sequence.computed = cached;
        (sequence.kept, sequence.cached) = (0, 0);
        if !std::mem::replace(&mut sequence.started, true) {
            self.served.start(sequence.arrival, self.now_us);
        }
        self.running.push(sequence);
        true
    }

    /// Its state stays in the cache until the room is needed.
    fn pause(&mut self, id: u64) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let mut sequence = self.running.remove(index);
        (sequence.cached, sequence.kept) = (sequence.computed, sequence.computed);
        sequence.paused_at_us = self.now_us;
        sequence.computed = 0;
        self.served.pauses += 1;
        let place = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(place, sequence);
    }

    fn step(&mut self, batch: &Batch) {
        if batch.is_empty() {
            return;
        }
        self.idle_turns = 0;
        let rows: u32 = batch.iter().map(|&(_, len, _)| len).sum();
        let outputs = batch.iter().filter(|&&(_, _, output)| output).count() as u32;
        let took_us = self.config.costs.step_us(rows, outputs).round() as u64;
        self.num_steps += 1;
        self.last_step_us = took_us;
        self.now_us += took_us.max(1);
        self.served.step(self.now_us, took_us);
    }

    fn commit(&mut self, batch: &Batch) {
        for &(id, len, output) in batch {
            let found = self.running.iter_mut().find(|sequence| sequence.id == id);
            let sequence = found.expect("what is in the batch runs");
            let fresh = sequence.prompt.saturating_sub(sequence.computed).min(len);
            sequence.computed += len;
            self.served.computed(
                sequence.arrival,
                if sequence.generated == 0 { fresh } else { 0 },
                self.now_us,
            );
            if output {
                sequence.generated += 1;
                self.served.token(sequence.arrival, self.now_us);
            }
        }
        let now_us = self.now_us;
        let capacity = self.config.kv_capacity;
        let done = |sequence: &Sequence| {
            sequence.generated >= sequence.max_new || sequence.prompt + sequence.generated >= capacity
        };
        for sequence in self.running.extract_if(.., |sequence| done(sequence)) {
            self.served.end(sequence.arrival, End::Finished, now_us);
        }
        let over = |node: &Self| {
            let kept: u32 = node.waiting.iter().map(|sequence| sequence.kept).sum();
            node.live() + kept > node.config.kv_capacity
        };
        while over(self) {
            let kept = self.waiting.iter_mut().filter(|sequence| sequence.kept > 0);
            let Some(oldest) = kept.min_by_key(|sequence| sequence.paused_at_us) else { break };
            (oldest.cached, oldest.kept) = (0, 0);
        }
    }
}

/// A step that is being filled.
struct Filling {
    parts: Batch,
    rows: u32,
    budget: u32,
    adapter: Option<AdapterId>,
}

/// Prompt tokens of those who wait, for the node's load.
pub(super) fn waiting_tokens(waiting: &[Sequence]) -> u64 {
    waiting.iter().map(|sequence| u64::from(sequence.left())).sum()
}
