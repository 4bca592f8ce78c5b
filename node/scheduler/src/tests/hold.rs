//! Plans that are held: how often the planner is asked, and that answers are
//! the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::harness::{Bench, Holding, Stream, greedy, prompt};
use crate::plan::{Plan, Planner, Snapshot};
use crate::request::Failure;
use crate::{Limits, Outcome, SchedulerConfig};

fn bench(planner: Holding) -> (Bench, Arc<AtomicUsize>) {
    let asked = Arc::clone(&planner.asked);
    let config = SchedulerConfig { target_step: Duration::ZERO, ..SchedulerConfig::default() };
    (Bench::with(Bench::tiny(1024, 8), config, Some(Box::new(planner)), None), asked)
}

#[test]
fn nobody_is_asked_while_the_same_sequences_decode() {
    let (mut bench, asked) = bench(Holding::steps(1000));
    let streams = [bench.ask(&prompt(1, 20), 40), bench.ask(&prompt(2, 20), 40)];
    bench.run(41);
    // To start them, and once more when they began to decode; that holds to the end.
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    for (stream, salt) in streams.iter().zip(1..) {
        assert_eq!(stream.tokens(), bench.expected(quern_engine::AdapterId::BASE, &prompt(salt, 20), 40));
    }
}

#[test]
fn a_plan_is_held_for_as_many_steps_as_it_says() {
    let (mut bench, asked) = bench(Holding::steps(3));
    bench.ask(&prompt(1, 20), 42);
    bench.turn();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // One that is asked, and three that are not.
    (0..40).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 1 + 10);
}

#[test]
fn a_prompt_goes_on_with_its_chunk_until_it_decodes() {
    let (mut bench, asked) = bench(Holding::steps(100));
    // 64 rows a step: four steps for the prompt, planned once.
    let stream = bench.ask(&prompt(1, 250), 6);
    bench.run(10);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(stream.tokens().len(), 6);
}

#[test]
fn who_comes_or_goes_is_planned_for_at_once() {
    let (mut bench, asked) = bench(Holding::steps(1000));
    let first = bench.ask(&prompt(1, 20), 200);
    (0..5).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let second = bench.ask(&prompt(2, 20), 200);
    bench.turn();
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert!(!second.tokens().is_empty(), "it started in the step in which it came");
    (0..5).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    first.hang_up();
    bench.turn();
    assert_eq!(asked.load(Ordering::Relaxed), 5);
    (0..5).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 5);
    // Other limits are another question.
    let limits = Limits { token_budget: 32, ..bench.handle.pace().limits };
    bench.handle.set_limits(limits).unwrap();
    bench.turn();
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[test]
fn a_planner_that_was_replaced_is_asked_again() {
    let planner = Holding::steps(1000);
    let stands = Arc::clone(&planner.stands);
    let (mut bench, asked) = bench(planner);
    bench.ask(&prompt(1, 20), 100);
    (0..5).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    stands.store(false, Ordering::Relaxed);
    (0..3).for_each(|_| bench.turn());
    assert_eq!(asked.load(Ordering::Relaxed), 5);
}

/// Holds a plan that leaves everybody standing.
struct Idle(Arc<AtomicBool>);

impl Planner for Idle {
    fn name(&self) -> &str {
        "idle"
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        self.0.store(true, Ordering::Relaxed);
        let running_chunk = vec![0; snapshot.running.id.len()];
        Some(Plan { running_chunk, hold_steps: u32::MAX, ..Plan::default() })
    }
}

#[test]
fn a_plan_that_does_nothing_is_not_held() {
    let asked = Arc::new(AtomicBool::new(false));
    let planner = Box::new(Idle(Arc::clone(&asked)));
    let mut bench = Bench::with(Bench::tiny(1024, 8), SchedulerConfig::default(), Some(planner), None);
    let stream = bench.ask(&prompt(1, 20), 10);
    bench.run(60);
    assert!(asked.load(Ordering::Relaxed));
    assert_eq!(stream.tokens().len(), 10);
}

#[test]
fn who_leaves_is_told_of_with_what_became_of_it() {
    let mut bench = Bench::new(Bench::tiny(1024, 8), SchedulerConfig::default());
    let (to, completions) = sync_channel(16);
    bench.handle.report(to).unwrap();
    bench.ask(&prompt(1, 20), 3);
    let gone = bench.ask(&prompt(2, 30), 100);
    let satisfied = bench.ask(&prompt(4, 10), 100);
    (0..3).for_each(|_| bench.turn());
    gone.hang_up();
    satisfied.is_content();
    let late = bench.ask(&prompt(3, 40), 5);
    late.hang_up();
    bench.run(20);
    let mut told: Vec<_> = completions.try_iter().collect();
    told.sort_by_key(|completion| completion.id);
    let row = |idx: usize| (told[idx].outcome, told[idx].prompt_tokens);
    assert_eq!(told.len(), 4);
    assert_eq!((row(0), told[0].new_tokens), ((Outcome::Finished, 20), 3));
    assert_eq!(row(1), (Outcome::Cancelled, 30));
    assert_eq!(row(2), (Outcome::Finished, 10));
    assert_eq!((row(3), told[3].new_tokens), ((Outcome::Cancelled, 40), 0));
    assert!(told[0].first_token >= told[0].queued && told[3].first_token.is_zero());

    // A deadline that passed.
    let expired = Stream::default();
    let mut request = bench.request(&prompt(5, 10), greedy(&[&expired], 5));
    request.deadline = Some(request.arrived);
    bench.submit(request);
    bench.turn();
    assert_eq!(expired.failure(), Some(Failure::Expired));
    assert_eq!(completions.try_recv().unwrap().outcome, Outcome::Expired);
    assert!(completions.try_recv().is_err());
}

#[test]
fn nobody_waits_for_who_does_not_listen() {
    let mut bench = Bench::new(Bench::tiny(1024, 8), SchedulerConfig::default());
    let (to, completions) = sync_channel(2);
    bench.handle.report(to).unwrap();
    for salt in 0..5 {
        bench.ask(&prompt(salt, 10), 2);
    }
    bench.run(20);
    assert_eq!(completions.try_iter().count(), 2);
    drop(completions);
    bench.ask(&prompt(1, 10), 2);
    bench.run(20);
}
