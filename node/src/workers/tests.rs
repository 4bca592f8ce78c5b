//! Workers without a front end.

use std::sync::atomic::Ordering;
use std::sync::mpsc;

use quern_engine::AdapterId;
use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_scheduler::request::{
    Closed, DEFAULT_PRIORITY, Event, Failure, Generate, SamplingParams, Sink, Work,
};

use super::*;

/// Longer than any test takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

fn parts() -> Parts {
    Parts {
        engine: Box::new(FakeEngine::new(FakeConfig::default())),
        planner: None,
        drafter: None,
        reports: None,
    }
}

fn workers(settings: Settings, start: Start) -> Workers {
    let scheduler = SchedulerConfig { check_invariants: true, ..SchedulerConfig::default() };
    Workers::start(settings, scheduler, parts(), Duration::ZERO, start).unwrap()
}

#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

struct Told(mpsc::Sender<Event>);

impl Sink for Told {
    fn send(&mut self, event: Event) -> Result<(), Closed> {
        self.0.send(event).map_err(|_| Closed)
    }

    fn is_closed(&self) -> bool {
        false
    }
}

fn request(sink: Told) -> Request {
    request_for(sink, 2)
}

fn request_for(sink: Told, max_new: u32) -> Request {
    Request {
        id: 1,
        prompt: [1, 2, 3].into(),
        adapter: AdapterId::BASE,
        tenant: 0,
        priority: DEFAULT_PRIORITY,
        deadline: None,
        arrived: Instant::now(),
        work: Work::Generate(Generate {
            sinks: vec![Box::new(sink)],
            sampling: SamplingParams::default(),
            max_new,
            stop_tokens: [].into(),
            constraint: None,
            logprobs: None,
            speculate: false,
        }),
    }
}

#[test]
fn limits_hold_for_those_who_are_there_and_those_to_come() {
    let workers = workers(Settings { max: 2, ..Settings::default() }, Box::new(|_| Ok(parts())));
    let limits = Limits { token_budget: 7, ..workers.pace().limits };
    assert!(workers.set_limits(limits));
    workers.pin(Some(2)).unwrap();
    until("there should be two", || workers.status().ready == 2);
    let budgets = || workers.handles().iter().map(|handle| handle.pace().limits.token_budget).collect();
    until("both should have them", || {
        let budgets: Vec<usize> = budgets();
        budgets == [7, 7]
    });
    workers.stop();
    assert!(workers.join());
}

#[test]
fn the_end_is_told_to_those_who_wait_for_a_worker() {
    // A start that takes until it is told to give up.
    let start: Start = Box::new(|cancelled| {
        while !cancelled.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        Err("given up".into())
    });
    let workers = workers(Settings { min: 0, ..Settings::default() }, start);
    workers.pin(Some(0)).unwrap();
    until("there should be none", || workers.handles().is_empty());
    assert!(workers.is_idle() && workers.failing().is_none());

    let (told, events) = mpsc::channel();
    workers.submit(workers.reserve().unwrap(), request(Told(told))).unwrap();
    assert!(!workers.is_idle());
    assert_eq!(workers.pace().waiting_tokens, 3);
    until("one should be on its way", || workers.status().starting == 1);
    workers.stop();
    assert_eq!(events.recv_timeout(PATIENCE), Ok(Event::Failed(Failure::ShuttingDown)));
    assert!(workers.join(), "nobody ended otherwise than told");
    assert_eq!(workers.silence(), None);
    assert!(matches!(workers.reserve(), Err(Refused::Closed)));
}

#[test]
fn whoever_is_cut_off_with_a_worker_is_told_that_the_node_goes_on() {
    let settings = Settings { min: 0, drain_timeout: Duration::from_millis(1), ..Settings::default() };
    // An answer up to the longest sequence then takes far longer than the drain.
    let slow = FakeConfig { step_time: Duration::from_millis(10), ..FakeConfig::default() };
    let first = Parts { engine: Box::new(FakeEngine::new(slow)), ..parts() };
    let start = Box::new(|_: &AtomicBool| Ok(parts()));
    let workers = Workers::start(settings, SchedulerConfig::default(), first, Duration::ZERO, start).unwrap();
    let (told, events) = mpsc::channel();
    workers.submit(workers.reserve().unwrap(), request_for(Told(told), 1_000_000)).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::Started { .. })));
    workers.pin(Some(0)).unwrap();
    let end = events.iter().find(|event| !matches!(event, Event::Token { .. }));
    assert_eq!(end, Some(Event::Failed(Failure::WorkerEnded)));
    until("there should be none", || workers.handles().is_empty());
    workers.stop();
    assert!(workers.join());
}

#[test]
fn the_least_is_wanted_after_idle_time() {
    let settings = Settings { min: 0, idle_timeout: Duration::from_millis(1), ..Settings::default() };
    let workers = workers(settings, Box::new(|_| Ok(parts())));
    until("nothing to do, nobody there", || {
        workers.follow_configuration();
        workers.handles().is_empty()
    });
    assert_eq!(workers.status().wish.by, By::Configuration);
    let (told, events) = mpsc::channel();
    workers.submit(workers.reserve().unwrap(), request(Told(told))).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::Started { .. })));
    workers.stop();
    assert!(workers.join());
}
