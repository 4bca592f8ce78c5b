//! From single requests to a phase's figures, and from phases to ratios of servers.
//!
//! It knows no HTTP and writes no file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::times::Quantiles;

/// What an objective made of a phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveFigures {
    /// The times, for people.
    pub times: String,
    /// Share of requests that must keep them.
    pub share_wanted: f64,
    /// Share of all requests that did. One that failed, or whose answer is wrong, did not.
    pub share_kept: f64,
    /// Requests per second that did.
    pub goodput_per_s: f64,
}

impl ObjectiveFigures {
    /// Whether enough requests kept the objective.
    pub fn is_held(&self) -> bool {
        self.share_kept >= self.share_wanted
    }
}

/// The figures of one tenant in a phase.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TenantFigures {
    /// Requests that ended well.
    pub num_ok: u64,
    /// Requests that failed.
    pub num_failed: u64,
    /// Answer tokens of those that ended well.
    pub tokens: u64,
    /// From the intended time to the first content.
    pub ttft: Option<Quantiles>,
    /// From the intended time to the end.
    pub e2e: Option<Quantiles>,
    /// Share of its requests that kept the objective, if there is one.
    pub share_kept: Option<f64>,
}

/// The figures of one phase: one server, one level, one round.
///
/// Fields that later versions brought are empty in results of earlier ones.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// From sending to the first content: what a client sees that does not count its own waiting.
    #[serde(default)]
    pub ttft_from_send: Option<Quantiles>,
    /// From sending to the end.
    #[serde(default)]
    pub e2e_from_send: Option<Quantiles>,
    /// From the intended time to sending.
    pub send_lateness: Option<Quantiles>,
    /// The part of it until this program noticed that the time had come; the rest is waiting for one of the
    /// places under way that the workload allows.
    #[serde(default)]
    pub wake_lateness: Option<Quantiles>,
    /// This program's share of one core during the phase.
    pub client_cpu_share: f64,
    /// This program's processor time during the phase, in seconds.
    #[serde(default)]
    pub client_cpu_s: f64,
    /// Goodput, if the workload has an objective.
    #[serde(default)]
    pub objective: Option<ObjectiveFigures>,
    /// Figures by tenant, if the workload has tenants.
    #[serde(default)]
    pub tenants: BTreeMap<String, TenantFigures>,
    /// Why the phase ended before its time, if it did.
    #[serde(default)]
    pub gave_up: Option<String>,
}

/// Share of a core above which the client may have slowed the servers' answers down.
const BUSY_CLIENT_SHARE: f64 = 0.5;
/// Lateness above which the load was not the one intended.
const MAX_LATE_MS: f64 = 20.0;

impl PhaseSummary {
    /// Says why this phase measured the client rather than the server, or another load than the one intended, if
    /// it did.
    pub fn client_trouble(&self) -> Option<String> {
        let p99_ms = |late: Option<Quantiles>| late.map_or(0.0, |late| late.p99_ms);
        let (wake_ms, send_ms) = (p99_ms(self.wake_lateness), p99_ms(self.send_lateness));
        if self.client_cpu_share > BUSY_CLIENT_SHARE {
            let percent = self.client_cpu_share * 100.0;
            Some(format!("the client took {percent:.0} % of a core: it may have been the bottleneck"))
        } else if wake_ms > MAX_LATE_MS {
            Some(format!(
                "the client woke up to {wake_ms:.0} ms after the intended times (p99): it was the bottleneck, or the \
                 machine was too busy for it"
            ))
        } else if send_ms > MAX_LATE_MS {
            Some(format!(
                "requests waited up to {send_ms:.0} ms here (p99), because as many were under way as \
                 max_in_flight allows; latencies from the intended times hold this wait"
            ))
        } else {
            None
        }
    }

