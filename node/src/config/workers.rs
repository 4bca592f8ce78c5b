//! `[workers]` and `[autoscale]`: how many workers there are, and who is asked.

use serde::{Deserialize, Serialize};

use super::Span;
use crate::workers::Settings;

/// `[workers]`, see [`crate::workers::Settings`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Workers at least; 0 lets the last one go, and its memory with it.
    pub min: u32,
    /// Workers at most.
    pub max: u32,
    /// Workers that are wanted while no policy or operator says otherwise.
    pub start: u32,
    /// Without work for so long, `min` are wanted while nobody says otherwise; `0ms` is never.
    pub idle_timeout: Span,
    /// How long a worker that is to end may take to finish what it has.
    pub drain_timeout: Span,
    /// How long after a failure a worker is started again; doubles with each.
    pub restart_delay: Span,
    /// No longer than this.
    pub max_restart_delay: Span,
    /// A cached prefix does not count for a worker with so many requests more
    /// than the least loaded one.
    pub spill_requests: usize,
    /// Nor for one with so many prompt tokens more to compute.
    pub spill_tokens: u64,
}

/// `[autoscale]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Autoscale {
    /// How often a policy is asked how many workers there should be.
    pub interval: Span,
    /// Intervals that it is shown.
    pub history: usize,
}

impl Default for Workers {
    fn default() -> Self {
        let s = Settings::default();
        Workers {
            min: s.min,
            max: s.max,
            start: s.start,
            idle_timeout: Span(s.idle_timeout),
            drain_timeout: Span(s.drain_timeout),
            restart_delay: Span(s.restart_delay),
            max_restart_delay: Span(s.max_restart_delay),
            spill_requests: s.spill_requests,
            spill_tokens: s.spill_tokens,
        }
    }
}

impl Default for Autoscale {
    fn default() -> Self {
        Autoscale { interval: Span(std::time::Duration::from_secs(5)), history: 120 }
    }
}

impl Workers {
    /// As the workers take it.
    #[must_use]
    pub fn to_settings(&self) -> Settings {
        Settings {
            min: self.min,
            max: self.max,
            start: self.start,
            idle_timeout: self.idle_timeout.0,
            drain_timeout: self.drain_timeout.0,
            restart_delay: self.restart_delay.0,
            max_restart_delay: self.max_restart_delay.0,
            spill_requests: self.spill_requests,
            spill_tokens: self.spill_tokens,
        }
    }

    /// What is wrong with it, each with its key.
    pub(super) fn check(&self) -> Vec<(&'static str, &'static str)> {
        /// Threads have an end.
        const MOST: u32 = 64;
        let checks = [
            (self.max == 0 || self.max > MOST, "workers.max", "it must be from 1 to 64"),
            (self.min > self.max, "workers.min", "it is above workers.max"),
            (self.start == 0, "workers.start", "the first worker shows what the model can do: at least 1"),
            (self.start > self.max, "workers.start", "it is above workers.max"),
            (self.start < self.min, "workers.start", "it is below workers.min"),
        ];
        checks.into_iter().filter(|(wrong, _, _)| *wrong).map(|(_, key, why)| (key, why)).collect()
    }
}

impl Autoscale {
    /// What is wrong with it, each with its key.
    pub(super) fn check(&self) -> Vec<(&'static str, &'static str)> {
        let too_short = self.interval.0 < std::time::Duration::from_millis(10);
        let checks = [
            (too_short, "autoscale.interval", "it must be at least 10ms"),
            (!(1..=4096).contains(&self.history), "autoscale.history", "it must be from 1 to 4096"),
        ];
        checks.into_iter().filter(|(wrong, _, _)| *wrong).map(|(_, key, why)| (key, why)).collect()
    }
}
