//! When requests arrive at random.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Times of independent arrivals at a rate per second; the same for the same seed.
pub fn poisson_times(count: usize, rate: f64, seed: u64) -> Vec<Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut time_s = 0.0;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(Duration::from_secs_f64(time_s));
        // One minus a number below one is above zero: its logarithm is finite.
        time_s -= (1.0 - random.random::<f64>()).ln() / rate;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_repeat() {
        let times = poisson_times(10_000, 4.0, 3);
        assert_eq!(times, poisson_times(10_000, 4.0, 3));
        assert_ne!(times, poisson_times(10_000, 4.0, 4));
        assert!((times[9_999].as_secs_f64() / 9_999.0 - 0.25).abs() < 0.01);
    }
}
