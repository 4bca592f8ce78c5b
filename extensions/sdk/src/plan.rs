//! Building plans that a node accepts.
//!
//! A scheduler policy has an opinion on order: who goes first, who makes room.
//! The rest is the same for all of them and stands here: decoding sequences get
//! their token before anybody's prefill; prefill takes what the target time of a
//! step leaves while others decode; nobody starts without room for all of their
//! prompt and a little growth of those who run; a prefix that is just being
//! computed is waited for; one adapter a step where the engine cannot mix them.
//! Whatever order a policy gives, the plan keeps the rules of `plan` in
//! `extensions/wit/policy.wit`; tests hold it against the node's own check.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::tables::{Plan, Running, Step, Waiting};

mod arrivals;
mod turns;

pub use arrivals::Arrivals;
pub use turns::{AdapterTurns, first_busy};

/// Prefill rows that a step takes at least, however slow they are: fewer would
/// waste the engine on reading its weights.
pub const MIN_PREFILL: u32 = 16;

/// The same where no stream would stand still meanwhile: many short prompts are then
/// computed together, also while a busy machine makes each row look dear.
pub const MIN_PREFILL_ALONE: u32 = 64;

/// A prefix that a running sequence is about to finish is worth waiting for when
/// it saves more than this many tokens; the node sees it the same way.
pub const WORTH_WAITING: u32 = 16;

/// From this length on, a prompt's attention costs enough to plan for it.
const LONG_PROMPT: u32 = 512;

/// State kept free for each running sequence, so that starting one more does not
/// mean to pause another at once. In tokens.
const GROWTH: u32 = 8;

/// Waiting this long gives a claim to room, whatever adapter's turn it is.
const LONG_WAIT_US: u32 = 1_000_000;

/// What came of an attempt to start a waiting row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It starts, with this many tokens in this step.
    Started(u32),
    /// Not in this step, whatever room there is: its adapter is not served, a
    /// running sequence is computing its prefix, or it is in the plan already.
    NotNow,
    /// The step's rows, or the part of them that prefill may take, are used up.
    NoRows,
    /// As many sequences run as may; pausing one helps, in this step.
    NoSlot,
    /// Too little key-value state is free; pausing one helps, in the next step.
    NoState,
}

/// A plan in the making.
#[derive(Debug)]
pub struct PlanBuilder<'a> {
    step: &'a Step,
    waiting: &'a Waiting,
    running: &'a Running,
    plan: Plan,
    started: Vec<bool>,
    /// By running row, whether it was told to rest; empty while none was.
    resting: Vec<bool>,
    /// Rows of the step that are left, for anybody and for prefill.
    rows_left: u32,
    prefill_left: u32,
    /// Tokens of key-value state that are left.
    kv_left: u32,
    /// Sequences that will run, and those for whom a place is kept.
    num_running: u32,
    /// Running rows that this step can compute: those that decode, and others.
    num_decoding: u32,
    num_prefilling: u32,
    has_run: bool,
    /// How long the step should be at most while somebody decodes; 0 is no matter.
    target_us: u32,
    /// State that those who run will want soon; known once somebody is to start.
    headroom: Option<u32>,
    /// Somebody had to be paused for lack of state, so nobody starts.
    is_short: bool,
}

impl<'a> PlanBuilder<'a> {
    /// An empty plan. `adapter` is the one to serve where the step cannot mix
    /// them, and is not needed where it can; [`AdapterTurns`] chooses it.
    pub fn new(step: &'a Step, waiting: &'a Waiting, running: &'a Running, adapter: Option<u32>) -> Self {
        let first = || running.adapter.first().or(waiting.adapter.first()).copied();
        let adapter = if step.mixes_adapters { None } else { adapter.or_else(first) };
        let plan = Plan { adapter, running_chunk: vec![0; running.len()], ..Plan::default() };
        let (mut num_decoding, mut num_served) = (0, 0);
        for (&left, &of) in running.prompt_left.iter().zip(&running.adapter) {
            let is_served = adapter.is_none_or(|adapter| adapter == of);
            num_served += u32::from(is_served);
            num_decoding += u32::from(is_served && left <= 1);
        }
        let mut plan = PlanBuilder {
            step,
            waiting,
            running,
            plan,
            started: Vec::new(),
            resting: Vec::new(),
            rows_left: step.token_budget,
            prefill_left: 0,
            kv_left: step.kv_free,
            num_running: running.len() as u32,
            num_decoding,
            num_prefilling: num_served - num_decoding,
            has_run: false,
            target_us: step.target_step_us,
            headroom: None,
            is_short: false,
        };
        plan.measure_prefill();
        plan
    }

