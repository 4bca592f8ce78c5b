//! Short ones first, long ones not for ever last, and plans that keep the rules.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::{Policy, stand_in};
use quern_policy_shortest_prefill::ShortestPrefill;
use quern_policy_testing::rig::{Arrival, Rig};
use quern_policy_testing::{Snapshot, plan_of, snapshots};

proptest! {
    #[test]
    fn plans_keep_the_rules(seen in vec(snapshots(), 1..6)) {
        let mut policy = ShortestPrefill::default();
        for snapshot in seen {
            plan_of(&mut policy, &snapshot);
        }
    }
}

fn with_ageing(tokens_per_s: &str) -> ShortestPrefill {
    stand_in::set_config("ageing-tokens-per-s", tokens_per_s);
    let mut policy = ShortestPrefill::default();
    policy.init(None).expect("the settings make sense");
    policy
}

/// A long prompt, and short ones that come as fast as they are served.
fn long_among_short() -> Vec<Arrival> {
    let long = Arrival { prompt: 2000, new: 1, ..Arrival::default() };
    let short = (0..1500).map(|n| Arrival { at_us: n * 8000, prompt: 60, new: 1, ..Arrival::default() });
    std::iter::once(long).chain(short).collect()
}

fn one_at_a_time() -> Rig {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    rig
}

#[test]
fn the_shortest_starts_first() {
    let prompts = [900, 10, 400, 20];
    let arrivals = prompts.map(|prompt| Arrival { prompt, ..Arrival::default() });
    let served = one_at_a_time().serve(&mut ShortestPrefill::default(), &arrivals);
    let ttft = |row: usize| served[row].ttft_us.unwrap();
    assert!(ttft(1) < ttft(3) && ttft(3) < ttft(2) && ttft(2) < ttft(0));
}

#[test]
fn without_ageing_a_long_prompt_waits_for_the_end() {
    let arrivals = long_among_short();
    let served = one_at_a_time().serve(&mut with_ageing("0"), &arrivals);
    let last = arrivals.last().unwrap().at_us;
    assert!(served[0].ttft_us.unwrap() > last);
}

#[test]
fn ageing_bounds_the_wait_of_a_long_prompt() {
    let served = one_at_a_time().serve(&mut with_ageing("1000"), &long_among_short());
    // 2000 tokens at 1000 a second, then whoever is ahead, then its own prefill.
    let bound_us = 2_000_000 + 2_000 * 100 + 500_000;
    assert!(served[0].ttft_us.unwrap() < bound_us, "{:?}", served[0]);
}

#[test]
fn what_is_cached_is_no_work() {
    let mut snapshot = Snapshot { step: Rig::default().step, ..Snapshot::default() };
    snapshot.step.kv_free = 8192;
    snapshot.step.max_running = 1;
    let table = &mut snapshot.waiting;
    for (id, cached) in [(1, 0), (2, 950)] {
        table.id.push(id);
        table.age_us.push(0);
        table.prompt_left.push(if id == 1 { 100 } else { 1000 });
        table.cached.push(cached);
        table.pending.push(cached);
        table.kv_need.push(1000);
        table.max_new.push(8);
        table.slack_us.push(i32::MAX);
        table.priority.push(128);
        table.tenant.push(1);
        table.adapter.push(0);
        table.adapter_tier.push(2);
    }
    assert_eq!(plan_of(&mut ShortestPrefill::default(), &snapshot).admit, [1]);
}
