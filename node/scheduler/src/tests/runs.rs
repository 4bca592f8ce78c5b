//! One behaviour a test.

use std::time::{Duration, Instant};

use quern_engine::AdapterId;
use quern_engine::fake::FakeConfig;

use super::harness::{Bench, Stream, greedy, prompt};
use crate::draft::{Drafter, PromptLookup};
use crate::plan::{Plan, Planner, Snapshot};
use crate::request::{Event, Failure, FinishReason, Pooling, Work};
use crate::{Limits, Preemption, Refused, SchedulerConfig};

#[test]
fn greedy_tokens_are_those_of_the_engine_alone() {
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let prompts: Vec<_> = (0..9).map(|salt| prompt(salt, 5 + 40 * salt as usize)).collect();
    let streams: Vec<_> = prompts.iter().map(|prompt| bench.ask(prompt, 20)).collect();
    bench.run(200);
    for (prompt, stream) in prompts.iter().zip(&streams) {
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, prompt, 20));
        assert_eq!(stream.finish(), Some(FinishReason::Length));
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_those_who_decode() {
    let config = SchedulerConfig { token_budget: 32, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    let stream = bench.ask(&prompt(1, 8), 30);
    bench.turn();
    let long = bench.ask(&prompt(2, 600), 1);
    for step in 1..=15 {
        bench.turn();
        assert_eq!(stream.tokens().len(), 1 + step, "one token in every step");
    }
    assert!(long.tokens().is_empty());
    bench.run(100);
    assert_eq!(long.tokens(), bench.expected(AdapterId::BASE, &prompt(2, 600), 1));
}

#[test]
fn a_finished_prompt_is_reused_and_another_adapters_is_not() {
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let shared = prompt(3, 100);
    let first = bench.ask(&shared, 4);
    bench.run(20);
    let mut longer = shared.clone();
    longer.extend([1, 2, 3]);
    let second = bench.ask(&longer, 4);
    let third = Stream::default();
    let mut request = bench.request(&longer, greedy(&[&third], 4));
    request.adapter = AdapterId(1);
    bench.submit(request);
    bench.run(20);
    assert_eq!(first.cached(), Some(0));
    assert_eq!(second.cached(), Some(100));
    assert_eq!(third.cached(), Some(0));
    assert_eq!(second.tokens(), bench.expected(AdapterId::BASE, &longer, 4));
    assert_eq!(third.tokens(), bench.expected(AdapterId(1), &longer, 4));
}

#[test]
fn a_prompt_that_is_being_computed_is_waited_for_and_shared() {
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let shared = prompt(4, 200);
    let asks: Vec<Vec<u32>> = (0..8).map(|tail| [shared.clone(), vec![tail, tail + 1]].concat()).collect();
    let streams: Vec<_> = asks.iter().map(|ask| bench.ask(ask, 3)).collect();
    bench.run(40);
    let cached: u32 = streams.iter().filter_map(Stream::cached).sum();
    assert_eq!(cached, 7 * 200, "all but the first share the prefix");
    for (ask, stream) in asks.iter().zip(&streams) {
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, ask, 3));
    }
}

#[test]
fn choices_share_their_prompt() {
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let streams: Vec<_> = (0..4).map(|_| Stream::default()).collect();
    let prompt = prompt(5, 120);
    let work = greedy(&streams.iter().collect::<Vec<_>>(), 6);
    let request = bench.request(&prompt, work);
    bench.submit(request);
    bench.run(40);
    for stream in &streams {
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, &prompt, 6));
    }
    let computed: u32 = streams.iter().filter_map(Stream::cached).map(|cached| 120 - cached).sum();
    assert_eq!(computed, 120 + 3, "the prompt once, and its last token for each other choice");
    assert_eq!(bench.handle.load().queued, 0);
}

