//! The policy that plans when no other does, and whenever another fails.
//!
//! Decoding sequences go first, one token each. What is left of the step goes
//! to prefill, first to those that run, then to those that wait, by priority and
//! then by arrival; a step takes no more prefill than fits in the target time, so
//! that a long prompt does not make others' streams stand still, nor those who
//! come next wait. For a long prompt it may take up to twice that time where it
//! fills the engine's tile of rows, and so reads the prompt's keys and values less
//! often. When state runs short, the least urgent and youngest is paused.
//! Nobody overtakes a more urgent or earlier one for lack of room, so nobody
//! starves; adapters take turns of a bounded number of steps.

use std::collections::HashMap;

use quern_engine::AdapterId;

use crate::plan::{Plan, Planner, Snapshot, StepInfo};

/// Steps that one adapter is served in a row while others have work, unless it is
/// told otherwise.
pub(crate) const ADAPTER_QUANTUM: u32 = 16;

/// Prefill rows that a step takes at least, however slow they are: fewer would
/// waste the engine on reading its weights.
const MIN_PREFILL: u32 = 16;

/// The same where no stream would stand still meanwhile: many short prompts are then
/// computed together, also while a busy machine makes each row look dear.
const MIN_PREFILL_ALONE: u32 = 64;

/// From this length on, a prompt's attention costs enough to plan for it.
const LONG_PROMPT: u32 = 512;

/// Waiting this long gives a claim to room, whoever's turn it is.
const LONG_WAIT_US: u32 = 1_000_000;

/// A prefix that a running sequence is about to finish is worth waiting for
/// when it saves more than this many tokens.
pub(crate) const WORTH_WAITING: u32 = 16;

/// See the module's text.
#[derive(Debug)]
pub struct BuiltinPlanner {
    /// Steps that one adapter is served in a row while others have work.
    quantum: u32,
    /// Steps that the present adapter was served in a row.
    turn: u32,
    /// The step in which each adapter with work was last served, or came to have work.
    waits_since: HashMap<AdapterId, u64>,
}

impl Default for BuiltinPlanner {
    fn default() -> Self {
        BuiltinPlanner::with_quantum(ADAPTER_QUANTUM)
    }
}

/// What is still to be given out in the step that is planned.
struct Left {
    /// Rows for anybody.
    tokens: u32,
    /// Rows for prefill.
    prefill: u32,
    /// Tokens of key-value state.
    kv: u32,
}

impl Planner for BuiltinPlanner {
    fn name(&self) -> &str {
        "builtin"
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        let order = match snapshot.step.mixes_adapters {
            true => vec![None],
            false => self.adapters(snapshot).into_iter().map(Some).collect(),
        };
        // An adapter whose rows all lack room must not cost the others a step.
        let plans = order.into_iter().map(|adapter| plan_for(snapshot, adapter));
        let plan = plans.into_iter().find(|plan| !is_idle(plan)).unwrap_or_default();
        self.note_turn(snapshot, plan.adapter);
        Some(plan)
    }
}

impl BuiltinPlanner {
    /// Serves an adapter for so many steps in a row while others have work.
    #[must_use]
    pub fn with_quantum(quantum: u32) -> BuiltinPlanner {
        BuiltinPlanner { quantum: quantum.max(1), turn: 0, waits_since: HashMap::new() }
    }

    /// Adapters with work, best first: the present one for a quantum, then whoever
    /// waits longest. One that comes anew queues behind those that are there, or a
    /// stream of rare adapters would keep the others from their next turn.
    fn adapters(&mut self, snapshot: &Snapshot) -> Vec<AdapterId> {
        let last = snapshot.step.last_adapter;
        let rows = snapshot.running.adapter.iter().chain(&snapshot.waiting.adapter);
        let mut adapters: Vec<AdapterId> = rows.copied().collect();
        adapters.sort_unstable();
        adapters.dedup();
        self.waits_since.retain(|adapter, _| adapters.contains(adapter));
        for &adapter in &adapters {
            self.waits_since.entry(adapter).or_insert(snapshot.step.seq);
        }
        let over = self.turn >= self.quantum;
        adapters.sort_by_key(|adapter| ((*adapter == last) == over, self.waits_since[adapter]));
        adapters
    }

    fn note_turn(&mut self, snapshot: &Snapshot, served: Option<AdapterId>) {
        let Some(served) = served else { return };
        let same = served == snapshot.step.last_adapter;
        self.turn = if same { self.turn.saturating_add(1) } else { 1 };
        self.waits_since.insert(served, snapshot.step.seq);
    }
}

fn plan_for(snapshot: &Snapshot, adapter: Option<AdapterId>) -> Plan {
    let mut plan = Plan { adapter, ..Plan::default() };
    let mut left = budget(snapshot, adapter);
    plan_running(snapshot, adapter, &mut plan, &mut left);
    plan_waiting(snapshot, adapter, &mut plan, &mut left);
    plan
}

