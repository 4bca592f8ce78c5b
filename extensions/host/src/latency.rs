//! Times of calls in buckets that grow with them, counted without a lock.
//!
//! Four buckets for each power of two of nanoseconds: a quantile is at most a
//! quarter too large.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BUCKETS: usize = 4 * 40;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Latency {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Latency { buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Latency {
    pub(crate) fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    /// The time that a share of calls did not exceed; zero without calls.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return Duration::ZERO;
        }
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = counts.iter().position(|&count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_nanos(upper_bound(reached.unwrap_or(BUCKETS - 1)))
    }
}

/// Bucket `4 * e + q` holds nanoseconds in `[(4 + q) << e, (5 + q) << e)` for
/// `e > 0`; the first four hold what is less than 8.
fn bucket(nanos: u64) -> usize {
    let exponent = (63 - (nanos | 4).leading_zeros() as usize) - 2;
    let quarter = (nanos >> exponent) as usize & 3;
    (4 * exponent + quarter).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    (5 + (bucket as u64 & 3)) << (bucket / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_never_too_small_and_a_quarter_too_large_at_most() {
        for nanos in [1u64, 7, 8, 100, 999, 4_700, 62_000, 1_000_000, 30_000_000_000] {
            let latency = Latency::default();
            latency.record(Duration::from_nanos(nanos));
            let found = latency.quantile(0.5).as_nanos() as u64;
            assert!(found >= nanos, "{nanos} became {found}");
            assert!(found <= nanos + nanos / 4 + 8, "{nanos} became {found}");
        }
    }

    #[test]
    fn quantiles_are_ordered() {
        let latency = Latency::default();
        for micros in 1..=100 {
            latency.record(Duration::from_micros(micros));
        }
        let (p50, p99) = (latency.quantile(0.5), latency.quantile(0.99));
        assert!(p50 >= Duration::from_micros(50) && p50 <= Duration::from_micros(64));
        assert!(p99 >= Duration::from_micros(99) && p99 <= Duration::from_micros(128));
        assert_eq!(Latency::default().quantile(0.5), Duration::ZERO);
    }
}