    /// Rows that prefill may take, by the streams that go on and the step's time.
    fn measure_prefill(&mut self) {
        let has_long_prompt = || has_long_prompt(self.waiting, self.running, self.plan.adapter);
        let rows = prefill_rows(self.step, self.target_us, self.num_decoding, has_long_prompt);
        self.prefill_left = rows.min(self.step.token_budget);
    }

    /// The adapter that this plan serves, where the step cannot mix them.
    pub fn adapter(&self) -> Option<u32> {
        self.plan.adapter
    }

    /// Whether the plan's step can compute a running row.
    pub fn serves_running(&self, row: usize) -> bool {
        self.plan.adapter.is_none_or(|adapter| adapter == self.running.adapter[row])
    }

    /// Whether the plan's step can compute a waiting row.
    pub fn serves_waiting(&self, row: usize) -> bool {
        self.plan.adapter.is_none_or(|adapter| adapter == self.waiting.adapter[row])
    }

    /// Whether a running row is paused by this plan.
    pub fn is_paused(&self, row: usize) -> bool {
        self.plan.preempt.contains(&(row as u32))
    }

    /// Whether the plan lets nobody compute and pauses nobody.
    pub fn is_idle(&self) -> bool {
        self.plan.admit.is_empty()
            && self.plan.preempt.is_empty()
            && self.plan.running_chunk.iter().all(|&chunk| chunk == 0)
    }

    /// Gives everybody their part of the step, the smallest key first: decoding rows
    /// one token each; then prefill, of those who run and those who wait in one
    /// order, so that a long prompt that has begun does not hold back whoever should
    /// go before it. If state runs out, the running row with the largest key makes
    /// room, and nobody starts any more.
    ///
    /// Gives back the first waiting row that found no room, if pausing somebody
    /// would help it; it keeps its place, for nobody overtakes it for being smaller.
    pub fn serve<K: Ord>(
        &mut self,
        of_running: impl Fn(usize) -> K,
        of_waiting: impl Fn(usize) -> K,
    ) -> Option<usize> {
        self.decode(&of_running);
        let mut prefilling = self.prefilling();
        prefilling.sort_by_cached_key(|&row| Reverse((of_running(row), row)));
        let (mut waiting, mut blocked) = (BinaryHeap::new(), None);
        if self.can_start() {
            waiting = self.in_order(&of_waiting);
        } else {
            blocked = self.first_in_order(&of_waiting);
        }
        loop {
            let begun = prefilling.last().map(|&row| of_running(row));
            let is_next =
                |Reverse((key, _)): &Reverse<(K, u32)>| begun.as_ref().is_none_or(|begun| key < begun);
            if waiting.peek().is_some_and(is_next) {
                let row = waiting.pop().map_or(0, |Reverse((_, row))| row as usize);
                match self.try_start(row) {
                    Start::Started(_) => {}
                    Start::NotNow => self.keep_room(row),
                    Start::NoRows => return None,
                    Start::NoSlot | Start::NoState => {
                        blocked = Some(row);
                        waiting.clear();
                    }
                }
                continue;
            }
            let Some(row) = prefilling.pop() else { return blocked };
            if !self.prefill(row) {
                self.relieve(&of_running);
                return None;
            }
        }
    }