    /// Processor time of this program for each request of the phase, in microseconds.
    pub fn client_cpu_us_per_request(&self) -> Option<f64> {
        let num_requests = self.num_ok + self.num_failed;
        (num_requests > 0 && self.client_cpu_s > 0.0).then(|| self.client_cpu_s * 1e6 / num_requests as f64)
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

/// A figure that tells how the measuring went; servers are not compared by it.
const fn aside(name: &'static str, value: fn(&PhaseSummary) -> Option<f64>) -> Figure {
    Figure { name, is_more_better: false, is_compared: false, value }
}

const fn less(name: &'static str, value: fn(&PhaseSummary) -> Option<f64>) -> Figure {
    Figure { name, is_more_better: false, is_compared: true, value }
}

/// Every figure of the tables, in their order.
pub const FIGURES: &[Figure] = &[
    // Labels have no tokens: answers without any are no rate of 0.
    more("tok/s", |phase| (phase.tokens_per_s > 0.0 || phase.num_ok == 0).then_some(phase.tokens_per_s)),
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
    more("goodput requests/s", |phase| phase.objective.as_ref().map(|kept| kept.goodput_per_s)),
    aside("kept the objective %", |phase| phase.objective.as_ref().map(|kept| kept.share_kept * 100.0)),
    aside("from sending: TTFT p95 ms", |phase| phase.ttft_from_send.map(|q| q.p95_ms)),
    aside("from sending: end to end p95 ms", |phase| phase.e2e_from_send.map(|q| q.p95_ms)),
    aside("sent late p99 ms", |phase| phase.send_lateness.map(|q| q.p99_ms)),
    aside("client CPU %", |phase| Some(phase.client_cpu_share * 100.0)),
    aside("client CPU µs a request", PhaseSummary::client_cpu_us_per_request),
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

/// Each name once, in the order in which they come.
pub(crate) fn first_seen<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
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
    use std::time::Duration;

    use super::*;
    use crate::times::Times;

    fn phase(server: &str, round: usize, tokens_per_s: f64) -> PhaseSummary {
        let (server, level) = (server.to_owned(), "1 client".to_owned());
        PhaseSummary { server, level, round, tokens_per_s, ..PhaseSummary::default() }
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
    fn labels_have_no_rate_of_tokens() {
        let labels = PhaseSummary { num_ok: 3, ..phase("a", 0, 0.0) };
        let none_of = |phases: &[PhaseSummary]| ratios(phases).iter().all(|ratio| ratio.figure != "tok/s");
        assert!(none_of(&[labels, phase("b", 0, 50.0)]));
        assert!(!none_of(&[phase("a", 0, 0.0), phase("b", 0, 50.0)]), "a server that failed has one");
    }

    #[test]
    fn a_busy_or_late_client_is_told() {
        let late = |ms| {
            let mut times = Times::default();
            times.record(Duration::from_millis(ms));
            times.quantiles()
        };
        let mut busy = phase("a", 0, 1.0);
        assert_eq!(busy.client_trouble(), None);
        busy.client_cpu_share = 0.9;
        assert!(busy.client_trouble().unwrap().contains("90 %"));
        let asleep =
            PhaseSummary { wake_lateness: late(300), send_lateness: late(300), ..phase("a", 0, 1.0) };
        assert!(asleep.client_trouble().unwrap().contains("woke up to 300 ms"));
        let crowded = PhaseSummary { wake_lateness: late(1), send_lateness: late(300), ..phase("a", 0, 1.0) };
        assert!(crowded.client_trouble().unwrap().contains("max_in_flight"));
    }

    #[test]
    fn the_clients_cost_is_told_for_each_request() {
        let cost = PhaseSummary { num_ok: 150, num_failed: 50, client_cpu_s: 0.02, ..phase("a", 0, 1.0) };
        assert!((cost.client_cpu_us_per_request().unwrap() - 100.0).abs() < 1e-9);
        assert_eq!(phase("a", 0, 1.0).client_cpu_us_per_request(), None);
    }
}
