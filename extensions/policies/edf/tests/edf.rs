//! More deadlines met than by order of arrival, urgent ones in time, nobody forgotten.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_edf::Edf;
use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_testing::rig::{Arrival, Rig, Served};
use quern_policy_testing::{plan_of, snapshots};

proptest! {
    #[test]
    fn plans_keep_the_rules(seen in vec(snapshots(), 1..6)) {
        let mut policy = Edf::default();
        for snapshot in seen {
            plan_of(&mut policy, &snapshot);
        }
    }

    #[test]
    fn garbage_from_save_is_survived(saved in vec(any::<u8>(), 0..64)) {
        prop_assert!(Edf::default().init(Some(&saved)).is_ok());
    }
}

/// Arrives in order of time, as numbers without a pattern would have it.
fn crowd(seed: u64, count: u64, every_us: u64) -> Vec<Arrival> {
    let mut state = seed;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let one = |n| Arrival {
        at_us: n * every_us + draw(every_us),
        prompt: 20 + draw(200) as u32,
        new: 40 + draw(80) as u32,
        deadline_us: Some(400_000 + draw(800_000)),
        ..Arrival::default()
    };
    (0..count).map(one).collect()
}

fn met(arrivals: &[Arrival], served: &[Served]) -> usize {
    let in_time = |(arrival, served): &(&Arrival, &Served)| served.total_us <= arrival.deadline_us;
    arrivals.iter().zip(served).filter(|(_, served)| served.total_us.is_some()).filter(in_time).count()
}

/// What the node does without a policy: in order of arrival.
#[derive(Default)]
struct Fcfs;

impl Policy for Fcfs {}

impl SchedulerPolicy for Fcfs {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        let mut plan = PlanBuilder::new(step, waiting, running, None);
        plan.serve(|row| running.id[row], |row| waiting.id[row]);
        Ok(Some(plan.finish()))
    }
}

/// A policy that was told how long answers are.
fn experienced(new_tokens: u32) -> Edf {
    let mut policy = Edf::default();
    policy.observe(&Completed {
        id: vec![1],
        tenant: vec![1],
        outcome: vec![Outcome::Finished],
        prompt_tokens: vec![100],
        new_tokens: vec![new_tokens],
        queue_us: vec![0],
        ttft_us: vec![0],
    });
    policy
}

#[test]
fn with_too_much_to_do_it_meets_more_deadlines_than_order_of_arrival() {
    let mut rig = Rig::default();
    rig.step.max_running = 4;
    let (mut first_come, mut earliest) = (0, 0);
    for seed in 1..=5 {
        // One and a half times what four places can do.
        let arrivals = crowd(seed, 400, 42_000);
        first_come += met(&arrivals, &rig.serve(&mut Fcfs, &arrivals));
        earliest += met(&arrivals, &rig.serve(&mut experienced(80), &arrivals));
    }
    assert!(2 * earliest >= 3 * first_come, "{earliest} against {first_come} of 2000");
}

#[test]
fn an_urgent_request_pauses_who_has_time() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    let patient = Arrival { new: 500, deadline_us: Some(60_000_000), ..Arrival::default() };
    let urgent = Arrival { at_us: 20_000, deadline_us: Some(150_000), ..Arrival::default() };
    let served = rig.serve(&mut experienced(16), &[patient, urgent]);
    assert_eq!(met(&[patient, urgent], &served), 2);
    assert_eq!((served[0].paused, served[1].paused), (1, 0));
}

#[test]
fn who_is_late_anyway_does_not_make_others_late() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    // The first needs longer than it has; served first, it would cost the second its deadline.
    let hopeless = Arrival { prompt: 3000, deadline_us: Some(200_000), ..Arrival::default() };
    let modest = Arrival { prompt: 50, deadline_us: Some(250_000), ..Arrival::default() };
    let arrivals = [hopeless, modest];
    let served = rig.serve(&mut experienced(16), &arrivals);
    assert!(served[1].total_us.unwrap() <= 250_000);
}

#[test]
fn who_has_no_deadline_is_served_among_those_who_have() {
    let mut rig = Rig::default();
    rig.step.max_running = 1;
    stand_in::set_config("background-deadline-ms", "2000");
    let mut policy = experienced(16);
    policy.init(None).unwrap();
    let patient = Arrival { new: 4, ..Arrival::default() };
    let others = (0..400).map(|n| Arrival {
        at_us: n * 10_000,
        new: 4,
        deadline_us: Some(1_000_000),
        ..Arrival::default()
    });
    let arrivals: Vec<Arrival> = std::iter::once(patient).chain(others).collect();
    let served = rig.serve(&mut policy, &arrivals);
    assert!(served[0].ttft_us.unwrap() < 2_500_000, "{:?}", served[0]);
}

#[test]
fn the_learned_length_outlives_an_instance() {
    let saved = experienced(16).save();
    let mut next = Edf::default();
    next.init(Some(&saved)).unwrap();
    assert_eq!(next.save(), saved);
}
