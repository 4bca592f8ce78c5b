//! Tenants share a node by the tokens that they were served.
//!
//! A virtual token counter (Sheng et al., "Fairness in Serving Large Language
//! Models", OSDI 2024) for each tenant counts what it was served: tokens of its
//! prompts, and tokens generated, which count more for they cost more. The tenant
//! with the smallest counter starts next. One that comes back after a pause is
//! lifted to the least of the others, so that idling saves up no claim. While two
//! tenants have work, neither gets ahead of the other by more than what was under
//! way, however much it sends; and no capacity is left idle for it.
//!
//! Beyond the paper: a tenant without its share of places does not wait until one
//! of a greedy tenant's answers ends; the greedy tenant's youngest is paused. And
//! while a prompt of whoever was served least is computed, a greedy tenant's streams
//! rest by turns and its prompts wait, for else they would take the time that it needs.
//! Where greedy tenants' prompts are alone, steps are kept short if others were there a
//! moment ago: whoever comes waits for the end of a step. Whoever comes back
//! keeps a small claim, about a request's worth, so that it does not stand in line
//! with the flood for each of its few requests.
#![deny(missing_docs)]

use std::collections::VecDeque;

use quern_policy_sdk::prelude::*;

mod crowd;
mod ledger;

use crowd::Crowd;
use ledger::Ledger;

/// Weighted tokens that whoever comes back may be behind the others: a request or two.
const CREDIT: u32 = 512;

/// See [`TenantFair::step_percent`]: half a step, for half the wait.
const STEP_PERCENT: u32 = 50;

/// For so long after two tenants had work at once, a greedy one's steps are short.
const MEMORY_US: u64 = 60_000_000;

/// See the module's text.
#[derive(Debug)]
pub struct TenantFair {
    turns: AdapterTurns,
    ledger: Ledger,
    preempts: bool,
    gives_way: bool,
    /// Part of the target time that a greedy tenant's steps take, in percent.
    step_percent: u32,
    /// When two tenants had work at once, by the node's clock.
    shared_at_us: Option<u64>,
}

impl Default for TenantFair {
    fn default() -> Self {
        let ledger = Ledger::new(2, CREDIT.into());
        TenantFair {
            turns: AdapterTurns::default(),
            ledger,
            preempts: true,
            gives_way: true,
            step_percent: STEP_PERCENT,
            shared_at_us: None,
        }
    }
}

impl Policy for TenantFair {
    fn init(&mut self, saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        let output_weight = settings.number("output-weight", 2, 0..=1000);
        self.ledger =
            Ledger::new(output_weight, settings.number("credit-tokens", CREDIT, 0..=1_000_000).into());
        self.preempts = settings.flag("preempt", true);
        self.gives_way = settings.flag("give-way", true);
        self.step_percent = settings.number("step-percent", STEP_PERCENT, 1..=100);
        self.turns = AdapterTurns::with_quantum(settings.number("quantum-steps", 16, 1..=100_000));
        settings.done()?;
        self.ledger.restore(saved.unwrap_or_default());
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.ledger.save()
    }
}

impl SchedulerPolicy for TenantFair {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        self.ledger.settle(waiting, running);
        let queues = Queues::new(waiting, &self.ledger);
        let crowd = Crowd::new(step, running, &queues, &self.ledger);
        if crowd.len() > 1 {
            self.shared_at_us = Some(step.now_us);
        }
        let is_shared = self.shared_at_us.is_some_and(|at_us| step.now_us.saturating_sub(at_us) < MEMORY_US);
        let is_short = self.gives_way && is_shared && crowd.is_greedy_alone();
        let short_us = u64::from(step.target_step_us) * u64::from(self.step_percent) / 100;
        let resting = if self.gives_way { crowd.resting() } else { Vec::new() };
        let gives_way = |tenant: u32| self.gives_way && crowd.gives_way(tenant);
        let (ledger, preempts) = (&self.ledger, self.preempts);
        let plan = self.turns.plan(step, waiting, running, |plan| {
            let of_running = |row: usize| (ledger.served(running.tenant[row]), running.id[row]);
            plan.rest(resting.iter().copied());
            if is_short {
                plan.shorten(short_us as u32);
            }
            plan.decode(of_running);
            let mut begun = plan.prefilling();
            begun.sort_by_key(|&row| of_running(row));
            let begun = begun.into_iter().map(|row| Begun {
                row,
                served: of_running(row).0,
                gives_way: gives_way(running.tenant[row]),
            });
            if let Some(blocked) = queues.clone().serve(plan, waiting, begun.collect(), &gives_way)
                && preempts
                && let Some(victim) = victim_for(waiting.tenant[blocked], plan, step, running, &queues)
            {
                plan.pause(victim);
                plan.try_start(blocked);
            }
        });
        self.ledger.charge(waiting, &plan);
        Ok(Some(plan))
    }
}

/// Bits of a row's number in a sort key; more rows than that are not looked at.
const ROW_BITS: u32 = 24;