fn is_idle(plan: &Plan) -> bool {
    plan.admit.is_empty() && plan.preempt.is_empty() && plan.running_chunk.iter().all(|&chunk| chunk == 0)
}

fn serves(adapter: Option<AdapterId>, row: AdapterId) -> bool {
    adapter.is_none_or(|adapter| adapter == row)
}

fn budget(snapshot: &Snapshot, adapter: Option<AdapterId>) -> Left {
    let step = &snapshot.step;
    let running = &snapshot.running;
    let decodes = |row: &usize| running.prompt_left[*row] == 1 && serves(adapter, running.adapter[*row]);
    let decoding = (0..running.id.len()).filter(decodes).count() as u32;
    let streams = decoding.saturating_mul(step.row_us.saturating_add(step.output_us));
    let apart = step.fixed_us.saturating_add(streams);
    let prefill = match (step.target_step_us, step.row_us) {
        (0, _) => step.token_budget,
        // Nothing is known yet: a small first step tells.
        (_, 0) => MIN_PREFILL_ALONE,
        (target, row) => {
            let least = if decoding == 0 { MIN_PREFILL_ALONE } else { MIN_PREFILL };
            let in_time = (target.saturating_sub(apart) / row).max(least);
            let at_most = target.saturating_mul(2).saturating_sub(apart) / row;
            if has_long_prompt(snapshot, adapter) {
                fill_tile(step, decoding, in_time, at_most)
            } else {
                in_time
            }
        }
    };
    Left { tokens: step.token_budget, prefill: prefill.min(step.token_budget), kv: step.kv_free }
}

/// Whether there is prefill whose attention counts.
fn has_long_prompt(snapshot: &Snapshot, adapter: Option<AdapterId>) -> bool {
    let (running, waiting) = (&snapshot.running, &snapshot.waiting);
    let runs = |row: usize| {
        let left = running.prompt_left[row];
        left > 1 && running.kv[row] + left >= LONG_PROMPT && serves(adapter, running.adapter[row])
    };
    let waits = |row: usize| waiting.prompt_left[row] >= LONG_PROMPT && serves(adapter, waiting.adapter[row]);
    (0..running.id.len()).any(runs) || (0..waiting.id.len()).any(waits)
}

/// Brings a step up to a multiple of the engine's tile, where that stays within
/// `at_most` rows of prefill.
fn fill_tile(step: &StepInfo, decoding: u32, in_time: u32, at_most: u32) -> u32 {
    let filled = (decoding + in_time).next_multiple_of(step.row_tile.max(1)) - decoding;
    if filled <= at_most { filled } else { in_time }
}

/// Most urgent first, then first come first served.
fn by_urgency(rows: impl Iterator<Item = usize>, priority: &[u8], id: &[u64]) -> Vec<usize> {
    let mut rows: Vec<usize> = rows.collect();
    rows.sort_unstable_by_key(|&row| (std::cmp::Reverse(priority[row]), id[row]));
    rows
}

fn plan_running(snapshot: &Snapshot, adapter: Option<AdapterId>, plan: &mut Plan, left: &mut Left) {
    let running = &snapshot.running;
    plan.running_chunk = vec![0; running.id.len()];
    let mut order = by_urgency(0..running.id.len(), &running.priority, &running.id);
    // Decoding rows come first among equals: a stable sort keeps urgency.
    order.sort_by_key(|&row| running.prompt_left[row] > 1);
    let mut unserved = Vec::new();
    for &row in order.iter().filter(|&&row| serves(adapter, running.adapter[row])) {
        let wanted = running.prompt_left[row];
        let limit = if wanted == 1 { left.tokens } else { left.tokens.min(left.prefill) };
        if left.kv == 0 && limit > 0 {
            unserved.push(row);
            continue;
        }
        let chunk = wanted.min(limit).min(left.kv);
        plan.running_chunk[row] = chunk;
        left.tokens -= chunk;
        left.kv -= chunk;
        left.prefill -= if wanted == 1 { 0 } else { chunk };
    }
    if unserved.is_empty() {
        return;
    }
    // State ran out. The least urgent of all that run makes room for the rest.
    let victims = by_urgency(0..running.id.len(), &running.priority, &running.id);
    if let [_, .., victim] = victims[..] {
        let taken = std::mem::take(&mut plan.running_chunk[victim]);
        plan.preempt.push(victim as u32);
        left.tokens += taken;
        left.kv += taken;
        for row in unserved.into_iter().filter(|&row| row != victim) {
            let chunk = u32::from(left.kv > 0 && left.tokens > 0);
            plan.running_chunk[row] = chunk;
            left.kv -= chunk;
            left.tokens -= chunk;
        }
        left.kv = 0;
    }
}

