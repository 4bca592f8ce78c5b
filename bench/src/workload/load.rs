//! The table `[load]`: how requests arrive, and when there are enough.

use std::time::Duration;

use serde::Deserialize;

use super::WorkloadError;
use super::place::Place;
use crate::arrivals::Arrivals;
use crate::prompts::PromptSource;
use crate::ramp::Ramp;

/// Requests under way at once, unless the workload says another number.
const DEFAULT_MAX_IN_FLIGHT: usize = 512;

/// How requests arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// A fixed number of clients, each sending its next request when the last one ended.
    Closed {
        /// Levels, driven one after the other.
        clients: Vec<usize>,
        /// When a level ends.
        amount: Amount,
    },
    /// Requests arrive at a rate, whether or not earlier ones have ended.
    Open {
        /// Distances between arrivals.
        arrivals: Arrivals,
        /// Levels in requests per second.
        rates: Vec<f64>,
        /// When a level ends.
        amount: Amount,
        /// Requests under way at once; later ones wait here, and their latency counts from their intended time.
        max_in_flight: usize,
    },
    /// Like `Open`, at rates that rise until the objective no longer holds.
    Ramp {
        /// Distances between arrivals.
        arrivals: Arrivals,
        /// The rates.
        ramp: Ramp,
        /// When a rate was driven for long enough.
        amount: Amount,
        /// As in `Open`.
        max_in_flight: usize,
    },
    /// Requests arrive as they did before, at the times of a trace.
    Trace {
        /// The trace's file.
        trace: String,
        /// Levels: how many times faster than it was.
        speeds: Vec<f64>,
        /// As in `Open`.
        max_in_flight: usize,
    },
    /// Clients stream without pause; one long prompt arrives among them, again and again.
    LongPrompt {
        /// Levels: how many clients stream.
        streams: Vec<usize>,
        /// Tokens that each stream must have sent before the long prompt arrives.
        settle_tokens: usize,
        /// Long prompts a round.
        trials: usize,
        /// Pause between two trials, so that a server notices the streams that were dropped.
        rest: Duration,
        /// The long prompt itself.
        prompts: Box<PromptSource>,
        /// Tokens that the long prompt's answer may have.
        max_tokens: u32,
    },
}

/// When a level has enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many requests in all.
    Requests(usize),
    /// So many requests for each client of the level.
    RequestsPerClient(usize),
    /// No new request after this time; those under way end.
    Duration(Duration),
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Closed,
    Open,
    Ramp,
    Trace,
    LongPrompt,
}

/// As a workload writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLoad {
    mode: Mode,
    clients: Option<Vec<usize>>,
    arrivals: Option<Arrivals>,
    rates: Option<Vec<f64>>,
    start_rate: Option<f64>,
    factor: Option<f64>,
    max_rate: Option<f64>,
    trace: Option<String>,
    speeds: Option<Vec<f64>>,
    requests: Option<usize>,
    requests_per_client: Option<usize>,
    duration_s: Option<f64>,
    max_in_flight: Option<usize>,
    streams: Option<Vec<usize>>,
    settle_tokens: Option<usize>,
    trials: Option<usize>,
    rest_s: Option<f64>,
    long: Option<PromptSource>,
    long_max_tokens: Option<u32>,
    #[serde(default = "default_keep_connections")]
    pub(super) keep_connections: bool,
    #[serde(default)]
    pub(super) warmup: usize,
    #[serde(default = "default_stall_timeout_s")]
    pub(super) stall_timeout_s: f64,
    #[serde(default = "default_request_timeout_s")]
    pub(super) request_timeout_s: f64,
}

fn default_keep_connections() -> bool {
    true
}

fn default_stall_timeout_s() -> f64 {
    60.0
}

fn default_request_timeout_s() -> f64 {
    300.0
}

fn is_good_rate(rate: &f64) -> bool {
    rate.is_finite() && *rate > 0.0
}

impl RawLoad {
    pub(super) fn is_ramp(&self) -> bool {
        self.mode == Mode::Ramp
    }

    pub(super) fn resolve(self, place: &Place<'_>) -> Result<Load, WorkloadError> {
        self.refuse_keys_of_other_modes(place)?;
        let max_in_flight = self.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        if max_in_flight == 0 {
            return Err(place.error("load", "max_in_flight", "must be at least 1"));
        }
        let load = match self.mode {
            Mode::Closed => Load::Closed {
                clients: place.levels("clients", self.clients.as_deref(), |&n| n > 0)?,
                amount: self.amount(place)?,
            },
            Mode::Open => Load::Open {
                arrivals: self.arrivals.ok_or_else(|| place.error("load", "arrivals", "is missing"))?,
                rates: place.levels("rates", self.rates.as_deref(), is_good_rate)?,
                amount: self.amount(place)?,
                max_in_flight,
            },
            Mode::Ramp => Load::Ramp {
                arrivals: self.arrivals.ok_or_else(|| place.error("load", "arrivals", "is missing"))?,
                ramp: self.ramp(place)?,
                amount: self.amount(place)?,
                max_in_flight,
            },
            Mode::Trace => Load::Trace {
                speeds: match &self.speeds {
                    None => vec![1.0],
                    speeds => place.levels("speeds", speeds.as_deref(), is_good_rate)?,
                },
                trace: self.trace.ok_or_else(|| place.error("load", "trace", "is missing"))?,
                max_in_flight,
            },
            Mode::LongPrompt => self.long_prompt(place)?,
        };
        Ok(load)
    }

