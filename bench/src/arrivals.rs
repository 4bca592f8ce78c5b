//! When requests of an open loop arrive, and the clock that calls them.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::Instant;

use crate::workload::Amount;

/// Arrivals that were called and not yet heard; a load that is further behind is late in any case.
const MAX_CALLED: usize = 1024;

/// Distances between arrivals in open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Equal distances.
    Constant,
    /// Independent arrivals: exponential distances, the same ones for every server.
    Poisson,
}

impl Arrivals {
    /// When requests arrive at a rate (in requests per second), from the phase's beginning, in rising order.
    pub fn offsets(self, rate: f64, amount: Amount, seed: u64) -> Vec<Duration> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut time_s = 0.0;
        let mut offsets = Vec::new();
        loop {
            let is_enough = match amount {
                Amount::Requests(count) | Amount::RequestsPerClient(count) => offsets.len() >= count,
                Amount::Duration(duration) => time_s >= duration.as_secs_f64(),
            };
            if is_enough {
                return offsets;
            }
            offsets.push(Duration::from_secs_f64(time_s));
            time_s += match self {
                Self::Constant => 1.0 / rate,
                // One minus a number below one is above zero: its logarithm is finite.
                Self::Poisson => -(1.0 - random.random::<f64>()).ln() / rate,
            };
        }
    }
}

/// Calls each arrival's number at its time. The runtime's timers count whole milliseconds; a thread of its own
/// sleeps to within a tenth of one, and costs next to nothing. It ends with the last arrival, or at the next one
/// after the receiver was dropped.
///
/// # Errors
/// When the system gives no thread.
pub fn call(offsets: Vec<Duration>, started: Instant) -> std::io::Result<Receiver<usize>> {
    let (sender, receiver) = channel(MAX_CALLED);
    let started = started.into_std();
    std::thread::Builder::new().name("arrivals".to_owned()).spawn(move || {
        for (idx, offset) in offsets.into_iter().enumerate() {
            std::thread::sleep((started + offset).saturating_duration_since(std::time::Instant::now()));
            if sender.blocking_send(idx).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let offsets = Arrivals::Constant.offsets(4.0, Amount::Duration(Duration::from_secs(1)), 1);
        assert_eq!(offsets, [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(Arrivals::Constant.offsets(4.0, Amount::Requests(9), 1).len(), 9);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_repeat_by_seed() {
        let amount = Amount::Requests(20_000);
        let offsets = Arrivals::Poisson.offsets(50.0, amount, 3);
        assert_eq!(offsets, Arrivals::Poisson.offsets(50.0, amount, 3));
        assert_ne!(offsets, Arrivals::Poisson.offsets(50.0, amount, 4));
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.001, "{mean}");
        // The standard deviation of exponential distances is their mean.
        assert!((variance.sqrt() - 0.02).abs() < 0.001, "{}", variance.sqrt());
    }

    #[tokio::test]
    async fn every_arrival_is_called_in_order_and_none_early() {
        let offsets: Vec<Duration> = [0, 5, 5, 20].map(Duration::from_millis).to_vec();
        let started = Instant::now();
        let mut calls = call(offsets.clone(), started).unwrap();
        for (expected, offset) in offsets.into_iter().enumerate() {
            assert_eq!(calls.recv().await, Some(expected));
            assert!(started.elapsed() >= offset);
        }
        assert_eq!(calls.recv().await, None);
    }
}
