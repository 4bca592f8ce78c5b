//! The queueing model M/M/c: arrivals at random, service times that are exponential, one queue before c places.
//!
//! The probability of waiting is Erlang's C formula (A. K. Erlang, 1917); the distribution of the whole time in the
//! system is that of D. Gross and C. M. Harris, Fundamentals of Queueing Theory, for first come, first served.

/// A server with places that work at the same time, each at the same speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Queue {
    /// How many are served at a time; at least 1.
    pub num_places: u32,
    /// Mean seconds that one is served; above 0.
    pub service_s: f64,
}

impl Queue {
    /// Arrivals per second at which the queue would grow for ever.
    pub fn capacity(self) -> f64 {
        f64::from(self.num_places) / self.service_s
    }

    /// The probability that an arrival finds all places taken, at `rate` arrivals per second below the capacity.
    pub fn waiting_probability(self, rate: f64) -> f64 {
        let offered = rate * self.service_s;
        // Erlang's B formula, place by place, which no factorial makes overflow.
        let blocked = (1..=self.num_places).fold(1.0, |blocked, place| {
            let part = offered * blocked;
            part / (f64::from(place) + part)
        });
        let utilisation = rate / self.capacity();
        blocked / (1.0 - utilisation * (1.0 - blocked))
    }

    /// The probability that somebody is longer in the system than `time_s` seconds, waiting and service together.
    fn tail(self, rate: f64, time_s: f64) -> f64 {
        let (served, drained) = (1.0 / self.service_s, self.capacity() - rate);
        let waits = self.waiting_probability(rate);
        let alone = (-served * time_s).exp();
        let both = if ((drained - served) / served).abs() < 1e-9 {
            (1.0 + served * time_s) * alone
        } else {
            (drained * alone - served * (-drained * time_s).exp()) / (drained - served)
        };
        (1.0 - waits) * alone + waits * both
    }

    /// Seconds in the system that so large a part does not exceed, at `rate` arrivals per second; infinite from the
    /// capacity on.
    pub fn quantile_s(self, rate: f64, part: f64) -> f64 {
        if rate >= self.capacity() {
            return f64::INFINITY;
        }
        let is_beyond = |time_s: f64| self.tail(rate, time_s) <= 1.0 - part;
        let mut high = self.service_s;
        while !is_beyond(high) {
            high *= 2.0;
        }
        boundary(0.0, high, is_beyond)
    }

    /// The highest rate at which the quantile is at most `limit_s`; none if even a request alone takes longer.
    pub fn highest_rate(self, part: f64, limit_s: f64) -> Option<f64> {
        let is_late = |rate: f64| self.quantile_s(rate, part) > limit_s;
        (!is_late(0.0)).then(|| boundary(0.0, self.capacity(), is_late))
    }
}

/// Where a condition that does not hold at `low` begins to hold, which it does at `high`: to the last digits, from below.
fn boundary(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    // Each time halves the distance; 64 are more than a number has digits.
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if holds(middle) { high = middle } else { low = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_probabilities_are_those_of_the_tables() {
        let waits =
            |num_places, offered: f64| Queue { num_places, service_s: 1.0 }.waiting_probability(offered);
        assert!((waits(1, 0.6) - 0.6).abs() < 1e-12);
        assert!((waits(2, 1.0) - 1.0 / 3.0).abs() < 1e-12);
        assert!((waits(10, 8.0) - 0.409_18).abs() < 1e-4);
        assert!((0.0..1.0).contains(&waits(5000, 4900.0)));
    }

    #[test]
    fn one_place_is_the_known_exponential_law() {
        let queue = Queue { num_places: 1, service_s: 0.5 };
        // The time in an M/M/1 system is exponential with the rate at which it drains.
        assert!((queue.quantile_s(1.5, 0.95) - 20.0_f64.ln() / 0.5).abs() < 1e-9);
        assert!((queue.quantile_s(0.0, 0.95) - 20.0_f64.ln() * 0.5).abs() < 1e-9);
        assert_eq!(queue.quantile_s(2.0, 0.95), f64::INFINITY);
    }

    #[test]
    fn the_limits_of_equal_rates_agree_with_their_neighbours() {
        // Of two places at half their capacity, draining is as fast as service: the formula's special case.
        let queue = Queue { num_places: 2, service_s: 1.0 };
        let (at, near) = (queue.quantile_s(1.0, 0.95), queue.quantile_s(1.000_001, 0.95));
        assert!((at - near).abs() < 1e-4, "{at} and {near}");
    }

    #[test]
    fn the_highest_rate_is_where_the_limit_is_reached() {
        let queue = Queue { num_places: 8, service_s: 0.02 };
        let rate = queue.highest_rate(0.95, 0.08).unwrap();
        assert!(rate > 0.0 && rate < queue.capacity());
        assert!((queue.quantile_s(rate, 0.95) - 0.08).abs() < 1e-6);
        assert_eq!(queue.highest_rate(0.95, 0.05), None, "ln 20 times 20 ms are 60 ms");
    }
}