    /// A key that another mode reads would do nothing here: it is a mistake.
    fn refuse_keys_of_other_modes(&self, place: &Place<'_>) -> Result<(), WorkloadError> {
        use Mode::{Closed, LongPrompt, Open, Ramp, Trace};
        let keys: [(&str, bool, &[Mode]); 18] = [
            ("clients", self.clients.is_some(), &[Closed]),
            ("arrivals", self.arrivals.is_some(), &[Open, Ramp]),
            ("rates", self.rates.is_some(), &[Open]),
            ("start_rate", self.start_rate.is_some(), &[Ramp]),
            ("factor", self.factor.is_some(), &[Ramp]),
            ("max_rate", self.max_rate.is_some(), &[Ramp]),
            ("trace", self.trace.is_some(), &[Trace]),
            ("speeds", self.speeds.is_some(), &[Trace]),
            ("requests", self.requests.is_some(), &[Closed, Open, Ramp]),
            ("requests_per_client", self.requests_per_client.is_some(), &[Closed, Open, Ramp]),
            ("duration_s", self.duration_s.is_some(), &[Closed, Open, Ramp]),
            ("max_in_flight", self.max_in_flight.is_some(), &[Open, Ramp, Trace]),
            ("streams", self.streams.is_some(), &[LongPrompt]),
            ("settle_tokens", self.settle_tokens.is_some(), &[LongPrompt]),
            ("trials", self.trials.is_some(), &[LongPrompt]),
            ("rest_s", self.rest_s.is_some(), &[LongPrompt]),
            ("long", self.long.is_some(), &[LongPrompt]),
            ("long_max_tokens", self.long_max_tokens.is_some(), &[LongPrompt]),
        ];
        match keys.iter().find(|(_, is_given, modes)| *is_given && !modes.contains(&self.mode)) {
            Some((key, _, _)) => Err(place.error("load", key, "means nothing in this mode")),
            None => Ok(()),
        }
    }

    fn amount(&self, place: &Place<'_>) -> Result<Amount, WorkloadError> {
        match (self.requests, self.requests_per_client, self.duration_s) {
            (Some(0), None, None) => Err(place.error("load", "requests", "must be at least 1")),
            (None, Some(0), None) => Err(place.error("load", "requests_per_client", "must be at least 1")),
            (Some(requests), None, None) => Ok(Amount::Requests(requests)),
            (None, Some(requests), None) if self.mode == Mode::Closed => {
                Ok(Amount::RequestsPerClient(requests))
            }
            (None, None, Some(seconds)) => Ok(Amount::Duration(place.seconds("duration_s", seconds)?)),
            _ => {
                let reason =
                    "give exactly one of requests, requests_per_client (closed loop only) and duration_s";
                Err(place.error("load", "requests", reason))
            }
        }
    }

    fn ramp(&self, place: &Place<'_>) -> Result<Ramp, WorkloadError> {
        let rate = |key: &str, rate: Option<f64>| match rate {
            None => Err(place.error("load", key, "is missing")),
            Some(rate) if is_good_rate(&rate) => Ok(rate),
            Some(_) => Err(place.error("load", key, "must be a number above 0")),
        };
        let ramp = Ramp {
            start_rate: rate("start_rate", self.start_rate)?,
            factor: self.factor.unwrap_or(1.25),
            max_rate: rate("max_rate", self.max_rate)?,
        };
        if !(1.01..=100.0).contains(&ramp.factor) {
            return Err(place.error("load", "factor", "must lie between 1.01 and 100"));
        }
        if ramp.max_rate < ramp.start_rate {
            return Err(place.error("load", "max_rate", "must be at least start_rate"));
        }
        Ok(ramp)
    }

    fn long_prompt(self, place: &Place<'_>) -> Result<Load, WorkloadError> {
        let prompts = self.long.ok_or_else(|| place.error("load", "long", "is missing"))?;
        prompts.validate().map_err(|(key, reason)| place.error("load.long", key, reason))?;
        let trials = self.trials.unwrap_or(1);
        if trials == 0 {
            return Err(place.error("load", "trials", "must be at least 1"));
        }
        Ok(Load::LongPrompt {
            streams: place.levels("streams", self.streams.as_deref(), |&n| n > 0)?,
            settle_tokens: self.settle_tokens.unwrap_or(8).max(2),
            trials,
            rest: Duration::try_from_secs_f64(self.rest_s.unwrap_or(0.0))
                .map_err(|error| place.error("load", "rest_s", error.to_string()))?,
            prompts: Box::new(prompts),
            max_tokens: self.long_max_tokens.unwrap_or(8).max(1),
        })
    }
}
