//! Adapters' names as labels of metrics: a bounded number of them, for a time series
//! stays as long as the process.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What all names beyond the bound share.
const OTHER: &str = "other";

pub(super) struct Labels {
    max: usize,
    known: Mutex<HashSet<Arc<str>>>,
}

impl Labels {
    pub(super) fn new(max: usize) -> Labels {
        Labels { max, known: Mutex::default() }
    }

    /// The label of a name, the same each time.
    pub(super) fn of(&self, name: &str) -> Arc<str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(label) = known.get(name) {
            return Arc::clone(label);
        }
        if known.len() >= self.max {
            return OTHER.into();
        }
        let label: Arc<str> = name.into();
        known.insert(Arc::clone(&label));
        label
    }
}
