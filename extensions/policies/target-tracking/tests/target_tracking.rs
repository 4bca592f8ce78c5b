//! Up at once, down with patience, to zero and back.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_target_tracking::TargetTracking;

/// Intervals of ten seconds: arrivals, sequences and share of time busy.
fn window(rows: &[(u32, u32, u32)]) -> Window {
    let column = |value: fn(&(u32, u32, u32)) -> u32| rows.iter().map(value).collect::<Vec<u32>>();
    Window {
        interval_ms: 10_000,
        arrivals: column(|row| row.0),
        rejected: vec![0; rows.len()],
        waiting: column(|row| row.1 / 2),
        running: column(|row| row.1 - row.1 / 2),
        busy_permille: column(|row| row.2),
        kv_used_permille: vec![100; rows.len()],
        ttft_p95_ms: vec![100; rows.len()],
        tpot_p95_us: vec![20_000; rows.len()],
        power_mw: vec![0; rows.len()],
    }
}

fn ready(ready: u32) -> Replicas {
    Replicas { ready, min: 0, max: 8, start_ms: 5000, ..Replicas::default() }
}

fn desired(policy: &mut TargetTracking, window: &Window, replicas: &Replicas) -> u32 {
    let target = policy.evaluate(window, replicas).expect("it failed").expect("it had no opinion");
    assert!(!target.reason.is_empty());
    target.desired
}

const BUSY: (u32, u32, u32) = (50, 4, 650);
const IDLE: (u32, u32, u32) = (0, 0, 0);

proptest! {
    #[test]
    fn the_wish_is_always_within_bounds(
        rows in vec((any::<u32>(), 0..10_000u32, 0..2000u32), 1..40),
        (few, more, most, starting) in (0..4u32, 0..4u32, 0..9u32, 0..4u32),
    ) {
        let replicas = Replicas { ready: most, starting, min: few, max: few + more, ..Replicas::default() };
        let wish = desired(&mut TargetTracking::default(), &window(&rows), &replicas);
        prop_assert!((few..=few + more).contains(&wish));
    }

    #[test]
    fn more_load_never_asks_for_fewer(
        (sequences, busy, count) in (0..200u32, 0..1000u32, 1..8u32),
        (more_sequences, more_busy) in (0..200u32, 0..300u32),
    ) {
        let less = window(&[(10, sequences, busy); 20]);
        let more = window(&[(10, sequences + more_sequences, busy + more_busy); 20]);
        let of = |window: &Window| desired(&mut TargetTracking::default(), window, &ready(count));
        prop_assert!(of(&less) <= of(&more));
    }
}

#[test]
fn a_target_that_is_met_moves_nothing() {
    assert_eq!(desired(&mut TargetTracking::default(), &window(&[BUSY; 30]), &ready(3)), 3);
}

#[test]
fn a_queue_raises_the_number_at_once() {
    let mut rows = [BUSY; 30];
    rows[29] = (300, 80, 1000);
    assert_eq!(desired(&mut TargetTracking::default(), &window(&rows), &ready(2)), 5);
    // Those that start already are not asked for again.
    let replicas = Replicas { starting: 3, ..ready(2) };
    assert_eq!(desired(&mut TargetTracking::default(), &window(&rows), &replicas), 5);
}

#[test]
fn it_goes_down_only_after_the_whole_time() {
    let low = (5, 2, 100);
    let mut rows = [low; 30];
    // Busy 100 seconds ago: too recent.
    rows[20] = BUSY;
    assert_eq!(desired(&mut TargetTracking::default(), &window(&rows), &ready(4)), 4);
    rows[20] = low;
    rows[10] = BUSY;
    assert_eq!(desired(&mut TargetTracking::default(), &window(&rows), &ready(4)), 1);
}

#[test]
fn a_short_window_is_made_up_for_by_memory() {
    stand_in::reset();
    let mut policy = TargetTracking::default();
    let low = window(&[(5, 2, 100); 3]);
    assert_eq!(desired(&mut policy, &low, &ready(4)), 4);
    stand_in::set_now_us(119_000_000);
    assert_eq!(desired(&mut policy, &low, &ready(4)), 4);
    stand_in::set_now_us(120_000_000);
    assert_eq!(desired(&mut policy, &low, &ready(4)), 1);
}

#[test]
fn to_zero_and_back() {
    stand_in::reset();
    let mut policy = TargetTracking::default();
    let idle = window(&[IDLE; 60]);
    assert_eq!(desired(&mut policy, &idle, &ready(1)), 0);
    assert_eq!(desired(&mut policy, &idle, &ready(0)), 0);
    let mut rows = [IDLE; 60];
    rows[59] = (1, 1, 0);
    assert_eq!(desired(&mut policy, &window(&rows), &ready(0)), 1);
    // A request within the last ten minutes keeps one.
    let mut rows = [IDLE; 60];
    rows[5] = (1, 0, 1);
    assert_eq!(desired(&mut policy, &window(&rows), &ready(1)), 1);
}

#[test]
fn an_empty_window_is_no_opinion() {
    let answer = TargetTracking::default().evaluate(&Window::default(), &ready(2));
    assert_eq!(answer, Ok(None));
}

#[test]
fn a_late_first_token_asks_for_more_where_that_is_a_target() {
    stand_in::reset();
    stand_in::set_config("target-ttft-ms", "50");
    let mut policy = TargetTracking::default();
    policy.init(None).unwrap();
    assert_eq!(desired(&mut policy, &window(&[BUSY; 30]), &ready(2)), 3);
}
