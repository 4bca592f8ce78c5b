//! The scheduler's way out: one bounded channel for all choices of a request.
//!
//! The channel has room for every event that can ever come, so the step thread
//! never meets a full one. A choice that needs nothing more raises its own
//! flag; dropping the receiver is a hang-up of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use quern_scheduler::request::{Closed, Event, Sink};
use tokio::sync::mpsc;

/// Events beside tokens: started (again after each preemption is not sent),
/// finished, failed; and one to spare.
const EVENTS_BESIDE_TOKENS: usize = 4;

/// Which choice, and what happened to it.
pub(super) type Tagged = (u32, Event);

/// What a choice's flag says: it goes on, it has all that it wants, nobody waits.
const WANTED: u8 = 0;
const ENOUGH: u8 = 1;
const GIVEN_UP: u8 = 2;

/// One choice's end in the scheduler.
struct ChoiceSink {
    choice: u32,
    events: mpsc::Sender<Tagged>,
    flag: Arc<AtomicU8>,
}

impl Sink for ChoiceSink {
    fn send(&mut self, event: Event) -> Result<(), Closed> {
        if self.flag.load(Ordering::Acquire) != WANTED {
            return Err(Closed);
        }
        self.events.try_send((self.choice, event)).map_err(|_| Closed)
    }

    fn is_closed(&self) -> bool {
        self.flag.load(Ordering::Acquire) != WANTED || self.events.is_closed()
    }

    fn has_enough(&self) -> bool {
        self.flag.load(Ordering::Acquire) == ENOUGH
    }
}

/// Says that a choice needs nothing more. Dropping it says that nobody waits for it.
#[derive(Debug)]
pub(super) struct Enough(Arc<AtomicU8>);

impl Enough {
    pub(super) fn say(&self) {
        self.0.store(ENOUGH, Ordering::Release);
    }
}

impl Drop for Enough {
    fn drop(&mut self) {
        // What had enough before stays content.
        let _ = self.0.compare_exchange(WANTED, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
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
        let flag = Arc::new(AtomicU8::new(WANTED));
        let sink = ChoiceSink { choice, events: events.clone(), flag: Arc::clone(&flag) };
        (Box::new(sink) as Box<dyn Sink>, Enough(flag))
    });
    (sinks.collect(), receiver)
}
