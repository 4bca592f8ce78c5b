//! First come, first served, and plans that keep the rules.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_fcfs::Fcfs;
use quern_policy_sdk::{Policy, stand_in};
use quern_policy_testing::rig::{Arrival, Rig};
use quern_policy_testing::{plan_of, snapshots};

proptest! {
    #[test]
    fn plans_keep_the_rules(seen in vec(snapshots(), 1..6)) {
        let mut policy = Fcfs::default();
        for snapshot in seen {
            plan_of(&mut policy, &snapshot);
        }
    }
}

#[test]
fn starts_in_order_of_arrival_whatever_the_size() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    let prompts = [900, 10, 400, 20];
    let arrivals = prompts.map(|prompt| Arrival { prompt, ..Arrival::default() });
    let served = rig.serve(&mut Fcfs::default(), &arrivals);
    assert!(served.is_sorted_by_key(|served| served.ttft_us));
}

#[test]
fn the_more_urgent_goes_first_and_pauses_others() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    let low = Arrival { priority: 1, new: 200, ..Arrival::default() };
    let high = Arrival { at_us: 50_000, priority: 200, ..Arrival::default() };
    let served = rig.serve(&mut Fcfs::default(), &[low, high]);
    assert_eq!(served[0].paused, 1);
    assert!(served[1].total_us < served[0].total_us);
}

#[test]
fn priorities_can_be_switched_off() {
    stand_in::set_config("priorities", "false");
    let mut policy = Fcfs::default();
    policy.init(None).unwrap();
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    let low = Arrival { priority: 1, new: 200, ..Arrival::default() };
    let high = Arrival { at_us: 50_000, priority: 200, ..Arrival::default() };
    let served = rig.serve(&mut policy, &[low, high]);
    assert_eq!(served[0].paused, 0);
    assert!(served[0].total_us < served[1].ttft_us.map(|ttft| ttft + 50_000));
}

#[test]
fn a_setting_that_makes_no_sense_refuses_the_policy() {
    stand_in::set_config("quantum-steps", "none");
    let refused = Fcfs::default().init(None).unwrap_err();
    assert!(refused.contains("quantum-steps"), "{refused}");
}
