//! The scheduler's way out: one bounded channel for all choices of a request.
//!
//! The channel has room for every event that can ever come, so the step thread
//! never meets a full one. A choice that needs nothing more raises its own
//! flag; dropping the receiver is a hang-up of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quern_scheduler::request::{Closed, Event, Sink};
use tokio::sync::mpsc;

/// Events beside tokens: started (again after each preemption is not sent),
/// finished, failed; and one to spare.
const EVENTS_BESIDE_TOKENS: usize = 4;

/// Which choice, and what happened to it.
pub(super) type Tagged = (u32, Event);

/// One choice's end in the scheduler.
struct ChoiceSink {
    choice: u32,
    events: mpsc::Sender<Tagged>,
    enough: Arc<AtomicBool>,
}

impl Sink for ChoiceSink {
    fn send(&mut self, event: Event) -> Result<(), Closed> {
        if self.enough.load(Ordering::Acquire) {
            return Err(Closed);
        }
        self.events.try_send((self.choice, event)).map_err(|_| Closed)
    }

    fn is_closed(&self) -> bool {
        self.enough.load(Ordering::Acquire) || self.events.is_closed()
    }
}

/// Says that a choice needs nothing more. Dropping it says so too.
#[derive(Debug)]
pub(super) struct Enough(Arc<AtomicBool>);

impl Enough {
    pub(super) fn say(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drop for Enough {
    fn drop(&mut self) {
        self.say();
    }
}

/// A sink for the scheduler, and the flag that closes it.
pub(super) type Pair = (Box<dyn Sink>, Enough);

/// Sinks for choices with at most that many new tokens each, and their events.
pub(super) fn channel(max_new: impl Iterator<Item = u32>) -> (Vec<Pair>, mpsc::Receiver<Tagged>) {
    let max_new: Vec<usize> = max_new.map(|n| n as usize).collect();
    let room: usize = max_new.iter().map(|n| n + EVENTS_BESIDE_TOKENS).sum();
    let (events, receiver) = mpsc::channel(room.clamp(1, tokio::sync::Semaphore::MAX_PERMITS));
    let sinks = (0..max_new.len() as u32).map(|choice| {
        let enough = Arc::new(AtomicBool::new(false));
        let sink = ChoiceSink { choice, events: events.clone(), enough: Arc::clone(&enough) };
        (Box::new(sink) as Box<dyn Sink>, Enough(enough))
    });
    (sinks.collect(), receiver)
}
