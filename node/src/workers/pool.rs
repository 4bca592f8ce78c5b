//! The workers there are, and the thread that starts, drains and ends them.
//!
//! A worker's states:
//! - starting → ready (its parts are made) | gone (they could not be made)
//! - ready → draining (fewer are wanted, or its engine is lost or fails again and
//!   again) | gone (its step loop ended by itself)
//! - draining → ready (more are wanted again) | stopping (it is done, or out of time)
//! - stopping → gone (its thread has ended, and its memory is free)
//!
//! Everything here is done in short turns under one lock. Parts are made on
//! threads of their own, and no command to a worker waits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::counter;
use quern_scheduler::request::Failure;
use quern_scheduler::{Handle, Limits, Queue, SchedulerConfig, spawn_on};

use super::prefixes::{BLOCK_TOKENS, Prefixes};
use super::route::Offer;
use super::window::Arrivals;
use super::wish::Wish;
use super::{Parts, Settings, Start};

/// How often the supervisor looks at what nobody tells it: ended threads and
/// passed deadlines.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// As [`LOOK_INTERVAL`], while a worker is about to end.
const ENDING_INTERVAL: Duration = Duration::from_millis(5);

/// Failed steps one after the other that make a worker suspect.
const MAX_FAILED_STEPS: u32 = 3;

/// See the module's text.
pub(super) struct Pool {
    pub(super) settings: Settings,
    scheduler: SchedulerConfig,
    start: Start,
    pub(super) queue: Queue,
    pub(super) kv_capacity_of_one: usize,
    pub(super) arrivals: Arrivals,
    /// Asks starts to give up.
    cancelled: AtomicBool,
    state: Mutex<State>,
    /// Something has to be looked at now.
    pub(super) changed: Condvar,
}

/// What changes, under the pool's lock.
pub(super) struct State {
    pub(super) workers: Vec<Worker>,
    pub(super) starting: Vec<Starting>,
    /// Requests that came while there was no worker, oldest first.
    pub(super) pending: VecDeque<Offer>,
    pub(super) wish: Wish,
    /// What an operator has fixed.
    pub(super) pinned: Option<u32>,
    /// Until when nobody need be asked for a wish.
    pub(super) hold_until: Option<Instant>,
    /// Since when nothing is queued or worked on.
    pub(super) idle_since: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
    /// How long the last start took.
    pub(super) start_took: Duration,
    limits: Limits,
    next_id: u32,
    pub(super) stopping: bool,
    /// Whether all workers that ended did so as told.
    pub(super) clean: bool,
}

/// A worker that computes.
pub(super) struct Worker {
    pub(super) id: u32,
    pub(super) handle: Handle,
    thread: JoinHandle<()>,
    pub(super) phase: Phase,
    /// When it came.
    pub(super) since: Instant,
    pub(super) prefixes: Prefixes,
    /// Time spent in steps, as of the last row of the window.
    pub(super) busy_seen: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Ready,
    /// A faulty one is not brought back.
    Draining {
        until: Instant,
        faulty: bool,
    },
    Stopping,
}

/// A worker in the making.
pub(super) struct Starting {
    pub(super) id: u32,
    pub(super) since: Instant,
}

/// The last failure to have a worker.
pub(super) struct Trouble {
    pub(super) why: String,
    pub(super) at: Instant,
    pub(super) retry_at: Instant,
    /// Failures of which none came long after the one before.
    num_failures: u32,
    /// Whether a worker has come since.
    pub(super) over: bool,
}

