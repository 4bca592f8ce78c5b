//! A loop with a toy engine: the target is held, and room is used.

use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_tbt_target::TbtTarget;

const TARGET_US: u32 = 50_000;

fn policy() -> TbtTarget {
    stand_in::set_config("target-ms", "50");
    let mut policy = TbtTarget::default();
    policy.init(None).expect("the settings make sense");
    policy
}

fn tune(policy: &mut TbtTarget, load: &NodeLoad) -> Limits {
    policy.tune(load).expect("it failed").expect("it had no opinion")
}

fn busy(tpot_p95_us: u32, running: u32) -> NodeLoad {
    NodeLoad {
        waiting: 50,
        waiting_tokens: 20_000,
        running,
        tpot_p95_us,
        token_budget: 512,
        max_running: 32,
        ..NodeLoad::default()
    }
}

/// A node whose steps overshoot their limit by a third, and which takes so long
/// for each stream.
fn settle(policy: &mut TbtTarget, stream_us: u32) -> (Limits, u32) {
    let mut limits = tune(policy, &busy(0, 32));
    let mut measured = 0;
    for _ in 0..400 {
        let streams = limits.max_running.min(32) * stream_us;
        measured = streams.max(limits.target_step_us * 4 / 3);
        limits = tune(policy, &busy(measured, limits.max_running.min(32)));
    }
    (limits, measured)
}

#[test]
fn steps_that_overshoot_are_brought_under_the_target() {
    let (limits, measured) = settle(&mut policy(), 100);
    assert!(measured <= TARGET_US * 11 / 10, "{measured}");
    assert!(measured >= TARGET_US / 2, "room is left unused: {measured}");
    assert_eq!(limits.max_running, 32);
}

#[test]
fn too_many_streams_become_fewer() {
    let (limits, measured) = settle(&mut policy(), 4000);
    assert!(limits.max_running <= 14 && limits.max_running >= 6, "{limits:?}");
    assert!(measured <= TARGET_US * 12 / 10, "{measured}");
}

#[test]
fn streams_come_back_when_there_is_room() {
    let mut policy = policy();
    settle(&mut policy, 4000);
    let (limits, _) = settle(&mut policy, 100);
    assert_eq!(limits.max_running, 32);
}

#[test]
fn without_measurements_nothing_moves() {
    let mut policy = policy();
    let first = policy.tune(&busy(0, 0)).unwrap();
    for _ in 0..20 {
        assert_eq!(policy.tune(&busy(0, 0)).unwrap(), first);
    }
    assert_eq!(first.map(|limits| limits.target_step_us), Some(TARGET_US));
}

#[test]
fn what_it_does_not_set_stays_as_it_was() {
    let load = NodeLoad { wait_window_us: 777, ..busy(40_000, 4) };
    let limits = policy().tune(&load).unwrap().unwrap();
    assert_eq!((limits.token_budget, limits.max_running, limits.wait_window_us), (512, 32, 777));
}
