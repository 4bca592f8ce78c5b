//! From single requests to a phase's figures, and from phases to ratios of servers.
//!
//! It knows no HTTP and writes no file.

use std::collections::BTreeMap;
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

/// The figures of one phase: one server, one level, one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseSummary {
    /// The server's name.
    pub server: String,
    /// The level for people, as in `8 clients`.
    pub level: String,
    /// The level as a number, for plots.
    pub level_value: f64,
    /// From 0.
    pub round: usize,
    /// Requests that ended well, with good answers or wrong ones.
    pub num_ok: u64,
    /// Requests that failed.
    pub num_failed: u64,
    /// Of those that ended well, the ones whose answer is wrong.
    pub num_wrong: u64,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// Wrong answers by kind.
    pub wrong: BTreeMap<String, u64>,
    /// Answers compared with an expected one; of a classification, labels.
    pub num_with_expected: u64,
    /// Answers that contain it.
    pub num_as_expected: u64,
    /// From the first request's intended time to the last one's end; for long prompts, the sum of their times
    /// to first token.
    pub wall_s: f64,
    /// Prompt tokens of the requests that ended well, as far as the server says.
    pub prompt_tokens: u64,
    /// Answer tokens of the requests that ended well; for long prompts, the streams' tokens meanwhile.
    pub tokens: u64,
    /// Whether every token count came from the server; deltas were counted otherwise.
    pub is_counted_by_server: bool,
    /// Answer tokens per second.
    pub tokens_per_s: f64,
    /// Requests that ended well per second.
    pub requests_per_s: f64,
    /// From the intended time to the first content.
    pub ttft: Option<Quantiles>,
    /// Between one delta and the next, every one counted.
    pub tbt: Option<Quantiles>,
    /// Mean time a token after the first, one value a request.
    pub tpot: Option<Quantiles>,
    /// Longest time between two deltas, one value a request.
    pub longest_gap: Option<Quantiles>,
    /// From the intended time to the stream's end.
    pub e2e: Option<Quantiles>,
    /// From the intended time to sending.
    pub send_lateness: Option<Quantiles>,
    /// This program's share of one core during the phase.
    pub client_cpu_share: f64,
}

/// Share of a core above which the client may have slowed the servers' answers down.
const BUSY_CLIENT_SHARE: f64 = 0.5;
/// Lateness of sending above which the load was not the one intended.
const LATE_SEND_MS: f64 = 20.0;

impl PhaseSummary {
    /// Says why this phase measured the client rather than the server, if it did.
    pub fn client_trouble(&self) -> Option<String> {
        let late_ms = self.send_lateness.map_or(0.0, |late| late.p99_ms);
        if self.client_cpu_share > BUSY_CLIENT_SHARE {
            let percent = self.client_cpu_share * 100.0;
            Some(format!("the client took {percent:.0} % of a core: it may have been the bottleneck"))
        } else if late_ms > LATE_SEND_MS {
            Some(format!("requests were sent up to {late_ms:.0} ms late (p99): the client fell behind"))
        } else {
            None
        }
    }

    /// A figure by its place in [`FIGURES`].
    pub fn figure(&self, figure: &Figure) -> Option<f64> {
        (figure.value)(self).filter(|value| value.is_finite())
    }
}

/// A figure that tables and ratios show.
pub struct Figure {
    /// Short name with its unit.
    pub name: &'static str,
    /// Whether more is better.
    pub is_more_better: bool,
    /// Whether ratios of servers are formed of it.
    pub is_compared: bool,
    value: fn(&PhaseSummary) -> Option<f64>,
}

const fn more(name: &'static str, value: fn(&PhaseSummary) -> Option<f64>) -> Figure {
    Figure { name, is_more_better: true, is_compared: true, value }
}

const fn less(name: &'static str, value: fn(&PhaseSummary) -> Option<f64>) -> Figure {
    Figure { name, is_more_better: false, is_compared: true, value }
}

/// Every figure of the tables, in their order.
pub const FIGURES: &[Figure] = &[
    more("tok/s", |phase| Some(phase.tokens_per_s)),
    more("requests/s", |phase| Some(phase.requests_per_s)),
    less("TTFT p50 ms", |phase| phase.ttft.map(|q| q.p50_ms)),
    less("TTFT p95 ms", |phase| phase.ttft.map(|q| q.p95_ms)),
    less("TTFT p99 ms", |phase| phase.ttft.map(|q| q.p99_ms)),
    less("between tokens p50 ms", |phase| phase.tbt.map(|q| q.p50_ms)),
    less("between tokens p99 ms", |phase| phase.tbt.map(|q| q.p99_ms)),
    less("per token, request p50 ms", |phase| phase.tpot.map(|q| q.p50_ms)),
    less("longest gap p50 ms", |phase| phase.longest_gap.map(|q| q.p50_ms)),
    less("longest gap max ms", |phase| phase.longest_gap.map(|q| q.max_ms)),
    less("end to end p50 ms", |phase| phase.e2e.map(|q| q.p50_ms)),
    less("end to end p95 ms", |phase| phase.e2e.map(|q| q.p95_ms)),
    Figure {
        name: "client CPU %",
        is_more_better: false,
        is_compared: false,
        value: |phase| Some(phase.client_cpu_share * 100.0),
    },
];

