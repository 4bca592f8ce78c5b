//! The way in: what is handed over, a load gauge, and a pulse for health checks.
//! The queue that bounds it is in `queue.rs`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::adapters::AdapterLoad;
use crate::completed::{Completion, Completions};
use crate::pace::{Limits, Pace, Pulse};
use crate::plan::Planner;
use crate::queue::{Permit, Queue, Refused};
use crate::request::{Failure, Request};

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
    pub(crate) queue: Queue,
    pub(crate) closed: AtomicBool,
    /// Requests and their prompt tokens that were handed over.
    sent: Traffic,
    /// Those of them that the loop has taken in, as of the last published load.
    pub(crate) seen: Traffic,
    /// Sequences waiting or running, as of then.
    pub(crate) inside: AtomicUsize,
    /// Steps that the engine failed in, one after the other.
    pub(crate) failed_steps: AtomicU32,
    /// Whether the engine said that it is of no use any more.
    pub(crate) engine_lost: AtomicBool,
    pub(crate) waiting: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) kv_used: AtomicUsize,
    pub(crate) kv_live: AtomicUsize,
    pub(crate) kv_capacity: usize,
    /// Microseconds since `started` at which the loop last made progress.
    pub(crate) pulse_us: AtomicU64,
    /// Whether the loop has work, so that a silent pulse means trouble.
    pub(crate) busy: AtomicBool,
    /// Whether the step thread has ended, in whatever way.
    pub(crate) dead: AtomicBool,
    pub(crate) pulse: Pulse,
    adapters: Mutex<AdapterLoad>,
}

/// Counts of requests and of their prompt tokens.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: AtomicU64,
    pub(crate) tokens: AtomicU64,
}

/// What was handed over to a scheduler and has not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Requests that the loop has not taken in, and sequences that wait or run.
    pub requests: usize,
    /// Prompt tokens of those that have not started.
    pub tokens: u64,
}

/// What a scheduler could not take, given back.
pub struct NotTaken {
    /// Its place in the queue.
    pub permit: Permit,
    /// As it was.
    pub request: Box<Request>,
    /// Why.
    pub why: Refused,
}

impl Shared {
    pub(crate) fn new(queue: Queue, kv_capacity: usize, limits: Limits) -> Arc<Shared> {
        Arc::new(Shared {
            started: Instant::now(),
            queue,
            closed: AtomicBool::new(false),
            sent: Traffic::default(),
            seen: Traffic::default(),
            inside: AtomicUsize::new(0),
            failed_steps: AtomicU32::new(0),
            engine_lost: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            kv_used: AtomicUsize::new(0),
            kv_live: AtomicUsize::new(0),
            kv_capacity,
            pulse_us: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            pulse: Pulse::new(limits),
            adapters: Mutex::default(),
        })
    }

    /// Written and read as a whole.
    pub(crate) fn adapters(&self) -> MutexGuard<'_, AdapterLoad> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Adapters were retired; every turn of the loop looks.
    LookAtAdapters,
    /// Fail whatever is left and end the thread.
    Stop(Failure),
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
        self.shared.queue.reserve()
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// [`Refused::Closed`] when the step thread is gone.
    pub fn submit(&self, permit: Permit, request: Request) -> Result<(), Refused> {
        self.offer(permit, Box::new(request)).map_err(|not_taken| not_taken.why)
    }

    /// As [`Handle::submit`], and gives back what cannot be taken.
    ///
    /// # Errors
    /// [`NotTaken`] when the step thread is gone.
    pub fn offer(&self, permit: Permit, request: Box<Request>) -> Result<(), Box<NotTaken>> {
        let (sent, num_tokens) = (&self.shared.sent, request.prompt.len() as u64);
        sent.requests.fetch_add(1, Ordering::AcqRel);
        sent.tokens.fetch_add(num_tokens, Ordering::AcqRel);
        let (command, why) = match self.commands.try_send(Command::Submit(request, permit)) {
            Ok(()) => return Ok(()),
            // The channel holds every permit, so it is full only for other commands' sake.
            Err(TrySendError::Full(command)) => {
                let queued = self.shared.queue.queued();
                (command, Refused::Full { queued, retry_after: Duration::from_secs(1) })
            }
            Err(TrySendError::Disconnected(command)) => (command, Refused::Closed),
        };
        sent.requests.fetch_sub(1, Ordering::AcqRel);
        sent.tokens.fetch_sub(num_tokens, Ordering::AcqRel);
        let Command::Submit(request, permit) = command else { unreachable!("it was sent just now") };
        Err(Box::new(NotTaken { permit, request, why }))
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

    /// Has the loop let go of retired adapters now, also when it has nothing to do.
    pub fn look_at_adapters(&self) {
        // A loop whose way in is full is awake and looks by itself; one that has ended
        // holds nothing.
        let _ = self.commands.try_send(Command::LookAtAdapters);
    }

    /// Which adapters it has to do with.
    #[must_use]
    pub fn adapters(&self) -> AdapterLoad {
        self.shared.adapters().clone()
    }

    /// How fast the loop goes.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.shared.pulse.read()
    }

    /// Time spent in steps since the start: [`Pace::busy`] alone, at no cost.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.shared.pulse.busy()
    }

    /// Refuses new requests from now on; those inside go on.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    /// Fails whatever is left and ends the step thread after the present step.
    pub fn stop(&self) {
        self.close();
        // A full channel means that commands are still being read, so this ends.
        let _ = self.commands.send(Command::Stop(Failure::ShuttingDown));
    }

    /// As [`Handle::stop`], without waiting, and what is left is told why; false
    /// while there is no room for the command.
    #[must_use]
    pub fn try_stop(&self, why: Failure) -> bool {
        self.close();
        !matches!(self.commands.try_send(Command::Stop(why)), Err(TrySendError::Full(_)))
    }

    /// What was handed over and has not ended.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        let s = &self.shared;
        let unread = |sent: &AtomicU64, seen: &AtomicU64| {
            // In this order: what was taken in is waiting or running by then.
            let seen = seen.load(Ordering::Acquire);
            sent.load(Ordering::Acquire).saturating_sub(seen)
        };
        let requests = unread(&s.sent.requests, &s.seen.requests) as usize;
        let tokens = unread(&s.sent.tokens, &s.seen.tokens);
        Backlog {
            requests: requests + s.inside.load(Ordering::Acquire),
            tokens: tokens + s.pulse.waiting_tokens.load(Ordering::Relaxed),
        }
    }

    /// Whether all that was handed over has ended. True for good once nobody
    /// hands anything over any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.backlog().requests == 0
    }

    /// How many steps the engine failed in since the last that it did not.
    #[must_use]
    pub fn failed_steps(&self) -> u32 {
        self.shared.failed_steps.load(Ordering::Relaxed)
    }

    /// Whether the engine is lost for good: whatever is handed over fails.
    #[must_use]
    pub fn engine_lost(&self) -> bool {
        self.shared.engine_lost.load(Ordering::Acquire)
    }

    /// What the scheduler holds.
    #[must_use]
    pub fn load(&self) -> Load {
        let s = &self.shared;
        Load {
            queued: s.queue.queued(),
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
        self.shared.queue.queued() == 0 && self.is_done()
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