impl Pool {
    pub(super) fn new(
        settings: Settings,
        scheduler: SchedulerConfig,
        first: Parts,
        took: Duration,
        start: Start,
    ) -> std::io::Result<Arc<Pool>> {
        let queue = Queue::new(scheduler.max_queued);
        let kv_capacity_of_one = first.engine.capabilities().kv_capacity;
        let (handle, thread) = spawn(&queue, scheduler.clone(), first)?;
        let state = State {
            starting: Vec::new(),
            pending: VecDeque::new(),
            wish: Wish::configured(settings.start),
            pinned: None,
            hold_until: None,
            idle_since: None,
            trouble: None,
            start_took: took,
            limits: handle.pace().limits,
            next_id: 2,
            stopping: false,
            clean: true,
            workers: vec![Worker::new(1, handle, thread, kv_capacity_of_one)],
        };
        Ok(Arc::new(Pool {
            settings,
            scheduler,
            start,
            queue,
            kv_capacity_of_one,
            arrivals: Arrivals::default(),
            cancelled: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// Whatever panicked, what is here is whole between two calls.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.queue.close();
        self.cancelled.store(true, Ordering::Release);
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    pub(super) fn set_limits(&self, limits: Limits) -> bool {
        let mut state = self.lock();
        state.limits = limits;
        state.workers.iter().all(|worker| worker.handle.set_limits(limits).is_ok())
    }

    /// The limits for workers to come, and prompt tokens that wait for one.
    pub(super) fn limits_and_pending(&self) -> (Limits, u64) {
        let state = self.lock();
        let tokens = state.pending.iter().map(|offer| offer.request.prompt.len() as u64).sum();
        (state.limits, tokens)
    }

    /// Fulfils wishes until it is told to stop and all workers are gone.
    pub(super) fn supervise(self: Arc<Pool>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            self.bury(&mut state, now);
            if state.stopping {
                state.fail_pending(&Failure::ShuttingDown);
                state.workers.iter_mut().for_each(|worker| worker.stop(Failure::ShuttingDown));
                if state.workers.is_empty() && state.starting.is_empty() {
                    return;
                }
            } else {
                state.expire(now);
                self.scale(&mut state, now);
                self.flush(&mut state);
                self.note_idle(&mut state, now);
            }
            let is_ending = state.workers.iter().any(|worker| worker.phase != Phase::Ready);
            let wait = if is_ending { ENDING_INTERVAL } else { LOOK_INTERVAL };
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes away those whose thread has ended, and drains those that only fail.
    fn bury(&self, state: &mut State, now: Instant) {
        let (ended, live) =
            std::mem::take(&mut state.workers).into_iter().partition(|one: &Worker| one.thread.is_finished());
        state.workers = live;
        for worker in ended {
            let (id, told) = (worker.id, worker.phase == Phase::Stopping || state.stopping);
            let panicked = worker.thread.join().is_err();
            if told && !panicked {
                tracing::info!(worker = id, "worker ended");
                continue;
            }
            state.clean &= !panicked;
            counter!("quern_worker_failures_total", "kind" => "died").increment(1);
            tracing::error!(worker = id, panicked, "the step loop of a worker has ended by itself");
            state.failed("the step loop of a worker ended by itself".to_owned(), &self.settings, now);
        }
        let until = now + self.settings.drain_timeout;
        for idx in 0..state.workers.len() {
            let worker = &mut state.workers[idx];
            if worker.phase != Phase::Ready {
                continue;
            }
            let (kind, why) = if worker.handle.engine_lost() {
                ("lost", "the engine was lost")
            } else if worker.handle.failed_steps() >= MAX_FAILED_STEPS {
                ("faulty", "the engine failed again and again")
            } else {
                continue;
            };
            worker.phase = Phase::Draining { until, faulty: true };
            counter!("quern_worker_failures_total", "kind" => kind).increment(1);
            tracing::error!(worker = worker.id, why, "replacing a worker");
            state.failed(why.to_owned(), &self.settings, now);
        }
    }

    /// Starts, brings back, drains and ends workers until there are as many as wanted.
    fn scale(self: &Arc<Pool>, state: &mut State, now: Instant) {
        let wanted = state.wanted(&self.settings) as usize;
        while state.num_ready() + state.starting.len() < wanted {
            let mut leaving = state.workers.iter_mut();
            let back = leaving.find(|one| matches!(one.phase, Phase::Draining { faulty: false, .. }));
            if let Some(worker) = back {
                worker.phase = Phase::Ready;
                tracing::info!(worker = worker.id, "worker serves on");
            } else if state.trouble.as_ref().is_some_and(|trouble| trouble.retry_at > now) {
                break;
            } else {
                self.begin_start(state, now);
            }
        }
        let until = now + self.settings.drain_timeout;
        for _ in wanted..state.num_ready() {
            let ready = state.workers.iter_mut().filter(|worker| worker.phase == Phase::Ready);
            let least = ready.min_by_key(|worker| (worker.num_inside(), u32::MAX - worker.id));
            if let Some(worker) = least {
                worker.phase = Phase::Draining { until, faulty: false };
                tracing::info!(worker = worker.id, requests = worker.num_inside(), "draining worker");
            }
        }
        for worker in &mut state.workers {
            let Phase::Draining { until, .. } = worker.phase else { continue };
            let is_done = worker.handle.is_done();
            if !is_done && until <= now {
                tracing::warn!(worker = worker.id, "the drain timeout of a worker passed: cutting it off");
            }
            if is_done || until <= now {
                worker.stop(Failure::WorkerEnded);
            }
        }
    }

    fn begin_start(self: &Arc<Pool>, state: &mut State, now: Instant) {
        let id = state.next_id;
        state.next_id += 1;
        state.starting.push(Starting { id, since: now });
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("quern-start".into());
        if let Err(error) = thread.spawn(move || pool.make(id)) {
            self.came_to_nothing(state, id, format!("the system gives no thread: {error}"), now);
        }
    }

    /// Makes a worker, on a thread for that.
    fn make(&self, id: u32) {
        let began = Instant::now();
        let parts = catch_unwind(AssertUnwindSafe(|| (self.start)(&self.cancelled)));
        let made = match parts {
            Ok(Ok(parts)) => {
                spawn(&self.queue, self.scheduler.clone(), parts).map_err(|error| error.to_string())
            }
            Ok(Err(error)) => Err(with_causes(&*error)),
            Err(_) => Err("it panicked".to_owned()),
        };
        let mut state = self.lock();
        match made {
            Ok((handle, thread)) => {
                if handle.pace().limits != state.limits {
                    // Its way in is empty, so that it takes them.
                    let _ = handle.set_limits(state.limits);
                }
                let worker = Worker::new(id, handle, thread, self.kv_capacity_of_one);
                state.starting.retain(|starting| starting.id != id);
                state.workers.push(worker);
                state.start_took = began.elapsed();
                state.trouble.iter_mut().for_each(|trouble| trouble.over = true);
                tracing::info!(worker = id, took_ms = began.elapsed().as_millis() as u64, "worker ready");
            }
            Err(why) => self.came_to_nothing(&mut state, id, why, Instant::now()),
        }
        drop(state);
        self.changed.notify_all();
    }

    fn came_to_nothing(&self, state: &mut State, id: u32, why: String, now: Instant) {
        state.starting.retain(|starting| starting.id != id);
        if state.stopping {
            return;
        }
        counter!("quern_worker_failures_total", "kind" => "start").increment(1);
        tracing::error!(worker = id, error = why, "worker could not be started");
        state.failed(why.clone(), &self.settings, now);
        if state.num_ready() == 0 {
            state.fail_pending(&Failure::NoWorker(why));
        }
    }

    fn note_idle(&self, state: &mut State, now: Instant) {
        let is_idle = self.queue.queued() == 0 && state.workers.iter().all(|worker| worker.handle.is_done());
        state.idle_since = if is_idle { state.idle_since.or(Some(now)) } else { None };
    }
}

impl State {
    pub(super) fn num_ready(&self) -> usize {
        self.workers.iter().filter(|worker| worker.phase == Phase::Ready).count()
    }

    pub(super) fn num_draining(&self) -> usize {
        self.workers.len() - self.num_ready()
    }

    /// Why no request can be served now.
    pub(super) fn failing(&self) -> Option<&str> {
        let trouble = self.trouble.as_ref().filter(|trouble| !trouble.over)?;
        (self.num_ready() == 0).then_some(trouble.why.as_str())
    }

    /// Notes a failure, and when to try again: later each time, unless the one
    /// before is long ago.
    fn failed(&mut self, why: String, settings: &Settings, now: Instant) {
        let longest = settings.max_restart_delay.max(settings.restart_delay);
        let before = self.trouble.as_ref().filter(|trouble| now < trouble.retry_at + longest * 2);
        let num_failures = before.map_or(0, |trouble| trouble.num_failures) + 1;
        let delay = settings.restart_delay.saturating_mul(1 << (num_failures - 1).min(16)).min(longest);
        let retry_at = now + delay.max(Duration::from_millis(1));
        self.trouble = Some(Trouble { why, at: now, retry_at, num_failures, over: false });
    }
}

impl Worker {
    fn new(id: u32, handle: Handle, thread: JoinHandle<()>, kv_capacity: usize) -> Worker {
        let prefixes = Prefixes::new(kv_capacity.max(BLOCK_TOKENS));
        let (phase, since, busy_seen) = (Phase::Ready, Instant::now(), Duration::ZERO);
        Worker { id, handle, thread, phase, since, prefixes, busy_seen }
    }

    /// Tells it to end, and those it has left why, unless its way in has no room
    /// for that just now.
    fn stop(&mut self, why: Failure) {
        if self.phase != Phase::Stopping && self.handle.try_stop(why) {
            self.phase = Phase::Stopping;
        }
    }

    /// Whether requests can be given to it.
    pub(super) fn is_useful(&self) -> bool {
        self.phase == Phase::Ready && !self.handle.engine_lost()
    }

    /// Requests that it has not finished.
    fn num_inside(&self) -> usize {
        self.handle.backlog().requests
    }
}

/// Starts the thread of a worker on what it is made of.
fn spawn(queue: &Queue, config: SchedulerConfig, parts: Parts) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let Parts { engine, planner, drafter, reports } = parts;
    let (handle, thread) = spawn_on(queue, engine, config, planner, drafter)?;
    // Its way in is empty, so that it takes this.
    let _ = reports.map(|reports| handle.report(reports));
    Ok((handle, thread))
}

/// An error with all that caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Transparent errors say the same as their cause.
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