/// Median and range of a few values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median; the mean of the two in the middle for an even count.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Values.
    pub count: usize,
}

impl Spread {
    /// The spread of some values; none if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max, count) = (*values.first()?, *values.last()?, values.len());
        let median = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
        Some(Self { median, min, max, count })
    }
}

/// The first server's figure over another's, pair by pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The level.
    pub level: String,
    /// The figure.
    pub figure: String,
    /// Whether a ratio above 1 is in the first server's favour.
    pub is_more_better: bool,
    /// The first server.
    pub over: String,
    /// The server that it is divided by.
    pub under: String,
    /// Over the rounds.
    pub ratio: Spread,
}

/// Levels in the order in which they were driven.
pub fn levels(phases: &[PhaseSummary]) -> Vec<&str> {
    first_seen(phases.iter().map(|phase| phase.level.as_str()))
}

/// Servers in the order in which they were driven.
pub fn servers(phases: &[PhaseSummary]) -> Vec<&str> {
    first_seen(phases.iter().map(|phase| phase.server.as_str()))
}

fn first_seen<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// The phases of one server at one level, a round each.
pub fn rounds<'a>(
    phases: &'a [PhaseSummary],
    server: &'a str,
    level: &'a str,
) -> impl Iterator<Item = &'a PhaseSummary> {
    phases.iter().filter(move |phase| phase.server == server && phase.level == level)
}

/// Ratios of the first server to each other one. A ratio is formed inside a round, of phases that ran one
/// after the other, so that slow changes of the machine fall on both.
pub fn ratios(phases: &[PhaseSummary]) -> Vec<Ratio> {
    let servers = servers(phases);
    let Some((first, others)) = servers.split_first() else { return Vec::new() };
    let mut ratios = Vec::new();
    for level in levels(phases) {
        for other in others {
            for figure in FIGURES.iter().filter(|figure| figure.is_compared) {
                let pairs = rounds(phases, first, level).filter_map(|over| {
                    let under = rounds(phases, other, level).find(|phase| phase.round == over.round)?;
                    let (over, under) = (over.figure(figure)?, under.figure(figure)?);
                    (under > 0.0).then(|| over / under)
                });
                ratios.extend(Spread::of(pairs).map(|ratio| Ratio {
                    level: level.to_owned(),
                    figure: figure.name.to_owned(),
                    is_more_better: figure.is_more_better,
                    over: (*first).to_owned(),
                    under: (*other).to_owned(),
                    ratio,
                }));
            }
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(server: &str, round: usize, tokens_per_s: f64) -> PhaseSummary {
        PhaseSummary {
            server: server.to_owned(),
            level: "1 client".to_owned(),
            level_value: 1.0,
            round,
            num_ok: 1,
            num_failed: 0,
            num_wrong: 0,
            failures: BTreeMap::new(),
            wrong: BTreeMap::new(),
            num_with_expected: 0,
            num_as_expected: 0,
            wall_s: 1.0,
            prompt_tokens: 0,
            tokens: 1,
            is_counted_by_server: true,
            tokens_per_s,
            requests_per_s: 1.0,
            ttft: None,
            tbt: None,
            tpot: None,
            longest_gap: None,
            e2e: None,
            send_lateness: None,
            client_cpu_share: 0.0,
        }
    }

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

    #[test]
    fn ratios_are_formed_pair_by_pair() {
        // The machine halves its speed in round 1: the ratio inside each pair stays.
        let phases = [
            phase("a", 0, 110.0),
            phase("b", 0, 100.0),
            phase("a", 1, 60.0),
            phase("b", 1, 50.0),
            phase("a", 2, 7.0),
        ];
        let ratios = ratios(&phases);
        let tokens = ratios.iter().find(|ratio| ratio.figure == "tok/s").unwrap();
        assert_eq!((tokens.over.as_str(), tokens.under.as_str(), tokens.ratio.count), ("a", "b", 2));
        assert!((tokens.ratio.median - 1.15).abs() < 1e-9);
        assert!((tokens.ratio.min - 1.1).abs() < 1e-9 && (tokens.ratio.max - 1.2).abs() < 1e-9);
    }

    #[test]
    fn a_busy_or_late_client_is_told() {
        let mut busy = phase("a", 0, 1.0);
        assert_eq!(busy.client_trouble(), None);
        busy.client_cpu_share = 0.9;
        assert!(busy.client_trouble().unwrap().contains("90 %"));
        let mut late = phase("a", 0, 1.0);
        let mut times = Times::default();
        times.record(Duration::from_millis(300));
        late.send_lateness = times.quantiles();
        assert!(late.client_trouble().unwrap().contains("fell behind"));
    }
}
