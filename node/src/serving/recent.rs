//! How the last requests fared: what policies and autoscaling go by.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Requests that are remembered.
const KEPT: usize = 256;

/// How the last requests fared, as their clients felt it.
#[derive(Debug, Default)]
pub struct Recent {
    first_tokens_us: Mutex<VecDeque<u32>>,
    between_tokens_us: Mutex<VecDeque<u32>>,
    /// Since the last second was noted.
    num_tokens: AtomicU64,
    tokens_per_second: AtomicU32,
}

impl Recent {
    /// A request's first token came so long after its arrival.
    pub fn first_token(&self, after: Duration) {
        push(&self.first_tokens_us, after);
    }

    /// A request ended, and its tokens came so far apart on average.
    pub fn between_tokens(&self, apart: Duration) {
        push(&self.between_tokens_us, apart);
    }

    /// A token was generated.
    pub fn token(&self) {
        self.num_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns the tokens since the last call, `took` ago, into a rate.
    pub fn note_second(&self, took: Duration) {
        let rate = self.num_tokens.swap(0, Ordering::Relaxed) as f64 / took.as_secs_f64();
        self.tokens_per_second.store(rate as u32, Ordering::Relaxed);
    }

    /// Of the last requests, all but a twentieth had their first token after at most this.
    #[must_use]
    pub fn first_token_p95(&self) -> Duration {
        p95(&self.first_tokens_us)
    }

    /// Of the last requests, all but a twentieth had their tokens at most this far apart.
    #[must_use]
    pub fn between_tokens_p95(&self) -> Duration {
        p95(&self.between_tokens_us)
    }

    /// Tokens in the second that was noted last.
    #[must_use]
    pub fn tokens_per_second(&self) -> u32 {
        self.tokens_per_second.load(Ordering::Relaxed)
    }
}

fn push(ring: &Mutex<VecDeque<u32>>, value: Duration) {
    let mut ring = ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if ring.len() == KEPT {
        ring.pop_front();
    }
    ring.push_back(u32::try_from(value.as_micros()).unwrap_or(u32::MAX));
}

/// The value that a twentieth exceed, zero where there is none.
fn p95(ring: &Mutex<VecDeque<u32>>) -> Duration {
    let mut values: Vec<u32> =
        ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().copied().collect();
    values.sort_unstable();
    Duration::from_micros(values.get(values.len() * 95 / 100).copied().unwrap_or(0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p95_is_of_the_last_requests() {
        let recent = Recent::default();
        assert_eq!(recent.first_token_p95(), Duration::ZERO);
        (0..1000).for_each(|_| recent.first_token(Duration::from_secs(9)));
        (1..=KEPT as u64).for_each(|ms| recent.first_token(Duration::from_millis(ms)));
        assert_eq!(recent.first_token_p95().as_millis(), 244);
    }

    #[test]
    fn tokens_become_a_rate() {
        let recent = Recent::default();
        (0..30).for_each(|_| recent.token());
        recent.note_second(Duration::from_millis(1500));
        assert_eq!(recent.tokens_per_second(), 20);
        recent.note_second(Duration::from_secs(1));
        assert_eq!(recent.tokens_per_second(), 0);
    }
}
