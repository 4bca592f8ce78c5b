//! The way in: a bounded queue, a load gauge, and a pulse for health checks.
//!
//! A caller takes a [`Permit`] before it does any work for a request, and the
//! permit travels with the request until it leaves the queue. So the number of
//! queued requests is bounded where it is cheapest to say no.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use crate::completed::{Completion, Completions};
use crate::pace::{Limits, Pace, Pulse};
use crate::plan::Planner;
use crate::request::Request;

/// A place in the queue. Dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The queue is full, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many requests are queued as may be.
    #[error("the queue is full")]
    Full {
        /// Requests in the queue.
        queued: usize,
        /// A guess at when a place will be free.
        retry_after: Duration,
    },
    /// The scheduler is draining or has stopped.
    #[error("the scheduler takes no new requests")]
    Closed,
}

/// What the scheduler holds at the moment, read without a lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests with a permit that have not started.
    pub queued: usize,
    /// Sequences that wait for their first step, or to be resumed.
    pub waiting: usize,
    /// Sequences that hold key-value state and are worked on.
    pub running: usize,
    /// Tokens of key-value state in use, cached prefixes included.
    pub kv_used: usize,
    /// Tokens of key-value state that live sequences hold.
    pub kv_live: usize,
    /// Tokens of key-value state there are.
    pub kv_capacity: usize,
}

/// State that the step thread writes and everybody reads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) started: Instant,
    pub(crate) max_queued: usize,
    pub(crate) queued: AtomicUsize,
    pub(crate) closed: AtomicBool,
    pub(crate) waiting: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) kv_used: AtomicUsize,
    pub(crate) kv_live: AtomicUsize,
    pub(crate) kv_capacity: usize,
    /// Microseconds since `started` at which the loop last made progress.
    pub(crate) pulse_us: AtomicU64,
    /// Whether the loop has work, so that a silent pulse means trouble.
    pub(crate) busy: AtomicBool,
    /// Smoothed time between two requests leaving the queue, for `Retry-After`.
    pub(crate) turnover_us: AtomicU64,
    /// Whether the step thread has ended, in whatever way.
    pub(crate) dead: AtomicBool,
    pub(crate) pulse: Pulse,
}

impl Shared {
    pub(crate) fn new(max_queued: usize, kv_capacity: usize, limits: Limits) -> Arc<Shared> {
        Arc::new(Shared {
            started: Instant::now(),
            max_queued,
            queued: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            kv_used: AtomicUsize::new(0),
            kv_live: AtomicUsize::new(0),
            kv_capacity,
            pulse_us: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            turnover_us: AtomicU64::new(100_000),
            dead: AtomicBool::new(false),
            pulse: Pulse::new(limits),
        })
    }

    pub(crate) fn beat(&self) {
        let now = self.started.elapsed().as_micros() as u64;
        self.pulse_us.store(now, Ordering::Release);
    }
}

/// Orders from outside, applied between two steps.
pub(crate) enum Command {
    Submit(Box<Request>, Permit),
    SetPlanner(Box<dyn Planner>),
    SetLimits(Limits),
    SetCompletions(Completions),
    /// Fail whatever is left and end the thread.
    Stop,
}

/// Submits work to one scheduler. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: SyncSender<Command>,
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Takes a place in the queue, before any work is done for the request.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::Closed`].
    pub fn reserve(&self) -> Result<Permit, Refused> {
        if self.shared.closed.load(Ordering::Acquire) || self.shared.dead.load(Ordering::Acquire) {
            return Err(Refused::Closed);
        }
        let max = self.shared.max_queued;
        let taken = self
            .shared
            .queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Permit { shared: Arc::clone(&self.shared) }),
            Err(queued) => {
                let turnover = self.shared.turnover_us.load(Ordering::Relaxed);
                let retry_after = Duration::from_micros(turnover.saturating_mul(queued as u64));
                Err(Refused::Full { queued, retry_after })
            }
        }
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// [`Refused::Closed`] when the step thread is gone.
    pub fn submit(&self, permit: Permit, request: Request) -> Result<(), Refused> {
        match self.commands.try_send(Command::Submit(Box::new(request), permit)) {
            Ok(()) => Ok(()),
            // The channel holds every permit, so it is full only for other commands' sake.
            Err(TrySendError::Full(_)) => {
                Err(Refused::Full { queued: self.shared.max_queued, retry_after: Duration::from_secs(1) })
            }
            Err(TrySendError::Disconnected(_)) => Err(Refused::Closed),
        }
    }

    /// Replaces the planner at the next step boundary.
    ///
    /// # Errors
    /// [`Refused`] when the command cannot be queued.
    pub fn set_planner(&self, planner: Box<dyn Planner>) -> Result<(), Refused> {
        self.commands.try_send(Command::SetPlanner(planner)).map_err(|_| Refused::Closed)
    }

    /// Changes what steps may hold, from the next step on. Brought to what the
    /// engine can do.
    ///
    /// # Errors
    /// [`Refused`] when the command cannot be queued.
    pub fn set_limits(&self, limits: Limits) -> Result<(), Refused> {
        self.commands.try_send(Command::SetLimits(limits)).map_err(|_| Refused::Closed)
    }

    /// Tells of every sequence that leaves from the next step on. The step thread
    /// waits for nobody: what finds no room is dropped and counted.
    ///
    /// # Errors
    /// [`Refused`] when the command cannot be queued.
    pub fn report(&self, to: SyncSender<Completion>) -> Result<(), Refused> {
        let command = Command::SetCompletions(Completions::to(to));
        self.commands.try_send(command).map_err(|_| Refused::Closed)
    }

    /// How fast the loop goes.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.shared.pulse.read()
    }

    /// Refuses new requests from now on; those inside go on.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    /// Fails whatever is left and ends the step thread after the present step.
    pub fn stop(&self) {
        self.close();
        // A full channel means that commands are still being read, so this ends.
        let _ = self.commands.send(Command::Stop);
    }

    /// What the scheduler holds.
    #[must_use]
    pub fn load(&self) -> Load {
        let s = &self.shared;
        Load {
            queued: s.queued.load(Ordering::Acquire),
            waiting: s.waiting.load(Ordering::Relaxed),
            running: s.running.load(Ordering::Relaxed),
            kv_used: s.kv_used.load(Ordering::Relaxed),
            kv_live: s.kv_live.load(Ordering::Relaxed),
            kv_capacity: s.kv_capacity,
        }
    }

    /// Whether nothing is queued, waiting or running.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let load = self.load();
        load.queued + load.waiting + load.running == 0
    }

    /// How long the loop has had work without making progress; zero when idle.
    /// `None` when the step thread has ended.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let s = &self.shared;
        if s.dead.load(Ordering::Acquire) {
            return None;
        }
        if !s.busy.load(Ordering::Acquire) {
            return Some(Duration::ZERO);
        }
        let now = s.started.elapsed().as_micros() as u64;
        Some(Duration::from_micros(now.saturating_sub(s.pulse_us.load(Ordering::Acquire))))
    }
}
