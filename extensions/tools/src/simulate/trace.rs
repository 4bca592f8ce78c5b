//! Who arrives when: read from a file, or made up.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::Args;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::{Costs, Usage};

/// Rows that a trace may have.
const MAX_ARRIVALS: usize = 1 << 20;

/// A request to come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) at_us: u64,
    pub(crate) prompt: u32,
    /// Of the prompt, tokens that the prefix cache holds.
    pub(crate) cached: u32,
    /// Its answer is as long as it may be.
    pub(crate) max_new: u32,
    /// A place in `Trace::tenants`.
    pub(crate) tenant: usize,
    pub(crate) priority: u8,
    /// From arrival.
    pub(crate) deadline_us: Option<u64>,
    pub(crate) adapter: u32,
}

/// Arrivals in order of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Trace {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) tenants: Vec<String>,
}

/// A trace that is made up: Poisson arrivals, lengths that scatter exponentially.
#[derive(Debug, Clone, Args)]
pub struct Synthetic {
    /// Requests a second, all tenants together.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "load")]
    pub rate: Option<f64>,
    /// Arrivals as a multiple of what the costs allow with all places taken.
    #[arg(long, value_name = "FACTOR", default_value_t = 0.8)]
    pub load: f64,
    /// How long requests arrive.
    #[arg(long, default_value_t = 300.0)]
    pub seconds: f64,
    /// Tokens of a prompt on average; four times that at most.
    #[arg(long, default_value_t = 128)]
    pub prompt: u32,
    /// Share of each prompt that the prefix cache holds.
    #[arg(long, default_value_t = 0.0)]
    pub cached: f64,
    /// Tokens of an answer on average; four times that at most.
    #[arg(long, default_value_t = 48)]
    pub answer: u32,
    /// Tenants, called t0, t1 and so on.
    #[arg(long, default_value_t = 1)]
    pub tenants: u32,
    /// Times as many requests as any other tenant that t0 sends.
    #[arg(long, default_value_t = 1.0)]
    pub flood: f64,
    /// Deadlines of requests, one or LEAST..MOST.
    #[arg(long, value_name = "MS")]
    pub deadline_ms: Option<String>,
    /// Adapters, of which each request wants one.
    #[arg(long, default_value_t = 0)]
    pub adapters: u32,
    /// Another seed makes another trace.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Synthetic {
    /// Requests a second, as given or as the load says.
    fn rate(&self, costs: &Costs, max_running: u32) -> f64 {
        let computed = f64::from(self.prompt) * (1.0 - self.cached);
        // Each token's step is shared by all places.
        let a_token = costs.row_us + costs.output_us + costs.fixed_us / f64::from(max_running.max(1));
        let request_us = computed * costs.row_us + f64::from(self.answer) * a_token;
        self.rate.unwrap_or(self.load * 1e6 / request_us.max(1.0))
    }

    fn checked(&self) -> Result<(f64, f64), Usage> {
        let sane = |value: f64| value.is_finite() && value > 0.0;
        let sound =
            sane(self.rate.unwrap_or(1.0)) && sane(self.load) && sane(self.seconds) && sane(self.flood);
        if !sound
            || self.prompt == 0
            || self.answer == 0
            || self.tenants == 0
            || !(0.0..=1.0).contains(&self.cached)
        {
            return Err(Usage(
                "a synthetic trace wants numbers above zero, and a cached share of 1 at most".into(),
            ));
        }
        let Some(text) = &self.deadline_ms else { return Ok((0.0, 0.0)) };
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        match (least.trim().parse::<f64>(), most.trim().parse::<f64>()) {
            (Ok(least), Ok(most)) if least > 0.0 && most >= least && most < 1e9 => Ok((least, most)),
            _ => Err(Usage(format!("--deadline-ms wants a number or LEAST..MOST, not `{text}`"))),
        }
    }

    pub(crate) fn trace(&self, costs: &Costs, max_running: u32) -> anyhow::Result<Trace> {
        let (least_ms, most_ms) = self.checked()?;
        let rate = self.rate(costs, max_running);
        ensure!(rate * self.seconds < MAX_ARRIVALS as f64, "more than {MAX_ARRIVALS} requests");
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let tenants = (0..self.tenants).map(|tenant| format!("t{tenant}")).collect();
        let mut trace = Trace { arrivals: Vec::new(), tenants };
        let weights = self.flood + f64::from(self.tenants - 1);
        let mut at_s = 0.0;
        loop {
            at_s += exponential(&mut random) / rate;
            if at_s > self.seconds {
                return Ok(trace);
            }
            let place = random.random::<f64>() * weights - self.flood;
            let tenant = if place < 0.0 { 0 } else { (place as usize + 1).min(self.tenants as usize - 1) };
            let prompt = length(&mut random, self.prompt);
            let cached = (f64::from(prompt) * self.cached) as u32;
            let max_new = length(&mut random, self.answer);
            let deadline_ms = least_ms + random.random::<f64>() * (most_ms - least_ms);
            trace.arrivals.push(Arrival {
                at_us: (at_s * 1e6) as u64,
                prompt,
                cached: cached.min(prompt - 1),
                max_new,
                tenant,
                priority: 128,
                deadline_us: self.deadline_ms.is_some().then_some((deadline_ms * 1000.0) as u64),
                adapter: if self.adapters == 0 { 0 } else { random.random_range(1..=self.adapters) },
            });
        }
    }
}

