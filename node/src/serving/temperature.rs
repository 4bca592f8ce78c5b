//! What the scores of a model's own head are divided by, which may change while it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A temperature, above 0. Cheap to clone, and all clones are one.
#[derive(Debug, Clone)]
pub struct Temperature(Arc<AtomicU32>);

impl Temperature {
    /// One that is `value` until it is set.
    #[must_use]
    pub fn new(value: f32) -> Temperature {
        Temperature(Arc::new(AtomicU32::new(value.to_bits())))
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Makes it `value`, and gives what it was.
    pub fn set(&self, value: f32) -> f32 {
        f32::from_bits(self.0.swap(value.to_bits(), Ordering::Relaxed))
    }
}