#[test]
fn a_hang_up_frees_the_sequence_before_the_next_step() {
    let config = SchedulerConfig { prefix_cache: false, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    let stream = bench.ask(&prompt(6, 50), 100);
    bench.turn();
    assert!(bench.scheduler.cache.used() > 0);
    stream.hang_up();
    assert!(bench.scheduler.ingest_now());
    assert_eq!(bench.scheduler.cache.used(), 0);
    assert!(bench.handle.is_idle());
}

#[test]
fn a_queued_request_past_its_deadline_fails_and_a_running_one_goes_on() {
    let config = SchedulerConfig { max_running: 1, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    let running = bench.ask(&prompt(7, 10), 5);
    bench.turn();
    let queued = Stream::default();
    let mut request = bench.request(&prompt(8, 10), greedy(&[&queued], 5));
    request.deadline = Some(Instant::now());
    bench.submit(request);
    bench.run(20);
    assert_eq!(queued.failure(), Some(Failure::Expired));
    assert_eq!(running.tokens().len(), 5);
}

#[test]
fn the_queue_is_bounded_and_says_when_to_come_back() {
    let config = SchedulerConfig { max_queued: 3, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    let permits: Vec<_> = (0..3).map(|_| bench.handle.reserve().unwrap()).collect();
    match bench.handle.reserve() {
        Err(Refused::Full { queued: 3, retry_after }) => assert!(retry_after > Duration::ZERO),
        other => panic!("{other:?}"),
    }
    drop(permits);
    bench.ask(&prompt(9, 10), 2);
    bench.run(10);
    assert_eq!(bench.handle.load().queued, 0);
}

#[test]
fn what_can_never_fit_fails_at_once() {
    let mut bench = Bench::new(Bench::tiny(64, 4), SchedulerConfig::default());
    let stream = bench.ask(&prompt(10, 64), 1);
    assert!(bench.scheduler.ingest_now());
    assert_eq!(stream.failure(), Some(Failure::TooLong { tokens: 64, capacity: 64 }));
    assert!(bench.handle.is_idle());
}

#[test]
fn preemption_changes_no_output() {
    for preemption in [Preemption::Recompute, Preemption::Host] {
        let config = SchedulerConfig { preemption, ..SchedulerConfig::default() };
        let mut bench = Bench::new(Bench::tiny(96, 6), config);
        let prompts: Vec<_> = (0..5).map(|salt| prompt(20 + salt, 15)).collect();
        let streams: Vec<_> = prompts.iter().map(|prompt| bench.ask(prompt, 40)).collect();
        bench.run(2000);
        for (prompt, stream) in prompts.iter().zip(&streams) {
            assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, prompt, 40));
        }
        assert_eq!(bench.scheduler.saved_bytes, 0);
    }
}

#[test]
fn the_urgent_goes_first_and_may_displace() {
    let config = SchedulerConfig { max_running: 1, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    let patient = bench.ask(&prompt(30, 10), 30);
    bench.turn();
    let later = bench.ask(&prompt(31, 10), 2);
    let urgent = Stream::default();
    let mut request = bench.request(&prompt(32, 10), greedy(&[&urgent], 2));
    request.priority = 200;
    bench.submit(request);
    for _ in 0..4 {
        bench.turn();
    }
    assert!(urgent.is_over() && !patient.is_over() && later.tokens().is_empty());
    bench.run(100);
    assert_eq!(patient.tokens(), bench.expected(AdapterId::BASE, &prompt(30, 10), 30));
    assert!(later.is_over());
}

#[test]
fn adapters_take_turns_and_none_starves() {
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let streams: Vec<_> = (0..4)
        .map(|adapter| {
            let stream = Stream::default();
            let mut request = bench.request(&prompt(40, 20), greedy(&[&stream], 60));
            request.adapter = AdapterId(adapter);
            bench.submit(request);
            stream
        })
        .collect();
    for _ in 0..80 {
        bench.turn();
    }
    for stream in &streams {
        assert!(stream.tokens().len() >= 12, "{}", stream.tokens().len());
    }
    bench.run(400);
    for (adapter, stream) in streams.iter().enumerate() {
        let adapter = AdapterId(adapter as u32);
        assert_eq!(stream.tokens(), bench.expected(adapter, &prompt(40, 20), 60));
    }
}

#[test]
fn embeddings_pool_over_chunks_and_beside_generation() {
    let caps = Bench::tiny(256, 8);
    let mut bench = Bench::new(caps, SchedulerConfig::default());
    let generating = bench.ask(&prompt(50, 10), 20);
    let vector = |bench: &mut Bench, pooling| {
        let stream = Stream::default();
        let work = Work::Embed { pooling, sink: Box::new(stream.clone()) };
        let request = bench.request(&prompt(51, 90), work);
        bench.submit(request);
        stream
    };
    let last = vector(&mut bench, Pooling::Last);
    let mean = vector(&mut bench, Pooling::Mean);
    bench.run(200);
    assert_eq!(generating.tokens(), bench.expected(AdapterId::BASE, &prompt(50, 10), 20));
    let of = |stream: &Stream| match stream.events().pop() {
        Some(Event::Embedding(vector)) => vector,
        other => panic!("{other:?}"),
    };
    assert_eq!((of(&last).len(), of(&mean).len()), (16, 16));
    assert_ne!(of(&last), of(&mean));
    // The same vectors, alone and without a cache.
    let config = SchedulerConfig { prefix_cache: false, ..SchedulerConfig::default() };
    let mut alone = Bench::new(Bench::tiny(256, 8), config);
    let (last_alone, mean_alone) = (vector(&mut alone, Pooling::Last), vector(&mut alone, Pooling::Mean));
    alone.run(200);
    assert_eq!((of(&last), of(&mean)), (of(&last_alone), of(&mean_alone)));
}

#[test]
fn short_prompts_that_are_only_read_are_not_kept() {
    let config = SchedulerConfig { max_cached: 100, ..SchedulerConfig::default() };
    let mut bench = Bench::new(Bench::tiny(256, 8), config);
    for (len, kept) in [(12, 0), (60, 60)] {
        let work = Work::Embed { pooling: Pooling::Last, sink: Box::new(Stream::default()) };
        let request = bench.request(&prompt(52, len), work);
        bench.submit(request);
        bench.run(20);
        assert_eq!(bench.scheduler.cache.used(), kept);
    }
}

#[test]
fn an_engine_failure_ends_its_batch_and_nothing_else() {
    let fake = FakeConfig { fail_at_step: Some(2), ..FakeConfig::default() };
    let mut bench = Bench::new(fake, SchedulerConfig::default());
    let unlucky = bench.ask(&prompt(60, 10), 10);
    for _ in 0..3 {
        bench.turn();
    }
    assert!(matches!(unlucky.failure(), Some(Failure::Engine(_))));
    let lucky = bench.ask(&prompt(61, 10), 10);
    bench.run(30);
    assert_eq!(lucky.tokens(), bench.expected(AdapterId::BASE, &prompt(61, 10), 10));
}

#[test]
fn a_lost_engine_ends_everybody_and_is_told() {
    let fake = FakeConfig { lose_at_step: Some(2), ..FakeConfig::default() };
    // One runs and the other waits when the engine goes.
    let config = SchedulerConfig { max_running: 1, ..SchedulerConfig::default() };
    let mut bench = Bench::new(fake, config);
    let (running, waiting) = (bench.ask(&prompt(60, 10), 10), bench.ask(&prompt(61, 10), 10));
    let shared = std::sync::Arc::clone(&bench.scheduler.shared);
    let is_lost = || shared.engine_lost.load(std::sync::atomic::Ordering::Acquire);
    bench.turn();
    bench.turn();
    assert!(!is_lost() && running.failure().is_none());
    bench.turn();
    assert!(is_lost());
    let Some(Failure::Engine(why)) = running.failure() else { panic!("it was in the step") };
    assert!(why.contains("the engine is lost"), "{why}");
    assert_eq!(waiting.failure(), Some(Failure::WorkerEnded));
    assert_eq!(bench.scheduler.cache.used(), 0, "nothing that is gone is kept for anybody");
}

/// Plans nonsense of one kind or another in each step.
struct Nonsense(u32);

impl Planner for Nonsense {
    fn name(&self) -> &str {
        "nonsense"
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        self.0 += 1;
        let budget = snapshot.step.token_budget;
        match self.0 % 7 {
            0 => None,
            1 => Some(Plan { admit: vec![u32::MAX], ..Plan::default() }),
            2 => Some(Plan { admit: vec![0, 0], ..Plan::default() }),
            3 => Some(Plan { preempt: vec![9999], ..Plan::default() }),
            4 => Some(Plan { running_chunk: vec![budget, budget, budget], ..Plan::default() }),
            5 => Some(Plan { admit_chunk: vec![1, 2, 3, 4, 5], ..Plan::default() }),
            _ => Some(Plan::default()),
        }
    }
}

#[test]
fn a_wrong_plan_costs_no_request() {
    let config = SchedulerConfig::default();
    let mut bench = Bench::with(Bench::tiny(200, 6), config, Some(Box::new(Nonsense(0))), None);
    let prompts: Vec<_> = (0..6).map(|salt| prompt(70 + salt, 20)).collect();
    let streams: Vec<_> = prompts.iter().map(|prompt| bench.ask(prompt, 10)).collect();
    bench.run(400);
    for (prompt, stream) in prompts.iter().zip(&streams) {
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, prompt, 10));
    }
}

