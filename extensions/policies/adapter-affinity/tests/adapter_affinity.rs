//! Few changes of adapter, nobody starved, and plans that keep the rules.

use std::cell::RefCell;

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_adapter_affinity::AdapterAffinity;
use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_testing::rig::{Arrival, Rig};
use quern_policy_testing::{Snapshot, plan_of, snapshots};

proptest! {
    #[test]
    fn plans_keep_the_rules(seen in vec(snapshots(), 1..6)) {
        let mut policy = AdapterAffinity::default();
        for snapshot in seen {
            plan_of(&mut policy, &snapshot);
        }
    }

    #[test]
    fn everybody_is_served_whatever_comes(adapters in vec(0..5u32, 1..60)) {
        let arrivals: Vec<Arrival> = adapters.iter().enumerate().map(|(n, &adapter)| Arrival {
            at_us: n as u64 * 3000,
            adapter,
            ..Arrival::default()
        }).collect();
        let served = one_adapter_a_step().serve(&mut AdapterAffinity::default(), &arrivals);
        prop_assert!(served.iter().all(|served| served.total_us.is_some()));
    }
}

fn one_adapter_a_step() -> Rig {
    let mut rig = Rig::default();
    rig.step.mixes_adapters = false;
    rig
}

/// Notes which adapter each step serves.
#[derive(Default)]
struct Watched {
    policy: AdapterAffinity,
    steps: RefCell<Vec<u32>>,
}

impl Policy for Watched {}

impl SchedulerPolicy for Watched {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        let plan = self.policy.plan(step, waiting, running)?;
        self.steps.get_mut().extend(plan.as_ref().and_then(|plan| plan.adapter));
        Ok(plan)
    }
}

fn watched(quantum: &str, patience_ms: &str) -> Watched {
    stand_in::set_config("quantum-steps", quantum);
    stand_in::set_config("patience-ms", patience_ms);
    let mut policy = AdapterAffinity::default();
    policy.init(None).expect("the settings make sense");
    Watched { policy, ..Watched::default() }
}

/// Two adapters with work all the time.
fn busy() -> Vec<Arrival> {
    (0..40).map(|n| Arrival { adapter: n % 2, new: 20, ..Arrival::default() }).collect()
}

fn changes(steps: &[u32]) -> usize {
    steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn a_longer_quantum_changes_adapters_less_often() {
    let run = |quantum: &str| {
        let mut policy = watched(quantum, "500");
        one_adapter_a_step().serve(&mut policy, &busy());
        changes(policy.steps.get_mut())
    };
    let (short, long) = (run("2"), run("20"));
    assert!(long * 4 < short, "{long} changes and {short}");
}

#[test]
fn a_rare_adapter_is_served_within_its_patience() {
    let mut policy = watched("4", "100");
    // Two crowded adapters, and one request of a third.
    let crowd = (0..200).map(|n| Arrival { at_us: n * 2000, adapter: n as u32 % 2, ..Arrival::default() });
    let mut arrivals: Vec<Arrival> = crowd.collect();
    arrivals.insert(100, Arrival { at_us: 198_000, adapter: 2, new: 1, ..Arrival::default() });
    let served = one_adapter_a_step().serve(&mut policy, &arrivals);
    // Its patience, then at most a turn of each of the others.
    let bound_us = 100_000 + 2 * 4 * 20_000;
    assert!(served[100].ttft_us.unwrap() < bound_us, "{:?}", served[100]);
}

#[test]
fn where_adapters_mix_those_at_hand_start_first() {
    let mut snapshot = Snapshot { step: Rig::default().step, ..Snapshot::default() };
    snapshot.step.max_running = 1;
    snapshot.step.kv_free = 8192;
    let table = &mut snapshot.waiting;
    for (id, tier) in [(1, 0), (2, 2)] {
        table.id.push(id);
        table.age_us.push(1000);
        table.prompt_left.push(32);
        table.cached.push(0);
        table.pending.push(0);
        table.kv_need.push(32);
        table.max_new.push(8);
        table.slack_us.push(NO_DEADLINE);
        table.priority.push(128);
        table.tenant.push(1);
        table.adapter.push(id as u32);
        table.adapter_tier.push(tier);
    }
    assert_eq!(plan_of(&mut AdapterAffinity::default(), &snapshot).admit, [1]);
    // Past its patience, the one on disk comes first.
    snapshot.waiting.age_us[0] = 2_000_000;
    assert_eq!(plan_of(&mut AdapterAffinity::default(), &snapshot).admit, [0]);
}
