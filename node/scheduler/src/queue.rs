//! The bounded queue in front of one scheduler or several.
//!
//! A caller takes a [`Permit`] before it does any work for a request, and the
//! permit travels with the request until it leaves the queue. So the number of
//! queued requests is bounded where it is cheapest to say no.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A place in the queue. Dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    queue: Queue,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The bounded queue, which several schedulers may share: a permit is good for
/// any of them. Cheap to clone, and all clones are the same queue.
#[derive(Debug, Clone)]
pub struct Queue(Arc<QueueState>);

#[derive(Debug)]
struct QueueState {
    max_queued: usize,
    queued: AtomicUsize,
    closed: AtomicBool,
    started: Instant,
    /// Smoothed time between two requests leaving the queue, for `Retry-After`.
    turnover_us: AtomicU64,
    /// When the last one left, in microseconds since `started`.
    last_start_us: AtomicU64,
}

impl Queue {
    /// An empty queue for so many requests.
    #[must_use]
    pub fn new(max_queued: usize) -> Queue {
        Queue(Arc::new(QueueState {
            max_queued,
            queued: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            started: Instant::now(),
            turnover_us: AtomicU64::new(100_000),
            last_start_us: AtomicU64::new(0),
        }))
    }

    /// Takes a place, before any work is done for the request.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::Closed`].
    pub fn reserve(&self) -> Result<Permit, Refused> {
        let state = &*self.0;
        if state.closed.load(Ordering::Acquire) {
            return Err(Refused::Closed);
        }
        let max = state.max_queued;
        let taken =
            state.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Permit { queue: self.clone() }),
            Err(queued) => {
                let turnover = state.turnover_us.load(Ordering::Relaxed);
                let retry_after = Duration::from_micros(turnover.saturating_mul(queued as u64));
                Err(Refused::Full { queued, retry_after })
            }
        }
    }

    /// Refuses new requests from now on; those inside go on.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Requests with a permit that have not started.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.0.queued.load(Ordering::Acquire)
    }

    /// Keeps a smoothed time between two starts. Where several schedulers meet
    /// here a value may be lost, which a guess can bear.
    pub(crate) fn note_start(&self) {
        let state = &*self.0;
        let now_us = state.started.elapsed().as_micros() as u64;
        let last_us = state.last_start_us.swap(now_us, Ordering::Relaxed);
        let gap_us = now_us.saturating_sub(last_us).min(10_000_000);
        let old = state.turnover_us.load(Ordering::Relaxed);
        state.turnover_us.store((old * 7 + gap_us) / 8, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_clones_are_one_queue() {
        let queue = Queue::new(2);
        let permit = queue.clone().reserve().unwrap();
        let other = queue.reserve().unwrap();
        assert!(matches!(queue.reserve(), Err(Refused::Full { queued: 2, .. })));
        drop((permit, other));
        assert_eq!(queue.queued(), 0);
        queue.clone().close();
        assert!(queue.is_closed() && matches!(queue.reserve(), Err(Refused::Closed)));
    }
}
