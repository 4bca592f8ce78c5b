//! Equal service for those who want it, whoever asks most, and no idle capacity.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::Policy;
use quern_policy_sdk::prelude::{NO_DEADLINE, Step};
use quern_policy_tenant_fair::TenantFair;
use quern_policy_testing::rig::{Arrival, Rig, Served, percentile};
use quern_policy_testing::{Snapshot, plan_of, snapshots};

proptest! {
    #[test]
    fn plans_keep_the_rules(seen in vec(snapshots(), 1..6)) {
        let mut policy = TenantFair::default();
        for snapshot in seen {
            plan_of(&mut policy, &snapshot);
        }
    }

    #[test]
    fn garbage_from_save_is_survived(saved in vec(any::<u8>(), 0..64), seen in snapshots()) {
        let mut policy = TenantFair::default();
        prop_assert!(policy.init(Some(&saved)).is_ok());
        plan_of(&mut policy, &seen);
    }
}

/// Tenants and how often each sends, for this long.
fn load(tenants: &[(u32, u64)], until_us: u64) -> Vec<Arrival> {
    let of = |&(tenant, every_us): &(u32, u64)| {
        (0..until_us / every_us).map(move |n| Arrival {
            at_us: n * every_us + u64::from(tenant) * 23_000,
            prompt: 64,
            new: 12,
            tenant,
            ..Arrival::default()
        })
    };
    let mut arrivals: Vec<Arrival> = tenants.iter().flat_map(of).collect();
    arrivals.sort_by_key(|arrival| arrival.at_us);
    arrivals
}

fn p95_ttft(arrivals: &[Arrival], served: &[Served], of: impl Fn(u32) -> bool) -> u64 {
    let own = arrivals.iter().zip(served).filter(|(arrival, _)| of(arrival.tenant));
    percentile(own.filter_map(|(_, served)| served.ttft_us), 95)
}

#[test]
fn a_flood_from_one_tenant_leaves_the_others_their_pace() {
    let rig = Rig::default();
    let calm: Vec<(u32, u64)> = (2..=5).map(|tenant| (tenant, 90_000 + u64::from(tenant) * 1000)).collect();
    let alone = load(&calm, 8_000_000);
    let served_alone = rig.serve(&mut TenantFair::default(), &alone);

    // One more sends as much as ten of them.
    let flooded = load(&[&[(1, 9_500)], &calm[..]].concat(), 8_000_000);
    let served = rig.serve(&mut TenantFair::default(), &flooded);
    let calm = p95_ttft(&alone, &served_alone, |tenant| tenant > 1);
    let now = p95_ttft(&flooded, &served, |tenant| tenant > 1);
    assert!(2 * now <= 3 * calm, "{now} us, {calm} us without the flood");
    // The flood waits for itself.
    assert!(p95_ttft(&flooded, &served, |tenant| tenant == 1) > 10 * now);
}

#[test]
fn a_greedy_tenants_streams_rest_by_turns_while_anothers_prompt_is_computed() {
    let mut snapshot = snapshot_of(&[(1, 1); 8], &[2]);
    let mut policy = TenantFair::default();
    // What the streams drew so far is charged to the greedy one.
    let mut drawn = [0; 8];
    for seq in 0..8 {
        snapshot.step.seq = seq;
        let plan = plan_of(&mut policy, &snapshot);
        assert!(plan.admit == [0] && plan.preempt.is_empty(), "{plan:?}");
        assert_eq!(plan.running_chunk.iter().sum::<u32>(), 1, "one goes on");
        drawn.iter_mut().zip(&plan.running_chunk).for_each(|(drawn, &chunk)| *drawn += chunk);
        snapshot.running.generated = drawn.map(|drawn| drawn + 1).to_vec();
    }
    assert_eq!(drawn, [1; 8]);
    // With nobody else there is nobody to rest for.
    let alone = snapshot_of(&[(1, 1); 8], &[]);
    assert_eq!(plan_of(&mut policy, &alone).running_chunk, [1; 8]);
}

#[test]
fn a_greedy_tenants_prompts_wait_for_anothers_and_no_longer() {
    let mut policy = TenantFair::default();
    // Tenant 1 has drawn tokens, and is in the midst of a prompt when tenant 2 comes.
    let mut snapshot = snapshot_of(&[(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 20)], &[2]);
    let plan = plan_of(&mut policy, &snapshot);
    assert!(plan.admit == [0] && plan.running_chunk[5] == 0, "{plan:?}");
    // Tenant 2 has its part; once it decodes, tenant 1's prompt goes on.
    snapshot = snapshot_of(&[(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 20), (2, 1)], &[]);
    assert_eq!(plan_of(&mut policy, &snapshot).running_chunk, [1, 1, 1, 1, 1, 20, 1]);
}

