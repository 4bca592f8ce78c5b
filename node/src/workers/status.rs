//! Everything that operators may want to see of workers.

use std::time::{Duration, Instant};

use super::Wish;
use super::pool::{Phase, Pool};

/// The wish, and what has become of it.
#[derive(Debug, Clone)]
pub struct Status {
    /// How many workers there should be.
    pub wish: Wish,
    /// Whether an operator has fixed the number.
    pub is_pinned: bool,
    /// Workers at least.
    pub min: u32,
    /// Workers at most.
    pub max: u32,
    /// Workers that serve.
    pub ready: u32,
    /// Workers in the making.
    pub starting: u32,
    /// Workers that only finish what they have.
    pub draining: u32,
    /// How long the last start took.
    pub start_took: Duration,
    /// Requests that wait for a worker to come.
    pub pending: usize,
    /// The last failure to have a worker.
    pub trouble: Option<Trouble>,
    /// Each one, oldest first.
    pub workers: Vec<WorkerStatus>,
}

/// The last failure to have a worker.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// What went wrong.
    pub why: String,
    /// How long ago.
    pub ago: Duration,
    /// When it is tried again; `None` once a worker has come since.
    pub retry_in: Option<Duration>,
}

/// One worker.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// Its number, which no other one had.
    pub id: u32,
    /// `starting`, `ready` or `draining`.
    pub state: &'static str,
    /// How long it has been there.
    pub age: Duration,
    /// Requests and sequences that it has not finished.
    pub inside: usize,
    /// Sequences that it works on.
    pub running: usize,
    /// Tokens of key-value state in use, cached prefixes included.
    pub kv_used: usize,
    /// How long it has had work without making progress.
    pub silence: Option<Duration>,
}

impl Status {
    pub(super) fn of(pool: &Pool, now: Instant) -> Status {
        let state = pool.lock();
        let present = state.workers.iter().map(|worker| {
            let load = worker.handle.load();
            WorkerStatus {
                id: worker.id,
                state: if worker.phase == Phase::Ready { "ready" } else { "draining" },
                age: now.saturating_duration_since(worker.since),
                inside: worker.handle.backlog().requests,
                running: load.running,
                kv_used: load.kv_used,
                silence: worker.handle.silence(),
            }
        });
        let starting = state.starting.iter().map(|starting| WorkerStatus {
            id: starting.id,
            state: "starting",
            age: now.saturating_duration_since(starting.since),
            inside: 0,
            running: 0,
            kv_used: 0,
            silence: None,
        });
        let mut workers: Vec<WorkerStatus> = present.chain(starting).collect();
        workers.sort_by_key(|worker| worker.id);
        Status {
            wish: state.wish.clone(),
            is_pinned: state.pinned.is_some(),
            min: pool.settings.min,
            max: pool.settings.max,
            ready: state.num_ready() as u32,
            starting: state.starting.len() as u32,
            draining: state.num_draining() as u32,
            start_took: state.start_took,
            pending: state.pending.len(),
            trouble: state.trouble.as_ref().map(|trouble| Trouble {
                why: trouble.why.clone(),
                ago: now.saturating_duration_since(trouble.at),
                retry_in: (!trouble.over).then(|| trouble.retry_at.saturating_duration_since(now)),
            }),
            workers,
        }
    }
}
