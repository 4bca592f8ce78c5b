//! A toy node: arrivals and a policy in, the time of each request's tokens out.
//!
//! Time is counted, not measured: a step costs what [`Rig`] says. There is no
//! prefix cache, and whoever is paused computes everything again. It judges a
//! policy's behaviour in a test, not its worth on a machine.

use quern_policy_sdk::SchedulerPolicy;
use quern_policy_sdk::tables::{NO_DEADLINE, Plan, Running, Step, Waiting};

use crate::{Snapshot, plan_of};

/// A request to come.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When it comes.
    pub at_us: u64,
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Tokens that it wants.
    pub new: u32,
    /// From arrival; one that has not started by then is dropped.
    pub deadline_us: Option<u64>,
    /// Who asks.
    pub tenant: u32,
    /// Computed with.
    pub adapter: u32,
    /// Larger is more urgent.
    pub priority: u8,
}

impl Default for Arrival {
    fn default() -> Self {
        Arrival { at_us: 0, prompt: 32, new: 8, deadline_us: None, tenant: 1, adapter: 0, priority: 128 }
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Served {
    /// From arrival to the first token; none if it was dropped.
    pub ttft_us: Option<u64>,
    /// From arrival to the last token; none if it was dropped.
    pub total_us: Option<u64>,
    /// Times that it was paused.
    pub paused: u32,
}

/// The node's size and speed.
#[derive(Debug, Clone, Copy)]
pub struct Rig {
    /// Limits and costs; the rest of a step is filled in.
    pub step: Step,
    /// Tokens of key-value state.
    pub kv_total: u32,
}

impl Default for Rig {
    fn default() -> Self {
        let step = Step {
            token_budget: 256,
            max_running: 8,
            kv_page: 1,
            fixed_us: 2000,
            row_us: 100,
            output_us: 50,
            target_step_us: 10_000,
            mixes_adapters: true,
            ..Step::default()
        };
        Rig { step, kv_total: 8192 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    id: u64,
    arrival: Arrival,
    computed: u32,
    generated: u32,
}

impl Sequence {
    fn left(&self) -> u32 {
        self.arrival.prompt + self.generated - self.computed
    }

    fn slack_us(&self, now_us: u64) -> i32 {
        let Some(deadline) = self.arrival.deadline_us else { return NO_DEADLINE };
        let slack = (self.arrival.at_us + deadline) as i64 - now_us as i64;
        i32::try_from(slack).unwrap_or(if slack < 0 { i32::MIN } else { NO_DEADLINE - 1 })
    }
}

struct State {
    now_us: u64,
    seq: u64,
    last_adapter: u32,
    last_step_us: u32,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    served: Vec<Served>,
}

impl Rig {
    /// Serves all arrivals, which are in order of time; the answer is in their order.
    ///
    /// # Panics
    /// When a plan breaks a rule, or leaves everybody standing.
    pub fn serve(&self, policy: &mut impl SchedulerPolicy, arrivals: &[Arrival]) -> Vec<Served> {
        let served = vec![Served::default(); arrivals.len()];
        let mut state = State {
            now_us: 0,
            seq: 0,
            last_adapter: 0,
            last_step_us: 0,
            waiting: Vec::new(),
            running: Vec::new(),
            served,
        };
        let mut next = 0;
        loop {
            while next < arrivals.len() && arrivals[next].at_us <= state.now_us {
                let arrival = arrivals[next];
                state.waiting.push(Sequence { id: next as u64 + 1, arrival, computed: 0, generated: 0 });
                next += 1;
            }
            let now_us = state.now_us;
            state.waiting.retain(|sequence| sequence.generated > 0 || sequence.slack_us(now_us) >= 0);
            if !state.waiting.is_empty() || !state.running.is_empty() {
                let snapshot = self.snapshot(&state);
                let plan = plan_of(policy, &snapshot);
                self.step(&mut state, &plan);
            } else if next < arrivals.len() {
                state.now_us = arrivals[next].at_us;
            } else {
                return state.served;
            }
        }
    }

    fn snapshot(&self, state: &State) -> Snapshot {
        let used: u32 = state.running.iter().map(|sequence| sequence.computed).sum();
        let kv_free = self.kv_total.saturating_sub(used);
        let State { seq, now_us, last_adapter, last_step_us, .. } = *state;
        let step = Step { seq, now_us, kv_free, last_adapter, last_step_us, ..self.step };
        let mut snapshot = Snapshot { step, waiting: Waiting::default(), running: Running::default() };
        for sequence in &state.waiting {
            let table = &mut snapshot.waiting;
            table.id.push(sequence.id);
            table.age_us.push((now_us - sequence.arrival.at_us) as u32);
            table.prompt_left.push(sequence.left());
            table.cached.push(0);
            table.pending.push(0);
            table.kv_need.push(sequence.left());
            table.max_new.push(sequence.arrival.new - sequence.generated);
            table.slack_us.push(sequence.slack_us(now_us));
            table.priority.push(sequence.arrival.priority);
            table.tenant.push(sequence.arrival.tenant);
            table.adapter.push(sequence.arrival.adapter);
            table.adapter_tier.push(2);
        }
        for sequence in &state.running {
            let table = &mut snapshot.running;
            table.id.push(sequence.id);
            table.prompt_left.push(sequence.left());
            table.generated.push(sequence.generated);
            table.max_new.push(sequence.arrival.new);
            table.kv.push(sequence.computed);
            table.slack_us.push(sequence.slack_us(now_us));
            table.priority.push(sequence.arrival.priority);
            table.tenant.push(sequence.arrival.tenant);
            table.adapter.push(sequence.arrival.adapter);
        }
        snapshot
    }

    fn step(&self, state: &mut State, plan: &Plan) {
        let computes = plan.admit_chunk.iter().chain(&plan.running_chunk).any(|&chunk| chunk > 0);
        assert!(computes || !plan.preempt.is_empty(), "everybody was left standing in step {}", state.seq);
        let (mut rows, mut outputs) = (0, 0);
        let mut compute = |sequence: &mut Sequence, chunk: u32| {
            let chunk = chunk.min(sequence.left());
            sequence.computed += chunk;
            rows += chunk;
            let has_output = chunk > 0 && sequence.left() == 0;
            sequence.generated += u32::from(has_output);
            outputs += u32::from(has_output);
        };
        let mut running = Vec::new();
        let mut paused = Vec::new();
        for (row, &(mut sequence)) in state.running.iter().enumerate() {
            if plan.preempt.contains(&(row as u32)) {
                sequence.computed = 0;
                state.served[sequence.id as usize - 1].paused += 1;
                paused.push(sequence);
            } else {
                compute(&mut sequence, plan.running_chunk.get(row).copied().unwrap_or(0));
                running.push(sequence);
            }
        }
        for (&row, &chunk) in plan.admit.iter().zip(&plan.admit_chunk) {
            let mut sequence = state.waiting[row as usize];
            compute(&mut sequence, chunk);
            running.push(sequence);
        }
        let started = |sequence: &Sequence| running.iter().any(|other| other.id == sequence.id);
        state.waiting.retain(|sequence| !started(sequence));
        state.waiting.extend(paused);
        state.waiting.sort_by_key(|sequence| sequence.id);
        let Step { fixed_us, row_us, output_us, .. } = self.step;
        state.last_step_us = fixed_us + rows * row_us + outputs * output_us;
        state.now_us += u64::from(state.last_step_us);
        state.seq += 1;
        state.last_adapter = plan.adapter.unwrap_or(state.last_adapter);
        state.running = running;
        self.commit(state);
    }

    fn commit(&self, state: &mut State) {
        for sequence in &state.running {
            let since = state.now_us - sequence.arrival.at_us;
            let served = &mut state.served[sequence.id as usize - 1];
            if sequence.generated > 0 {
                served.ttft_us.get_or_insert(since);
            }
            if sequence.generated >= sequence.arrival.new {
                served.total_us = Some(since);
            }
        }
        state.running.retain(|sequence| sequence.generated < sequence.arrival.new);
        let used: u32 = state.running.iter().map(|sequence| sequence.computed).sum();
        assert!(used <= self.kv_total, "{used} tokens of state where {} fit", self.kv_total);
    }
}

/// The value below which this part of the values lies, by nearest rank.
pub fn percentile(values: impl IntoIterator<Item = u64>, percent: usize) -> u64 {
    let mut values: Vec<u64> = values.into_iter().collect();
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(0)
}