#[test]
fn a_greedy_tenants_steps_are_short_while_others_may_come_back() {
    let flood = || snapshot_of(&[(1, 1000), (1, 1000), (1, 1000), (1, 1000), (1, 1000), (1, 1000)], &[1; 8]);
    let rows = |policy: &mut TenantFair, snapshot: &Snapshot| {
        let plan = plan_of(policy, snapshot);
        plan.running_chunk.iter().chain(&plan.admit_chunk).sum::<u32>()
    };
    let mut policy = TenantFair::default();
    // Nobody else was ever there: 9 ms for rows of 100 us.
    assert_eq!(rows(&mut policy, &flood()), 90);
    plan_of(&mut policy, &snapshot_of(&[(1, 1), (2, 1)], &[]));
    assert_eq!(rows(&mut policy, &flood()), 40, "half of the target time, less what a step costs anyway");
    let mut later = flood();
    later.step.now_us = 3_600_000_000;
    assert_eq!(rows(&mut policy, &later), 90, "the others have not come for an hour");
}

/// Those who run with tenant and what is left of their prompt, and tenants who wait.
fn snapshot_of(running: &[(u32, u32)], waiting: &[u32]) -> Snapshot {
    let step = Step {
        token_budget: 512,
        max_running: 10,
        kv_free: 10_000,
        fixed_us: 1000,
        row_us: 100,
        output_us: 50,
        target_step_us: 10_000,
        mixes_adapters: true,
        ..Step::default()
    };
    let mut snapshot = Snapshot { step, ..Snapshot::default() };
    for (row, &(tenant, left)) in running.iter().enumerate() {
        let table = &mut snapshot.running;
        table.id.push(row as u64 + 1);
        table.prompt_left.push(left);
        table.generated.push(1);
        table.max_new.push(64);
        table.kv.push(50);
        table.slack_us.push(NO_DEADLINE);
        table.priority.push(128);
        table.tenant.push(tenant);
        table.adapter.push(0);
    }
    for (row, &tenant) in waiting.iter().enumerate() {
        let table = &mut snapshot.waiting;
        table.id.push(row as u64 + 100);
        table.age_us.push(0);
        table.prompt_left.push(50);
        table.cached.push(0);
        table.pending.push(0);
        table.kv_need.push(50);
        table.max_new.push(8);
        table.slack_us.push(NO_DEADLINE);
        table.priority.push(128);
        table.tenant.push(tenant);
        table.adapter.push(0);
        table.adapter_tier.push(2);
    }
    snapshot
}

#[test]
fn two_who_want_all_get_half_each() {
    let mut rig = Rig::default();
    rig.step.max_running = 2;
    // The second comes later and asks in larger pieces.
    let one = (0..300).map(|_| Arrival { tenant: 1, prompt: 30, new: 10, ..Arrival::default() });
    let two = (0..75).map(|_| Arrival { tenant: 2, prompt: 120, new: 40, ..Arrival::default() });
    let arrivals: Vec<Arrival> = one.chain(two).collect();
    let served = rig.serve(&mut TenantFair::default(), &arrivals);
    // Both want the same in all, so they end at about the same time.
    let end = |tenant: u32| {
        let own = arrivals.iter().zip(&served).filter(|(arrival, _)| arrival.tenant == tenant);
        own.filter_map(|(_, served)| served.total_us).max().unwrap()
    };
    let (one, two) = (end(1), end(2));
    assert!(one.abs_diff(two) * 20 < one.max(two), "{one} us and {two} us");
}

#[test]
fn idling_saves_up_no_claim() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    // Tenant 1 works alone for a while; tenant 2 comes late with a flood.
    let early = (0..100).map(|n| Arrival { at_us: n * 20_000, tenant: 1, new: 4, ..Arrival::default() });
    let late = (0..400).map(|_| Arrival { at_us: 2_000_000, tenant: 2, new: 4, ..Arrival::default() });
    let same = (0..400).map(|_| Arrival { at_us: 2_000_000, tenant: 1, new: 4, ..Arrival::default() });
    let arrivals: Vec<Arrival> = early.chain(late).chain(same).collect();
    let served = rig.serve(&mut TenantFair::default(), &arrivals);
    let last =
        |rows: std::ops::Range<usize>| served[rows].iter().filter_map(|row| row.total_us).max().unwrap();
    let (two, one) = (last(100..500), last(500..900));
    assert!(one.abs_diff(two) * 10 < one.max(two), "{one} us and {two} us");
}

#[test]
fn one_tenant_alone_has_the_whole_node() {
    let rig = Rig::default();
    let arrivals: Vec<Arrival> = (0..8).map(|_| Arrival { new: 50, ..Arrival::default() }).collect();
    let served = rig.serve(&mut TenantFair::default(), &arrivals);
    // All eight places at once: nobody waits for another's end.
    assert!(served.iter().all(|served| served.ttft_us < Some(60_000) && served.paused == 0));
}

#[test]
fn counters_outlive_an_instance() {
    let mut policy = TenantFair::default();
    let arrivals = load(&[(1, 20_000), (2, 40_000)], 400_000);
    Rig::default().serve(&mut policy, &arrivals);
    let saved = policy.save();
    let mut next = TenantFair::default();
    next.init(Some(&saved)).unwrap();
    assert!(saved.len() > 4);
    assert_eq!(next.save(), saved);
}