/// Room for starts.
struct Room {
    /// Tokens of key-value state.
    kv: u32,
    /// Tokens that those who run will want soon, so that starting one more does not
    /// mean to pause another at once.
    headroom: u32,
    /// Sequences that run, or will.
    num_running: u32,
}

impl Room {
    fn take(&mut self, need: u32) {
        self.kv = self.kv.saturating_sub(need);
        self.headroom += 8;
        self.num_running += 1;
    }
}

fn plan_waiting(snapshot: &Snapshot, adapter: Option<AdapterId>, plan: &mut Plan, left: &mut Left) {
    let (waiting, running) = (&snapshot.waiting, &snapshot.running);
    if !plan.preempt.is_empty() {
        return;
    }
    let num_running = running.id.len() as u32;
    let mut room = Room { kv: left.kv, headroom: 8 * num_running, num_running };
    let mut of_others = Vec::new();
    for row in by_urgency(0..waiting.id.len(), &waiting.priority, &waiting.id) {
        if !serves(adapter, waiting.adapter[row]) {
            // Room is kept for those of other adapters who have waited long.
            match waiting.age_us[row] > LONG_WAIT_US {
                true => room.take(waiting.kv_need[row]),
                false => of_others.push(row),
            }
            continue;
        }
        if waiting.pending[row] > waiting.cached[row] + WORTH_WAITING {
            continue;
        }
        // And for those who are more urgent: what was paused for one of them would start
        // again in its place, and be paused again.
        let above = of_others.partition_point(|&other| waiting.priority[other] > waiting.priority[row]);
        of_others.drain(..above).for_each(|other| room.take(waiting.kv_need[other]));
        let need = waiting.kv_need[row];
        let no_room = room.num_running > 0 && room.kv < need.saturating_add(room.headroom);
        if room.num_running >= snapshot.step.max_running || no_room {
            preempt_for(snapshot, row, plan);
            break;
        }
        let chunk = (waiting.prompt_left[row] - waiting.cached[row]).min(left.tokens).min(left.prefill);
        if chunk == 0 || room.kv == 0 {
            break;
        }
        plan.admit.push(row as u32);
        plan.admit_chunk.push(chunk.min(room.kv));
        left.tokens -= chunk;
        left.prefill -= chunk;
        room.take(need);
    }
}

/// Pauses the least urgent running row if the waiting one is more urgent; the
/// waiting one starts in a later step, when the room is there.
fn preempt_for(snapshot: &Snapshot, waiting_row: usize, plan: &mut Plan) {
    let running = &snapshot.running;
    let order = by_urgency(0..running.id.len(), &running.priority, &running.id);
    let Some(&victim) = order.last() else { return };
    if running.priority[victim] < snapshot.waiting.priority[waiting_row] {
        plan.running_chunk[victim] = 0;
        plan.preempt.push(victim as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prefill rows of a step in which four decode beside a long prompt, when a
    /// row takes `row_us`.
    fn long_prompts_rows(row_us: u32, row_tile: u32) -> u32 {
        let step = StepInfo {
            token_budget: 512,
            max_running: 8,
            kv_free: 4096,
            fixed_us: 16_000,
            row_us,
            output_us: 5_000,
            target_step_us: 400_000,
            row_tile,
            ..StepInfo::default()
        };
        let mut snapshot = Snapshot { step, ..Snapshot::default() };
        let running = &mut snapshot.running;
        running.id = (1..=5).collect();
        running.prompt_left = vec![1, 1, 1, 1, 1500];
        (running.kv, running.max_new) = (vec![100; 5], vec![64; 5]);
        (running.generated, running.slack_us) = (vec![1; 5], vec![i32::MAX; 5]);
        (running.priority, running.tenant) = (vec![0; 5], vec![0; 5]);
        running.adapter = vec![AdapterId::BASE; 5];
        let plan = BuiltinPlanner::default().plan(&snapshot).expect("always an opinion");
        assert_eq!(plan.running_chunk[..4], [1; 4]);
        plan.running_chunk[4]
    }

    #[test]
    fn a_long_prompt_fills_a_tile_where_that_takes_less_than_twice_the_target() {
        // Without tiles, what fits in the time that four streams leave.
        assert_eq!(long_prompts_rows(8_000, 1), (400 - 16 - 4 * 13) / 8);
        // Up to one tile, with the streams in it.
        assert_eq!(long_prompts_rows(8_000, 64), 60);
        // 161 would fit; three tiles take less than twice the time.
        assert_eq!(long_prompts_rows(2_200, 64), 3 * 64 - 4);
        // A tile would take three times the target: what fits.
        assert_eq!(long_prompts_rows(20_000, 64), 16);
    }
}