    /// Leaves decoding rows out of this step, so that it has more time for prompts.
    /// Comes before anybody is given their part, and has no effect later.
    pub fn rest(&mut self, rows: impl IntoIterator<Item = usize>) {
        for row in rows {
            let decodes = self.running.prompt_left.get(row).is_some_and(|&left| left <= 1);
            let is_open = !self.has_run && decodes && self.serves_running(row);
            if is_open && !self.is_resting(row) {
                self.resting.resize(self.running.len(), false);
                self.resting[row] = true;
                self.num_decoding -= 1;
            }
        }
        if !self.has_run && !self.resting.is_empty() {
            self.measure_prefill();
        }
    }

    /// Makes the step shorter than it may be, so that whoever comes meanwhile waits
    /// less for the next one. Comes before anybody is given their part, and has no
    /// effect later, nor where steps have no target or a shorter one.
    pub fn shorten(&mut self, target_us: u32) {
        if !self.has_run && (1..self.target_us).contains(&target_us) {
            self.target_us = target_us;
            self.measure_prefill();
        }
    }

    fn is_resting(&self, row: usize) -> bool {
        self.resting.get(row).is_some_and(|&resting| resting)
    }

    /// Gives decoding rows one token each. If state runs out, the running row with
    /// the largest key makes room, and nobody starts. Called a second time, it
    /// changes nothing.
    pub fn decode<K: Ord>(&mut self, key: impl Fn(usize) -> K) {
        if !std::mem::replace(&mut self.has_run, true) && self.run_decoding() {
            self.relieve(&key);
        }
    }

    /// Running rows with a prompt to compute, which this step can.
    pub fn prefilling(&self) -> Vec<usize> {
        if self.num_prefilling == 0 {
            return Vec::new();
        }
        self.open_rows(|left| left > 1).collect()
    }

    /// Goes on with a running row's prompt, as far as the step allows. False when
    /// there is no state for it.
    pub fn prefill(&mut self, row: usize) -> bool {
        let is_open = row < self.running.len() && self.serves_running(row) && !self.is_paused(row);
        if !is_open || self.plan.running_chunk[row] > 0 {
            return true;
        }
        let rows_left = self.rows_left.min(self.prefill_left);
        if rows_left > 0 && self.kv_left == 0 {
            return false;
        }
        let chunk = self.running.prompt_left[row].min(rows_left).min(self.kv_left);
        self.give(row, chunk);
        self.prefill_left -= chunk;
        // What it takes now it will not want later.
        self.headroom = self.headroom.map(|headroom| headroom.saturating_sub(chunk.saturating_sub(1)));
        true
    }

    /// True when rows were left out for lack of state.
    fn run_decoding(&mut self) -> bool {
        let left = self.rows_left.min(self.kv_left);
        let adapter = self.plan.adapter;
        if self.num_decoding <= left && self.plan.preempt.is_empty() && self.resting.is_empty() {
            // The common case, for which there is no list and no order.
            let rows = self.running.prompt_left.iter().zip(&self.running.adapter);
            for (chunk, (&left, &of)) in self.plan.running_chunk.iter_mut().zip(rows) {
                *chunk = u32::from(left <= 1 && adapter.is_none_or(|adapter| adapter == of));
            }
            self.rows_left -= self.num_decoding;
            self.kv_left -= self.num_decoding;
            return false;
        }
        let mut rows: Vec<usize> = self.open_rows(|left| left <= 1).collect();
        rows.retain(|&row| !self.is_resting(row));
        if rows.len() > left as usize {
            // A step too small for all streams is shared by turns, whatever the
            // order, so that no stream stands still for good.
            let first = self.step.seq.wrapping_mul(u64::from(left)) % rows.len() as u64;
            rows.rotate_left(first as usize);
        }
        let is_short = self.kv_left < self.rows_left && rows.len() > left as usize;
        rows.into_iter().take(left as usize).for_each(|row| self.give(row, 1));
        is_short
    }

