//! A scheduler that serves while evil policies come and go: no request fails,
//! and no output changes, for a policy decides when, never what.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use common::{DEEP, ENDLESS, GREEDY, NO_OPINION, THIRD, engine, good_plan, guest, plan_of};
use quern_engine::AdapterId;
use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_extensions::{Deadlines, Hook, Settings, Slot};
use quern_scheduler::plan::Plan;
use quern_scheduler::request::{
    Closed, DEFAULT_PRIORITY, Event, Generate, Request, SamplingParams, Sink, Work,
};
use quern_scheduler::{Handle, SchedulerConfig};

struct Out(Sender<Event>);

impl Sink for Out {
    fn send(&mut self, event: Event) -> Result<(), Closed> {
        self.0.send(event).map_err(|_| Closed)
    }

    fn is_closed(&self) -> bool {
        false
    }
}

fn prompt(salt: u32) -> Vec<u32> {
    (0..40).map(|idx| (salt * 31 + idx * 7 + idx * idx) % 320).collect()
}

fn ask(handle: &Handle, id: u64, prompt: &[u32], max_new: u32) -> Receiver<Event> {
    let (sender, events) = channel();
    let work = Work::Generate(Generate {
        sinks: vec![Box::new(Out(sender))],
        sampling: SamplingParams::default(),
        max_new,
        stop_tokens: Arc::from([]),
        constraint: None,
        logprobs: None,
        speculate: false,
    });
    let request = Request {
        id,
        prompt: prompt.into(),
        adapter: AdapterId::BASE,
        tenant: 0,
        priority: DEFAULT_PRIORITY,
        deadline: None,
        arrived: Instant::now(),
        work,
    };
    handle.submit(handle.reserve().unwrap(), request).unwrap();
    events
}

fn tokens(events: &Receiver<Event>) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("the scheduler goes on") {
            Event::Token { token, .. } => tokens.push(token),
            Event::Finished(_) => return tokens,
            Event::Failed(failure) => panic!("a request failed: {failure:?}"),
            _ => {}
        }
    }
}

#[test]
fn no_request_fails_and_no_output_changes_while_policies_come_and_go() {
    let engine = engine();
    // Short deadlines, so that loops end soon; the default trial and quarantine.
    let deadline = Duration::from_millis(1);
    let deadlines = Deadlines { scheduler: deadline, ..Deadlines::default() };
    let slot = Slot::new(&engine, Settings { deadlines, ..Settings::named("load") });
    let fake = FakeConfig::default();
    let config = SchedulerConfig { check_invariants: true, ..SchedulerConfig::default() };
    let planner = Box::new(slot.planner());
    let (handle, thread) =
        quern_scheduler::spawn(Box::new(FakeEngine::new(fake.clone())), config, Some(planner), None).unwrap();

    let overdrawn = Plan { admit_chunk: vec![u32::MAX], ..good_plan() };
    let guests = [
        guest().with(Hook::Scheduler, ENDLESS),
        guest().with(Hook::Scheduler, GREEDY),
        guest().with(Hook::Scheduler, DEEP),
        guest().with(Hook::Scheduler, THIRD),
        guest().with(Hook::Scheduler, plan_of(&overdrawn)),
        guest().with(Hook::Scheduler, plan_of(&good_plan())),
        guest().with(Hook::Scheduler, plan_of(&Plan::default())),
        guest().with(Hook::Scheduler, NO_OPINION),
    ];
    let mut id = 0;
    for round in 0..3u32 {
        for guest in &guests {
            let streams: Vec<_> = (0..8)
                .map(|salt| {
                    id += 1;
                    (salt + round, ask(&handle, id, &prompt(salt + round), 24))
                })
                .collect();
            slot.load(&guest.source()).unwrap();
            for (salt, events) in streams {
                let wanted = FakeEngine::expected(&fake, AdapterId::BASE, &prompt(salt), 24);
                assert_eq!(tokens(&events), wanted);
            }
        }
        slot.unload();
    }
    handle.stop();
    thread.join().unwrap();
    assert_eq!(slot.status().history.len(), 16);
}
