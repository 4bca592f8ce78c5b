//! Tables of all sorts: empty, crowded, without room, with odd numbers.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::tables::{NO_DEADLINE, Running, Step, Waiting};

use crate::Snapshot;

/// Snapshots that a node could show, and some that it should not: no budget,
/// more running than may, costs of nothing or of hours. Columns are of equal
/// length, ids are unique, and `cached <= pending`, for that is promised.
pub fn snapshots() -> impl Strategy<Value = Snapshot> {
    let mixes = any::<bool>();
    (step(), vec(waiting_row(), 0..40), vec(running_row(), 0..40), mixes).prop_map(
        |(mut step, waiting, running, mixes_adapters)| {
            step.mixes_adapters = mixes_adapters;
            let num_running = running.len() as u64;
            let mut snapshot = Snapshot { step, ..Snapshot::default() };
            for (row, values) in running.into_iter().enumerate() {
                push_running(&mut snapshot.running, row as u64 + 1, values);
            }
            for (row, values) in waiting.into_iter().enumerate() {
                push_waiting(&mut snapshot.waiting, num_running + row as u64 + 1, values);
            }
            snapshot
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let limits = (
        prop_oneof![0..4u32, 4..600u32, Just(u32::MAX)],
        prop_oneof![0..4u32, 4..80u32, Just(u32::MAX)],
        prop_oneof![0..16u32, 16..8192u32, Just(u32::MAX)],
    );
    let cost = || prop_oneof![Just(0u32), 1..5000u32, Just(u32::MAX)];
    let costs = (cost(), cost(), cost(), prop_oneof![Just(0u32), 1..1_000_000u32, Just(u32::MAX)]);
    let tile = prop_oneof![Just(1u32), 0..200u32, Just(u32::MAX)];
    (any::<u64>(), any::<u64>(), limits, costs, (0..4u32, tile)).prop_map(
        |(seq, now_us, limits, costs, (adapter, row_tile))| Step {
            seq,
            now_us,
            token_budget: limits.0,
            max_running: limits.1,
            kv_free: limits.2,
            kv_page: 1,
            last_step_us: costs.0,
            fixed_us: costs.0,
            row_us: costs.1,
            output_us: costs.2,
            target_step_us: costs.3,
            row_tile,
            mixes_adapters: false,
            last_adapter: adapter,
        },
    )
}

/// Slack, priority, tenant, adapter.
type Owner = (i32, u8, u32, u32);

fn owner() -> impl Strategy<Value = Owner> {
    let slack = prop_oneof![Just(NO_DEADLINE), -1_000_000..5_000_000i32, any::<i32>()];
    (slack, any::<u8>(), 0..6u32, 0..4u32)
}

/// Age, tokens left, of these cached and pending, of them what counts as needed,
/// and new tokens at most.
type WaitingRow = ((u32, u32, u32, u32, u32, u32), Owner, u8);

fn waiting_row() -> impl Strategy<Value = WaitingRow> {
    let age = prop_oneof![0..5_000_000u32, any::<u32>()];
    let numbers = (age, 1..4000u32)
        .prop_flat_map(|(age, left)| (Just(age), Just(left), 0..left, 0..=left, 0..=left + 8, 1..2000u32));
    (numbers, owner(), 0..3u8)
}

fn push_waiting(table: &mut Waiting, id: u64, (numbers, owner, tier): WaitingRow) {
    let (age_us, prompt_left, cached, pending, kv_need, max_new) = numbers;
    table.id.push(id);
    table.age_us.push(age_us);
    table.prompt_left.push(prompt_left);
    table.cached.push(cached);
    table.pending.push(pending.max(cached));
    table.kv_need.push(kv_need);
    table.max_new.push(max_new);
    table.slack_us.push(owner.0);
    table.priority.push(owner.1);
    table.tenant.push(owner.2);
    table.adapter.push(owner.3);
    table.adapter_tier.push(tier);
}

/// Tokens left, drawn, at most, and state held.
type RunningRow = ((u32, u32, u32, u32), Owner);

fn running_row() -> impl Strategy<Value = RunningRow> {
    let left = prop_oneof![3 => Just(1u32), 1 => 1..4000u32];
    ((left, 0..2000u32, 1..2000u32, 0..4000u32), owner())
}

fn push_running(table: &mut Running, id: u64, (numbers, owner): RunningRow) {
    let (prompt_left, generated, max_new, kv) = numbers;
    table.id.push(id);
    table.prompt_left.push(prompt_left);
    table.generated.push(generated);
    table.max_new.push(max_new);
    table.kv.push(kv);
    table.slack_us.push(owner.0);
    table.priority.push(owner.1);
    table.tenant.push(owner.2);
    table.adapter.push(owner.3);
}