#[test]
fn a_thread_serves_drains_and_stops() {
    let engine = quern_engine::fake::FakeEngine::new(FakeConfig::default());
    let (handle, thread) = crate::spawn(Box::new(engine), SchedulerConfig::default(), None, None).unwrap();
    let mut bench = Bench::new(FakeConfig::default(), SchedulerConfig::default());
    let stream = Stream::default();
    let request = bench.request(&prompt(80, 10), greedy(&[&stream], 5));
    handle.submit(handle.reserve().unwrap(), request).unwrap();
    while !stream.is_over() {
        std::thread::yield_now();
    }
    assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, &prompt(80, 10), 5));
    handle.close();
    assert!(matches!(handle.reserve(), Err(Refused::Closed)));
    handle.stop();
    thread.join().unwrap();
    assert_eq!(handle.silence(), None);
}

#[test]
fn drafts_save_steps_and_change_no_token() {
    let fake = FakeConfig { repetitive: true, ..FakeConfig::default() };
    // The answer counts up, and so does the prompt.
    let prompt: Vec<u32> = (10..200).collect();
    let asked = |drafter: Option<Box<dyn Drafter>>| {
        let mut bench = Bench::with(fake.clone(), SchedulerConfig::default(), None, drafter);
        let mut tail = prompt.clone();
        tail.push(20);
        let stream = bench.ask(&tail, 60);
        bench.run(100);
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, &tail, 60));
        bench.scheduler.costs.num_steps
    };
    let without = asked(None);
    let with = asked(Some(Box::new(PromptLookup::default())));
    assert!(with < without, "{with} steps with drafts, {without} without");
}

