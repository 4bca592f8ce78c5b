//! Workers: engines, each with a thread and a scheduler of its own, that serve
//! one model together.
//!
//! A request goes to the worker that has most of its prompt cached, unless that
//! one has too much to do ([`route`]); where there is no worker it waits, and one
//! is started for it. How many there should be is a wish ([`wish`]) of the
//! configuration, an operator or a policy ([`scale`]), which one thread fulfils
//! ([`pool`]): it starts workers, lets them finish what they have, ends them, and
//! starts those again that failed. All workers share one bounded queue.
//!
//! This folder must not know HTTP, text or WebAssembly, nor which engine it runs.

mod pool;
mod prefixes;
mod route;
mod scale;
mod status;
mod window;
mod wish;

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quern_engine::Engine;
use quern_scheduler::draft::Drafter;
use quern_scheduler::plan::Planner;
use quern_scheduler::request::Request;
use quern_scheduler::{
    AdapterLoad, Completion, Handle, Limits, Load, Pace, Permit, Refused, SchedulerConfig,
};

use self::pool::Pool;

pub use self::scale::keep_scaling;
pub use self::status::{Status, Trouble, WorkerStatus};
pub use self::wish::{By, OutOfBounds, Wish};

/// How many workers there may be, and how they come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Workers at least; 0 lets the last one go, and its memory with it.
    pub min: u32,
    /// Workers at most; at least 1.
    pub max: u32,
    /// Workers that are wanted while nobody says otherwise.
    pub start: u32,
    /// Without work for so long, no more than `min` are wanted while nobody says
    /// otherwise. Zero is never.
    pub idle_timeout: Duration,
    /// How long a worker that is to end may take to finish what it has.
    pub drain_timeout: Duration,
    /// How long after a failure a worker is started again; doubles with each.
    pub restart_delay: Duration,
    /// No longer than this.
    pub max_restart_delay: Duration,
    /// A cached prefix does not count for a worker that has so many requests more
    /// than the least loaded one.
    pub spill_requests: usize,
    /// Nor for one that has so many prompt tokens more to compute.
    pub spill_tokens: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            min: 1,
            max: 1,
            start: 1,
            idle_timeout: Duration::ZERO,
            drain_timeout: Duration::from_secs(300),
            restart_delay: Duration::from_millis(500),
            max_restart_delay: Duration::from_secs(30),
            spill_requests: 8,
            spill_tokens: 2048,
        }
    }
}

/// What a worker is made of.
pub struct Parts {
    /// Computes.
    pub engine: Box<dyn Engine>,
    /// Stands in for the built-in policy.
    pub planner: Option<Box<dyn Planner>>,
    /// Guesses ahead.
    pub drafter: Option<Box<dyn Drafter>>,
    /// Told of sequences that have ended.
    pub reports: Option<SyncSender<Completion>>,
}

/// Why there is no worker.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// Makes another worker's parts, on a thread that may wait; a raised flag asks it
/// to give up.
pub type Start = Box<dyn Fn(&AtomicBool) -> Result<Parts, StartError> + Send + Sync>;

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The queue is closed, or a scheduler's way in is full.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no worker, and the last try to start one failed.
    #[error("no worker could be started: {why}")]
    NoWorker {
        /// What went wrong.
        why: String,
        /// When it is tried again.
        retry_after: Duration,
    },
}

/// All workers of a model. Cheap to clone, and all clones are the same workers;
/// they serve until [`Workers::stop`].
#[derive(Clone)]
pub struct Workers {
    pool: Arc<Pool>,
    supervisor: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Workers {
    /// Serves with a first worker, which took so long to make. The others that
    /// are wanted are started beside it.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub fn start(
        settings: Settings,
        scheduler: SchedulerConfig,
        first: Parts,
        took: Duration,
        start: Start,
    ) -> std::io::Result<Workers> {
        let pool = Pool::new(settings, scheduler, first, took, start)?;
        let supervised = Arc::clone(&pool);
        let thread = std::thread::Builder::new().name("quern-workers".into());
        let supervisor = thread.spawn(move || supervised.supervise())?;
        Ok(Workers { pool, supervisor: Arc::new(Mutex::new(Some(supervisor))) })
    }

    /// Takes a place in the queue, before any work is done for the request.
    ///
    /// # Errors
    /// [`Refused`], which is counted as a request that was refused.
    pub fn reserve(&self) -> Result<Permit, Refused> {
        self.pool.queue.reserve().inspect_err(|_| self.note_refused())
    }