/// One tenant's rows among those that wait.
#[derive(Debug, Clone, Copy)]
struct Queue {
    tenant: u32,
    served: u64,
    /// Of `Queues::rows`, half-open.
    next: usize,
    end: usize,
}

/// Those who wait, by tenant; each tenant's own by urgency and arrival.
#[derive(Debug, Clone)]
struct Queues {
    rows: Vec<u32>,
    queues: Vec<Queue>,
}

impl Queues {
    fn new(waiting: &Waiting, ledger: &Ledger) -> Queues {
        // One number for each row sorts several times as fast as three: tenant,
        // then the least urgent last, then arrival.
        let mut keys: Vec<u64> = (waiting.tenant.iter().zip(&waiting.priority).zip(0..1 << ROW_BITS))
            .map(|((&tenant, &priority), row)| {
                let urgency = u64::from(u8::MAX - priority);
                u64::from(tenant) << (ROW_BITS + 8) | urgency << ROW_BITS | row
            })
            .collect();
        keys.sort_unstable();
        let rows: Vec<u32> = keys.iter().map(|key| (key & ((1 << ROW_BITS) - 1)) as u32).collect();
        let mut queues: Vec<Queue> = Vec::new();
        for (place, &row) in rows.iter().enumerate() {
            let tenant = waiting.tenant[row as usize];
            match queues.last_mut() {
                Some(queue) if queue.tenant == tenant => queue.end += 1,
                _ => {
                    let served = ledger.served(tenant);
                    queues.push(Queue { tenant, served, next: place, end: place + 1 });
                }
            }
        }
        Queues { rows, queues }
    }

    /// Tenants that wait, with what they were served and how many rows they have.
    fn waiting(&self) -> impl Iterator<Item = (u32, u64, u32)> {
        self.queues.iter().map(|queue| (queue.tenant, queue.served, (queue.end - queue.next) as u32))
    }

    /// Serves the next of whoever was served least, again and again: a prompt that
    /// has begun, or a row that waits. Once somebody else has a part of the step,
    /// those who give way get none. Gives back who found no room to start.
    fn serve(
        mut self,
        plan: &mut PlanBuilder<'_>,
        waiting: &Waiting,
        mut begun: VecDeque<Begun>,
        gives_way: &impl Fn(u32) -> bool,
    ) -> Option<usize> {
        let (mut blocked, mut is_taken) = (None, false);
        loop {
            if is_taken {
                begun.retain(|begun| !begun.gives_way);
                self.queues.retain(|queue| !gives_way(queue.tenant));
            }
            let open = self.queues.iter_mut().filter(|queue| queue.next < queue.end);
            let next = open.min_by_key(|queue| queue.served);
            let next = next.filter(|_| blocked.is_none());
            let first = begun.front().copied();
            if let Some(Begun { row, served, gives_way }) = first
                && next.as_ref().is_none_or(|queue| served <= queue.served)
            {
                begun.pop_front();
                if !plan.prefill(row) {
                    return None;
                }
                is_taken |= !gives_way;
                continue;
            }
            let Some(queue) = next else { return blocked };
            let row = self.rows[queue.next] as usize;
            queue.next += 1;
            match plan.try_start(row) {
                Start::Started(_) => {
                    queue.served += u64::from(waiting.work(row));
                    is_taken |= !gives_way(waiting.tenant[row]);
                }
                Start::NotNow => {}
                Start::NoRows => return None,
                Start::NoSlot | Start::NoState => blocked = Some(row),
            }
        }
    }
}

/// A prompt that has begun.
#[derive(Debug, Clone, Copy)]
struct Begun {
    row: usize,
    /// What its tenant was served.
    served: u64,
    gives_way: bool,
}

/// The youngest of a tenant that runs more than its share, if the one who waits
/// runs less than its own.
fn victim_for(
    tenant: u32,
    plan: &PlanBuilder<'_>,
    step: &Step,
    running: &Running,
    queues: &Queues,
) -> Option<usize> {
    let mut places: Vec<(u32, u32)> = queues.queues.iter().map(|queue| (queue.tenant, 0)).collect();
    for (_, &tenant) in running.tenant.iter().enumerate().filter(|&(row, _)| !plan.is_paused(row)) {
        match places.iter_mut().find(|(other, _)| *other == tenant) {
            Some((_, places)) => *places += 1,
            None => places.push((tenant, 1)),
        }
    }
    // As many as run if everybody had the same; at least one.
    let all: u32 = places.iter().map(|&(_, places)| places).sum();
    let share = (all.min(step.max_running) / places.len().max(1) as u32).max(1);
    let own = places.iter().find(|&&(other, _)| other == tenant).map_or(0, |&(_, places)| places);
    let &(greedy, most) = places.iter().max_by_key(|&&(_, places)| places)?;
    if own >= share || most <= share || greedy == tenant {
        return None;
    }
    (0..running.len()).rev().find(|&row| running.tenant[row] == greedy && !plan.is_paused(row))
}

export_policy!(TenantFair: scheduler);