#[test]
fn limits_change_while_sequences_run() {
    let config = SchedulerConfig { max_running: 4, ..SchedulerConfig::default() };
    let mut bench = Bench::new(Bench::tiny(1024, 8), config);
    let prompts: Vec<_> = (0..6).map(|salt| prompt(salt, 5)).collect();
    let streams: Vec<_> = prompts.iter().map(|prompt| bench.ask(prompt, 20)).collect();
    bench.turn();
    assert_eq!(bench.scheduler.running.len(), 4);
    let before = bench.handle.pace();
    assert_eq!((before.limits.max_running, before.num_steps), (4, 1));
    assert_eq!(before.waiting_tokens, 10);
    // More rows than the engine can: it takes what it can.
    let wait_window = Duration::from_millis(3);
    let limits = Limits { max_running: 2, token_budget: usize::MAX, wait_window, ..before.limits };
    bench.handle.set_limits(limits).unwrap();
    bench.run(100);
    for (prompt, stream) in prompts.iter().zip(&streams) {
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, prompt, 20));
    }
    let after = bench.handle.pace().limits;
    assert_eq!((after.max_running, after.token_budget, after.wait_window), (2, 64, wait_window));
}

#[test]
fn the_cache_keeps_no_more_than_it_may() {
    let config = SchedulerConfig { max_cached: 50, ..SchedulerConfig::default() };
    let mut bench = Bench::new(FakeConfig::default(), config);
    for salt in 0..5 {
        let stream = bench.ask(&prompt(salt, 40), 10);
        bench.run(20);
        assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, &prompt(salt, 40), 10));
        assert!(bench.scheduler.cache.used() <= 50);
    }
    // The last prompt is what was kept.
    let again = bench.ask(&prompt(4, 40), 1);
    bench.run(5);
    assert!(again.cached() > Some(30));
}