fn exponential(random: &mut ChaCha8Rng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

fn length(random: &mut ChaCha8Rng, mean: u32) -> u32 {
    (f64::from(mean) * exponential(random).min(4.0)).ceil().max(1.0) as u32
}

/// A line of a trace's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_ms: f64,
    prompt: u32,
    #[serde(default)]
    cached: u32,
    max_new: u32,
    #[serde(default)]
    tenant: String,
    priority: Option<u8>,
    deadline_ms: Option<f64>,
    #[serde(default)]
    adapter: u32,
}

impl Trace {
    /// Reads `at_ms,prompt,cached,max_new,tenant,priority,deadline_ms,adapter`, of
    /// which only the first two and `max_new` must be there.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Trace> {
        let file = std::fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Trace::parse(file).with_context(|| format!("{} is no trace", path.display()))
    }

    fn parse(reader: impl std::io::Read) -> anyhow::Result<Trace> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(reader);
        let mut trace = Trace::default();
        let mut places = BTreeMap::new();
        for (row, line) in reader.deserialize().enumerate() {
            let line: Line = line?;
            ensure!(row < MAX_ARRIVALS, "more than {MAX_ARRIVALS} requests");
            let times = [line.at_ms, line.deadline_ms.unwrap_or(1.0)];
            ensure!(
                times.iter().all(|ms| (0.0..1e12).contains(ms)),
                "line {}: times are milliseconds",
                row + 2
            );
            ensure!(
                line.prompt > 0 && line.max_new > 0,
                "line {}: prompt and max_new are at least 1",
                row + 2
            );
            let tenant = *places.entry(line.tenant.clone()).or_insert_with(|| {
                trace.tenants.push(line.tenant.clone());
                trace.tenants.len() - 1
            });
            trace.arrivals.push(Arrival {
                at_us: (line.at_ms * 1000.0) as u64,
                prompt: line.prompt,
                cached: line.cached.min(line.prompt - 1),
                max_new: line.max_new,
                tenant,
                priority: line.priority.unwrap_or(128),
                deadline_us: line.deadline_ms.map(|ms| (ms * 1000.0) as u64),
                adapter: line.adapter,
            });
        }
        trace.arrivals.sort_by_key(|arrival| arrival.at_us);
        Ok(trace)
    }

    /// The same without one tenant's requests.
    pub(crate) fn without(&self, tenant: usize) -> Trace {
        let mut others = self.clone();
        others.arrivals.retain(|arrival| arrival.tenant != tenant);
        others
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        synthetic: Synthetic,
    }

    fn synthetic(flags: &[&str]) -> Synthetic {
        Flags::parse_from([&["test"], flags].concat()).synthetic
    }

    const COSTS: Costs = Costs { fixed_us: 1000.0, row_us: 100.0, output_us: 100.0 };

    #[test]
    fn a_flood_is_as_large_as_asked_for_and_the_same_for_a_seed() {
        let flags = synthetic(&["--tenants", "5", "--flood", "10", "--rate", "100", "--seconds", "200"]);
        let trace = flags.trace(&COSTS, 8).unwrap();
        assert_eq!(trace, flags.trace(&COSTS, 8).unwrap());
        let of = |tenant| trace.arrivals.iter().filter(|arrival| arrival.tenant == tenant).count() as f64;
        assert!((trace.arrivals.len() as f64 / 20_000.0 - 1.0).abs() < 0.05);
        assert!((of(0) / of(3) / 10.0 - 1.0).abs() < 0.15, "{} to {}", of(0), of(3));
        assert_eq!(trace.without(0).arrivals.len() as f64, (1..5).map(of).sum::<f64>());
    }

    #[test]
    fn the_load_follows_from_the_costs() {
        let flags = synthetic(&["--load", "1.5", "--prompt", "50", "--answer", "20"]);
        let request_us = 50.0 * 100.0 + 20.0 * (200.0 + 1000.0 / 8.0);
        assert!((flags.rate(&COSTS, 8) * request_us / 1e6 - 1.5).abs() < 1e-9);
    }

    #[test]
    fn nonsense_is_refused() {
        for flags in [
            &["--prompt", "0"][..],
            &["--deadline-ms", "soon"],
            &["--deadline-ms", "9..3"],
            &["--cached", "2"],
        ] {
            let error = synthetic(flags).trace(&COSTS, 8).unwrap_err();
            assert!(error.is::<Usage>(), "{error}");
        }
    }

    #[test]
    fn a_file_may_leave_columns_out_and_is_sorted() {
        let trace = Trace::parse("at_ms,prompt,max_new,tenant\n20,5,1,b\n10,7,2,a\n".as_bytes()).unwrap();
        assert_eq!(trace.tenants, ["b", "a"]);
        assert_eq!(
            (trace.arrivals[0].at_us, trace.arrivals[0].prompt, trace.arrivals[0].tenant),
            (10_000, 7, 1)
        );
        assert_eq!(trace.arrivals[1].deadline_us, None);
        for wrong in [
            "at_ms,prompt,max_new\n-1,5,1\n",
            "at_ms,prompt,max_new\n1,0,1\n",
            "at_ms,prompt,max_new,when\n1,1,1,1\n",
        ] {
            assert!(Trace::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