    /// Running rows that this step can compute and that have so much left.
    fn open_rows(&self, has_left: impl Fn(u32) -> bool) -> impl Iterator<Item = usize> {
        let is_open = move |row: &usize| {
            has_left(self.running.prompt_left[*row]) && self.serves_running(*row) && !self.is_paused(*row)
        };
        (0..self.running.len()).filter(is_open)
    }

    fn give(&mut self, row: usize, chunk: u32) {
        self.plan.running_chunk[row] = chunk;
        self.rows_left -= chunk;
        self.kv_left -= chunk;
    }

    /// State ran out: the last in order makes room, and what that gives back at
    /// once goes to those who got nothing.
    fn relieve<K: Ord>(&mut self, key: &impl Fn(usize) -> K) {
        self.is_short = true;
        let rows = (0..self.running.len()).filter(|&row| !self.is_paused(row));
        let Some(victim) = rows.max_by_key(|&row| (key(row), row)) else { return };
        if self.running.len() - self.plan.preempt.len() < 2 {
            return;
        }
        self.pause(victim);
        for row in 0..self.running.len() {
            if self.rows_left == 0 || self.kv_left == 0 {
                return;
            }
            if self.plan.running_chunk[row] == 0 && self.serves_running(row) && !self.is_paused(row) {
                self.give(row, 1);
            }
        }
    }

    /// Pauses a running row; its key-value state is given back after the plan was
    /// made, so what it held counts as free only in the next step. False if there
    /// is no such row or it is paused already.
    pub fn pause(&mut self, row: usize) -> bool {
        if row >= self.running.len() || self.is_paused(row) {
            return false;
        }
        let chunk = std::mem::take(&mut self.plan.running_chunk[row]);
        self.rows_left += chunk;
        self.kv_left += chunk;
        self.plan.preempt.push(row as u32);
        self.num_running -= 1;
        true
    }

    /// Whether anybody could start, as far as places and state go.
    fn can_start(&self) -> bool {
        !self.is_short && self.num_running < self.step.max_running && self.kv_left > 0
    }

    /// Those who wait. A heap gives the first few in order without sorting all.
    fn in_order<K: Ord>(&self, key: &impl Fn(usize) -> K) -> BinaryHeap<Reverse<(K, u32)>> {
        let rows = (0..self.waiting.len()).map(|row| Reverse((key(row), row as u32)));
        BinaryHeap::from(rows.collect::<Vec<_>>())
    }

    /// The first of those who wait for nothing but room, unless somebody was paused
    /// for lack of it already.
    fn first_in_order<K: Ord>(&self, key: &impl Fn(usize) -> K) -> Option<usize> {
        if self.is_short {
            return None;
        }
        let rows = (0..self.waiting.len()).filter(|&row| self.could_start(row));
        rows.min_by_key(|&row| (key(row), row))
    }

    /// Starts one waiting row if there is room. For policies whose order changes
    /// with each start; the others use [`PlanBuilder::serve`].
    pub fn try_start(&mut self, row: usize) -> Start {
        if row >= self.waiting.len() || !self.could_start(row) {
            return Start::NotNow;
        }
        let waiting = self.waiting;
        if self.num_running >= self.step.max_running {
            return Start::NoSlot;
        }
        let headroom = self.headroom();
        let no_room = self.num_running > 0 && self.kv_left < waiting.kv_need[row].saturating_add(headroom);
        if self.is_short || self.kv_left == 0 || no_room {
            return Start::NoState;
        }
        let chunk = waiting.work(row).max(1).min(self.rows_left).min(self.prefill_left).min(self.kv_left);
        if chunk == 0 {
            return Start::NoRows;
        }
        self.plan.admit.push(row as u32);
        self.plan.admit_chunk.push(chunk);
        self.started.resize(waiting.len(), false);
        self.started[row] = true;
        self.rows_left -= chunk;
        self.prefill_left -= chunk;
        self.kv_left = self.kv_left.saturating_sub(waiting.kv_need[row].max(chunk));
        self.num_running += 1;
        self.headroom = Some(headroom.saturating_add(GROWTH));
        Start::Started(chunk)
    }

