//! Sets of times and their quantiles. Every percentile that this program tells comes from here.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest time a histogram can hold.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// A histogram of times with three significant digits, from a microsecond to an hour.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        let max = u64::try_from(MAX_TIME.as_micros()).expect("an hour in microseconds fits");
        Self(Histogram::new_with_bounds(1, max, 3).expect("bounds and digits are constants that it accepts"))
    }
}

impl Times {
    /// Takes one time; times over an hour count as an hour.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Times recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The usual quantiles; none if nothing was recorded.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        (!self.0.is_empty()).then(|| Quantiles {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1e3,
            p50_ms: at(0.50),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: self.0.max() as f64 / 1e3,
        })
    }
}

/// Quantiles of a set of times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Times recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_set() {
        let mut times = Times::default();
        assert_eq!(times.quantiles(), None);
        for ms in 1..=1000 {
            times.record(Duration::from_millis(ms));
        }
        times.record(Duration::from_secs(100_000));
        let q = times.quantiles().unwrap();
        assert_eq!(q.count, 1001);
        for (got, expected) in [(q.p50_ms, 501.0), (q.p95_ms, 951.0), (q.p99_ms, 991.0), (q.max_ms, 3.6e6)] {
            assert!((got - expected).abs() <= expected * 0.002, "{got} is not {expected}");
        }
    }
}
