//! Whatever order a policy gives and whatever it asks for, the plan keeps the
//! rules, and what can be done is done.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::prelude::*;
use quern_policy_testing::{Snapshot, check, snapshots};

/// A call of the builder, as a policy could make it.
#[derive(Debug, Clone)]
enum Call {
    Decode(u64),
    Serve(u64),
    Prefill(usize),
    TryStart(usize),
    Pause(usize),
    Rest(usize),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        any::<u64>().prop_map(Call::Decode),
        any::<u64>().prop_map(Call::Serve),
        (0..50usize).prop_map(Call::Prefill),
        (0..50usize).prop_map(Call::TryStart),
        (0..50usize).prop_map(Call::Pause),
        (0..50usize).prop_map(Call::Rest),
    ];
    vec(call, 0..12)
}

/// An order without a pattern.
fn shuffled(salt: u64) -> impl Fn(usize) -> u64 {
    move |row| (row as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17)
}

fn simple(snapshot: &Snapshot, salt: u64) -> Plan {
    let Snapshot { step, waiting, running } = snapshot;
    AdapterTurns::default().plan(step, waiting, running, |plan| {
        plan.serve(shuffled(salt), shuffled(salt));
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_calls_make_a_plan_that_keeps_the_rules(
        snapshot in snapshots(),
        calls in calls(),
        adapter in prop::option::of(0..5u32),
    ) {
        let mut plan = PlanBuilder::new(&snapshot.step, &snapshot.waiting, &snapshot.running, adapter);
        for call in calls {
            match call {
                Call::Decode(salt) => plan.decode(shuffled(salt)),
                Call::Serve(salt) => drop(plan.serve(shuffled(salt), shuffled(salt))),
                Call::Prefill(row) => drop(plan.prefill(row)),
                Call::TryStart(row) => drop(plan.try_start(row)),
                Call::Pause(row) => drop(plan.pause(row)),
                Call::Rest(row) => plan.rest([row]),
            }
        }
        let plan = plan.finish();
        prop_assert_eq!(check(&snapshot, &plan), Ok(()), "{:?}", plan);
    }

    #[test]
    fn turns_keep_the_rules_and_leave_nobody_standing(snapshot in snapshots(), salt in any::<u64>()) {
        let plan = simple(&snapshot, salt);
        prop_assert_eq!(check(&snapshot, &plan), Ok(()), "{:?}", plan);
        // With a row and a token of room somebody computes, whatever adapter's turn it is.
        let step = &snapshot.step;
        let decodes = snapshot.running.prompt_left.contains(&1);
        if decodes && step.token_budget > 0 && step.kv_free > 0 {
            let mut chunks = plan.running_chunk.iter().chain(&plan.admit_chunk);
            prop_assert!(chunks.any(|&chunk| chunk > 0), "{:?}", plan);
        }
    }

    #[test]
    fn with_room_for_all_every_stream_gets_its_token(mut snapshot in snapshots(), salt in any::<u64>()) {
        snapshot.step.mixes_adapters = true;
        snapshot.step.token_budget = snapshot.step.token_budget.max(snapshot.running.len() as u32);
        snapshot.step.kv_free = snapshot.step.kv_free.max(100_000_000);
        let plan = simple(&snapshot, salt);
        let rows = snapshot.running.prompt_left.iter().zip(&plan.running_chunk);
        prop_assert!(rows.filter(|&(&left, _)| left == 1).all(|(_, &chunk)| chunk == 1));
        prop_assert!(plan.preempt.is_empty());
    }

    #[test]
    fn nobody_starts_without_room_for_the_prompt(mut snapshot in snapshots(), salt in any::<u64>()) {
        snapshot.step.mixes_adapters = true;
        let plan = simple(&snapshot, salt);
        let need: u64 =
            plan.admit.iter().map(|&row| u64::from(snapshot.waiting.kv_need[row as usize])).sum();
        // Alone on the node, a prompt may start into whatever room there is.
        if !snapshot.running.is_empty() {
            prop_assert!(need <= u64::from(snapshot.step.kv_free));
        }
    }
}

fn table(rows: &[(u32, u32)]) -> Waiting {
    let mut waiting = Waiting::default();
    for (row, &(prompt_left, pending)) in rows.iter().enumerate() {
        waiting.id.push(row as u64 + 10);
        waiting.age_us.push(0);
        waiting.prompt_left.push(prompt_left);
        waiting.cached.push(0);
        waiting.pending.push(pending);
        waiting.kv_need.push(prompt_left);
        waiting.max_new.push(8);
        waiting.slack_us.push(NO_DEADLINE);
        waiting.priority.push(128);
        waiting.tenant.push(1);
        waiting.adapter.push(0);
        waiting.adapter_tier.push(2);
    }
    waiting
}

fn decoding(count: u64) -> Running {
    let len = count as usize;
    Running {
        id: (1..=count).collect(),
        prompt_left: vec![1; len],
        generated: vec![4; len],
        max_new: vec![64; len],
        kv: vec![50; len],
        slack_us: vec![NO_DEADLINE; len],
        priority: vec![128; len],
        tenant: vec![1; len],
        adapter: vec![0; len],
    }
}

fn step() -> Step {
    Step { token_budget: 512, max_running: 8, kv_free: 1000, mixes_adapters: true, ..Step::default() }
}

#[test]
fn prefill_takes_what_the_target_time_leaves() {
    let step = Step { fixed_us: 1000, row_us: 100, output_us: 50, target_step_us: 10_000, ..step() };
    let (waiting, running) = (table(&[(500, 0)]), decoding(4));
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    plan.decode(|row| row);
    // 10 ms less 1 ms and four streams of 150 us leave 84 rows of 100 us.
    assert_eq!(plan.try_start(0), Start::Started(84));
}

#[test]
fn streams_that_rest_leave_their_time_to_a_prompt() {
    let step = Step { fixed_us: 1000, row_us: 100, output_us: 50, target_step_us: 10_000, ..step() };
    let (waiting, running) = (table(&[(500, 0)]), decoding(4));
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    plan.rest([1, 3, 3, 9]);
    plan.decode(|row| row);
    // Too late for this step.
    plan.rest([0]);
    assert_eq!(plan.try_start(0), Start::Started(87));
    assert_eq!(plan.finish().running_chunk, [1, 0, 1, 0]);
}

#[test]
fn a_long_prompt_fills_a_tile_where_that_takes_less_than_twice_the_target() {
    let long = |row_us: u32, row_tile: u32| {
        let step =
            Step { fixed_us: 16_000, row_us, output_us: 5_000, target_step_us: 400_000, row_tile, ..step() };
        let mut running = decoding(5);
        running.prompt_left[4] = 900;
        let waiting = Waiting::default();
        let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
        plan.serve(|row| row, |row| row);
        plan.finish().running_chunk[4]
    };
    assert_eq!(long(8_000, 1), (400 - 16 - 4 * 13) / 8);
    assert_eq!(long(8_000, 64), 60);
    assert_eq!(long(2_200, 64), 3 * 64 - 4);
    assert_eq!(long(20_000, 64), 16);
}

#[test]
fn a_prefix_under_way_is_waited_for() {
    let (step, waiting, running) = (step(), table(&[(100, 90), (100, 0)]), decoding(1));
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    assert_eq!(plan.try_start(0), Start::NotNow);
    assert_eq!(plan.try_start(1), Start::Started(100));
    assert_eq!(plan.try_start(1), Start::NotNow);
}

#[test]
fn what_is_in_the_way_is_told() {
    let running = decoding(8);
    let full = step();
    let waiting = table(&[(100, 0)]);
    let mut plan = PlanBuilder::new(&full, &waiting, &running, None);
    assert_eq!(plan.try_start(0), Start::NoSlot);
    assert!(plan.pause(3) && !plan.pause(3) && !plan.pause(8));
    assert_eq!(plan.try_start(0), Start::Started(100));
    let short = Step { kv_free: 100, max_running: 9, ..step() };
    let mut plan = PlanBuilder::new(&short, &waiting, &running, None);
    assert_eq!(plan.try_start(0), Start::NoState);
}

#[test]
fn who_runs_has_its_prompt_promised_before_another_starts() {
    let step = Step { kv_free: 1000, token_budget: 512, ..step() };
    let mut running = decoding(1);
    running.prompt_left[0] = 900;
    let waiting = table(&[(200, 0)]);
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    assert_eq!(plan.serve(|row| row, |row| row), Some(0));
}

#[test]
fn a_prompt_that_has_begun_waits_for_who_goes_before_it() {
    let step = Step { token_budget: 200, ..step() };
    let mut running = decoding(2);
    running.prompt_left[0] = 900;
    let waiting = table(&[(50, 0)]);
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    plan.serve(|row| running.prompt_left[row], |row| waiting.prompt_left[row]);
    let plan = plan.finish();
    assert_eq!((plan.admit_chunk, plan.running_chunk), (vec![50], vec![149, 1]));
}

#[test]
fn without_state_the_last_makes_room_and_the_others_go_on_later() {
    let step = Step { kv_free: 2, ..step() };
    let (waiting, running) = (Waiting::default(), decoding(4));
    let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
    plan.decode(|row| row);
    let plan = plan.finish();
    assert_eq!(plan.preempt, [3]);
    assert_eq!(plan.running_chunk.iter().sum::<u32>(), 2);
}

#[test]
fn a_step_too_small_for_all_streams_is_shared_by_turns() {
    let (waiting, running) = (Waiting::default(), decoding(5));
    let mut served = [0; 5];
    for seq in 0..10 {
        let step = Step { seq, token_budget: 2, ..step() };
        let mut plan = PlanBuilder::new(&step, &waiting, &running, None);
        plan.decode(|row| row);
        let plan = plan.finish();
        served.iter_mut().zip(&plan.running_chunk).for_each(|(served, &chunk)| *served += chunk);
    }
    assert_eq!(served, [4; 5]);
}

#[test]
fn adapters_take_turns_of_a_quantum() {
    let mut waiting = Waiting::default();
    let mut running = decoding(4);
    running.adapter = vec![1, 1, 2, 3];
    waiting.id.clear();
    let mut turns = AdapterTurns::with_quantum(3);
    let mut step = Step { mixes_adapters: false, last_adapter: 1, ..step() };
    let mut served = Vec::new();
    for seq in 0..12 {
        step.seq = seq;
        let plan = turns.plan(&step, &waiting, &running, |plan| plan.decode(|row| row));
        step.last_adapter = plan.adapter.unwrap();
        served.push(step.last_adapter);
    }
    assert_eq!(served, [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1]);
}