    /// Keeps a place for a row that has waited long for its adapter's turn, so
    /// that those of the present one do not take all room before it comes.
    fn keep_room(&mut self, row: usize) {
        if !self.serves_waiting(row) && self.waiting.age_us[row] > LONG_WAIT_US {
            // Not from `kv_left`: those who run already go on.
            self.headroom = Some(self.headroom().saturating_add(self.waiting.kv_need[row]));
            self.num_running = self.num_running.saturating_add(1);
        }
    }

    /// Whether only a lack of room could keep a row from starting.
    fn could_start(&self, row: usize) -> bool {
        let worth_waiting = self.waiting.cached[row].saturating_add(WORTH_WAITING);
        self.serves_waiting(row)
            && self.waiting.pending[row] <= worth_waiting
            && !self.started.get(row).is_some_and(|&started| started)
    }

    /// What those who run have yet to take: the rest of their prompts, and a
    /// little for growth.
    fn headroom(&mut self) -> u32 {
        *self.headroom.get_or_insert_with(|| {
            let rows = self.running.prompt_left.iter().zip(&self.plan.running_chunk);
            let rest = rows.map(|(&left, &chunk)| u64::from(left.saturating_sub(chunk.max(1))));
            let growth = u64::from(GROWTH) * self.running.len() as u64;
            u32::try_from(rest.sum::<u64>() + growth).unwrap_or(u32::MAX)
        })
    }

    /// Lets the node repeat this plan's choices for some steps without asking, as
    /// long as no sequence comes, goes or starts to decode.
    pub fn hold(&mut self, steps: u32) {
        self.plan.hold_steps = steps;
    }

    /// The plan.
    pub fn finish(self) -> Plan {
        self.plan
    }
}

/// Rows that prefill may take without making a step longer than it should be. For
/// a long prompt it is up to twice that time where that fills a tile.
fn prefill_rows(
    step: &Step,
    target_us: u32,
    num_decoding: u32,
    has_long_prompt: impl FnOnce() -> bool,
) -> u32 {
    let streams_us = num_decoding.saturating_mul(step.row_us.saturating_add(step.output_us));
    let apart_us = step.fixed_us.saturating_add(streams_us);
    let (target_us, row_us) = match (target_us, step.row_us) {
        (0, _) => return step.token_budget,
        // Nothing is known yet: a small first step tells.
        (_, 0) => return MIN_PREFILL_ALONE,
        known => known,
    };
    // A step that was made short is short, whoever would like to fill it.
    let is_open = num_decoding == 0 && target_us == step.target_step_us;
    let least = if is_open { MIN_PREFILL_ALONE } else { MIN_PREFILL };
    let in_time = (target_us.saturating_sub(apart_us) / row_us).max(least);
    if step.row_tile <= 1 || !has_long_prompt() {
        return in_time;
    }
    let at_most = target_us.saturating_mul(2).saturating_sub(apart_us) / row_us;
    let filled = num_decoding.saturating_add(in_time).checked_next_multiple_of(step.row_tile);
    let filled = filled.map(|filled| filled - num_decoding);
    filled.filter(|&filled| filled <= at_most).unwrap_or(in_time)
}

/// Whether there is prefill whose attention counts, for this adapter if any.
fn has_long_prompt(waiting: &Waiting, running: &Running, adapter: Option<u32>) -> bool {
    let serves = |of: u32| adapter.is_none_or(|adapter| adapter == of);
    let runs = |row: usize| {
        let left = running.prompt_left[row];
        left > 1 && running.kv[row].saturating_add(left) >= LONG_PROMPT && serves(running.adapter[row])
    };
    let waits = |row: usize| waiting.prompt_left[row] >= LONG_PROMPT && serves(waiting.adapter[row]);
    (0..running.len()).any(runs) || (0..waiting.len()).any(waits)
}
