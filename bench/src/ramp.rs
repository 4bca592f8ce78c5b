//! A ramp to saturation: the rate is raised until the objective no longer holds, and the highest rate that held is
//! told.

use serde::{Deserialize, Serialize};

use crate::stats::PhaseSummary;

/// The rates of a ramp, each by a factor above the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ramp {
    /// Requests per second at first.
    pub start_rate: f64,
    /// Each next rate over the one before; above 1.
    pub factor: f64,
    /// No rate above it.
    pub max_rate: f64,
}

impl Ramp {
    /// All rates of the ramp, from the lowest.
    pub fn rates(&self) -> Vec<f64> {
        let rates = std::iter::successors(Some(self.start_rate), |rate| Some(rate * self.factor));
        // Three significant digits are enough for a name, and what is named is what is driven.
        rates.take_while(|rate| *rate <= self.max_rate * (1.0 + 1e-9)).map(three_digits).collect()
    }
}

fn three_digits(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.log10().floor() - 2.0);
    // Dividing by a whole number gives the nearest double to the decimal number; multiplying by 0.01 does not.
    let steps = (rate / unit).round();
    if unit < 1.0 { steps / (1.0 / unit).round() } else { steps * unit.round() }
}

/// Where a server's ramp ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RampEnd {
    /// The server.
    pub server: String,
    /// The highest rate, in requests per second, at which the objective held; none if it never did.
    pub held_rate: Option<f64>,
    /// The rate at which it no longer held; none if it held to the ramp's end.
    pub broken_rate: Option<f64>,
    /// For people: what happened at that rate.
    pub reason: String,
}

impl RampEnd {
    /// A server whose ramp has not begun.
    pub fn new(server: &str) -> Self {
        let reason = "the objective held at every rate: raise max_rate".to_owned();
        Self { server: server.to_owned(), held_rate: None, broken_rate: None, reason }
    }

    /// Whether the server is to be driven at the next rate too.
    pub fn is_rising(&self) -> bool {
        self.broken_rate.is_none()
    }

    /// Takes the phases of one rate, a round each. The rate held if the objective did in every round.
    pub fn take<'a>(&mut self, rate: f64, rounds: impl Iterator<Item = &'a PhaseSummary>) {
        let broken = rounds.filter_map(why_broken).next();
        match broken {
            None => self.held_rate = Some(rate),
            Some(reason) => (self.broken_rate, self.reason) = (Some(rate), reason),
        }
    }
}

impl std::fmt::Display for RampEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server, held_rate, broken_rate, reason } = self;
        match held_rate {
            Some(rate) => write!(f, "`{server}` held {rate} requests/s")?,
            None => write!(f, "`{server}` held no rate of the ramp")?,
        }
        match broken_rate {
            Some(rate) => write!(f, "; at {rate} requests/s {reason}"),
            None => write!(f, "; {reason}"),
        }
    }
}

/// What broke the objective in a phase.
fn why_broken(phase: &PhaseSummary) -> Option<String> {
    if let Some(gave_up) = &phase.gave_up {
        return Some(gave_up.clone());
    }
    let kept = phase.objective.as_ref().filter(|kept| !kept.is_held())?;
    let p95 = |times: Option<crate::times::Quantiles>| {
        times.map_or_else(|| "unknown".to_owned(), |times| format!("{:.0} ms", times.p95_ms))
    };
    Some(format!(
        "only {:.1} % of the requests kept the objective ({:.1} % must); time to first token p95 {}, end to end p95 \
         {}, {} failed",
        kept.share_kept * 100.0,
        kept.share_wanted * 100.0,
        p95(phase.ttft),
        p95(phase.e2e),
        phase.num_failed
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::ObjectiveFigures;

    fn phase(share_kept: f64) -> PhaseSummary {
        let objective = ObjectiveFigures {
            times: "first token ≤ 100 ms".to_owned(),
            share_wanted: 0.95,
            share_kept,
            goodput_per_s: 1.0,
        };
        PhaseSummary { objective: Some(objective), ..PhaseSummary::default() }
    }

    #[test]
    fn rates_rise_by_the_factor_to_the_highest() {
        let ramp = Ramp { start_rate: 1.0, factor: 1.5, max_rate: 8.0 };
        assert_eq!(ramp.rates(), [1.0, 1.5, 2.25, 3.38, 5.06, 7.59]);
        assert_eq!(
            Ramp { start_rate: 100.0, factor: 2.0, max_rate: 800.0 }.rates(),
            [100.0, 200.0, 400.0, 800.0]
        );
        assert_eq!(Ramp { start_rate: 0.04, factor: 3.0, max_rate: 0.4 }.rates(), [0.04, 0.12, 0.36]);
    }

    #[test]
    fn the_highest_rate_that_held_in_every_round_is_told() {
        let mut end = RampEnd::new("a");
        end.take(2.0, [phase(1.0), phase(0.95)].iter());
        assert_eq!((end.held_rate, end.is_rising()), (Some(2.0), true));
        end.take(4.0, [phase(1.0), phase(0.94)].iter());
        assert_eq!((end.held_rate, end.broken_rate, end.is_rising()), (Some(2.0), Some(4.0), false));
        let text = end.to_string();
        assert!(text.contains("held 2 requests/s; at 4 requests/s only 94.0 %"), "{text}");
    }

    #[test]
    fn a_ramp_that_never_held_or_never_broke_says_so() {
        let mut never_held = RampEnd::new("a");
        never_held.take(1.0, [phase(0.5)].iter());
        assert!(never_held.to_string().contains("held no rate of the ramp; at 1 requests/s"), "{never_held}");
        let mut never_broke = RampEnd::new("a");
        never_broke.take(1.0, [phase(1.0)].iter());
        assert!(never_broke.to_string().contains("raise max_rate"), "{never_broke}");
    }

    #[test]
    fn a_server_that_no_longer_answers_breaks_the_ramp() {
        let mut end = RampEnd::new("a");
        let silent = PhaseSummary { gave_up: Some("nobody answered".to_owned()), ..phase(1.0) };
        end.take(3.0, [silent].iter());
        assert_eq!((end.broken_rate, end.reason.as_str()), (Some(3.0), "nobody answered"));
    }
}
