//! A bound on the memory that request bodies take, all connections together.
//!
//! A slow body must not hold a place in the scheduler's queue, so bodies are
//! read before a place is taken; this bound takes the queue's part until then.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one semaphore permit stands for.
const UNIT_BYTES: usize = 4096;

/// Memory for bodies.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

/// Memory that one body took. Dropping it gives it back.
#[derive(Default)]
pub(super) struct Share {
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max_bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new((max_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Grows a share by a piece of its body, or says that there is no room.
    pub(super) fn grow(&self, share: &mut Share, bytes: usize) -> bool {
        let before = share.bytes.div_ceil(UNIT_BYTES);
        share.bytes += bytes;
        let units = share.bytes.div_ceil(UNIT_BYTES) - before;
        if units == 0 {
            return true;
        }
        let Ok(units) = u32::try_from(units) else { return false };
        let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(units) else { return false };
        match &mut share.held {
            Some(held) => held.merge(more),
            None => share.held = Some(more),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_and_come_back() {
        let budget = Budget::new(3 * UNIT_BYTES);
        let (mut one, mut two) = (Share::default(), Share::default());
        assert!(budget.grow(&mut one, 10));
        assert!(budget.grow(&mut one, UNIT_BYTES - 10), "still within the first unit");
        assert!(budget.grow(&mut two, 2 * UNIT_BYTES));
        assert!(!budget.grow(&mut one, 1));
        drop(two);
        assert!(budget.grow(&mut one, 1));
    }
}