    /// Hands a request over: to a worker, or to those that wait for one. Whoever
    /// waits is answered when its deadline passes or when no worker can be had.
    ///
    /// # Errors
    /// [`NotTaken`]; nothing comes out of the request's sinks then.
    pub fn submit(&self, permit: Permit, request: Request) -> Result<(), NotTaken> {
        self.pool.submit(permit, request)
    }

    /// Counts a request that was refused before it came here.
    pub fn note_refused(&self) {
        self.pool.arrivals.refused();
    }

    /// What all workers hold together.
    #[must_use]
    pub fn load(&self) -> Load {
        let nothing = Load { queued: self.pool.queue.queued(), ..Load::default() };
        self.handles().iter().map(Handle::load).fold(nothing, |all, one| Load {
            queued: all.queued,
            waiting: all.waiting + one.waiting,
            running: all.running + one.running,
            kv_used: all.kv_used + one.kv_used,
            kv_live: all.kv_live + one.kv_live,
            kv_capacity: all.kv_capacity + one.kv_capacity,
        })
    }

    /// Tokens of key-value state that one worker has room for.
    #[must_use]
    pub fn kv_capacity_of_one(&self) -> usize {
        self.pool.kv_capacity_of_one
    }

    /// How fast the workers go: the slowest one's step times, everybody's work.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let (limits, pending_tokens) = self.pool.limits_and_pending();
        let paces: Vec<Pace> = self.handles().iter().map(Handle::pace).collect();
        let limits = paces.first().map_or(limits, |first| first.limits);
        let idle = Pace {
            num_steps: 0,
            busy: Duration::ZERO,
            step_p50: Duration::ZERO,
            step_p99: Duration::ZERO,
            waiting_tokens: pending_tokens,
            limits,
        };
        paces.into_iter().fold(idle, |all, one| Pace {
            num_steps: all.num_steps + one.num_steps,
            busy: all.busy + one.busy,
            step_p50: all.step_p50.max(one.step_p50),
            step_p99: all.step_p99.max(one.step_p99),
            waiting_tokens: all.waiting_tokens + one.waiting_tokens,
            limits: all.limits,
        })
    }

    /// Changes what steps may hold, of all workers and of those to come. False
    /// when a worker could not be told.
    pub fn set_limits(&self, limits: Limits) -> bool {
        self.pool.set_limits(limits)
    }

    /// Has all workers let go of retired adapters now, also those that stand idle.
    pub fn look_at_adapters(&self) {
        self.handles().iter().for_each(Handle::look_at_adapters);
    }

    /// Which adapters they have to do with; one that is on several engines stands there
    /// as often.
    #[must_use]
    pub fn adapters(&self) -> AdapterLoad {
        let loads = self.handles().into_iter().map(|handle| handle.adapters());
        let mut all = loads.fold(AdapterLoad::default(), |mut all, one| {
            all.running.extend(one.running);
            all.waiting.extend(one.waiting);
            all.resident.extend(one.resident);
            all
        });
        for ids in [&mut all.running, &mut all.waiting] {
            ids.sort_unstable();
            ids.dedup();
        }
        all.resident.sort_unstable();
        all
    }

    /// Refuses new requests from now on; those inside go on.
    pub fn close(&self) {
        self.pool.queue.close();
    }

    /// Fails whatever is left and ends all workers after their present steps.
    pub fn stop(&self) {
        self.pool.stop();
    }

    /// Waits until [`Workers::stop`] is done. False when a worker had ended in
    /// another way than it should.
    #[must_use]
    pub fn join(&self) -> bool {
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = supervisor.is_none_or(|supervisor| supervisor.join().is_ok());
        ended && self.pool.lock().clean
    }

    /// Whether nothing is queued, waiting or running.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pool.queue.queued() == 0 && self.handles().iter().all(Handle::is_done)
    }

    /// The longest that a worker has had work without making progress; zero when
    /// idle. `None` when all has been stopped.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let handles = self.handles();
        if handles.is_empty() && self.pool.lock().stopping {
            return None;
        }
        // A worker that has ended says nothing; it is started again.
        Some(handles.iter().filter_map(Handle::silence).max().unwrap_or_default())
    }

    /// Why no request can be served now, where the last start failed.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.pool.lock().failing().map(str::to_owned)
    }

    /// Everything that operators may want to see.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::of(&self.pool, Instant::now())
    }

    /// The ways to all workers but those that start.
    fn handles(&self) -> Vec<Handle> {
        self.pool.lock().workers.iter().map(|worker| worker.handle.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
