//! How many workers there should be, and who says so.
//!
//! The strongest first: an operator's number stands until it is taken back; a
//! policy's until it says another; the configured one where nobody has an
//! opinion. A request that finds no worker brings one back whatever was said
//! before, an operator's zero included: it holds until somebody asks.

use std::time::{Duration, Instant};

use super::pool::{Pool, State};
use super::{Settings, Workers};

/// How many workers there should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Workers; brought between the configured bounds.
    pub desired: u32,
    /// For operators.
    pub reason: String,
    /// Who says so.
    pub by: By,
}

/// Who wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The configuration.
    Configuration,
    /// The policy at the place of this name.
    Policy(String),
    /// An operator.
    Operator,
    /// A request that found no worker.
    Request,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            By::Configuration => f.write_str("configuration"),
            By::Policy(place) => write!(f, "policy {place}"),
            By::Operator => f.write_str("operator"),
            By::Request => f.write_str("request"),
        }
    }
}

/// A number of workers that the configuration does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there may be from {min} to {max} workers, not {desired}")]
pub struct OutOfBounds {
    /// What was asked for.
    pub desired: u32,
    /// Workers at least.
    pub min: u32,
    /// Workers at most.
    pub max: u32,
}

impl Wish {
    pub(super) fn configured(start: u32) -> Wish {
        Wish { desired: start, reason: "as configured".to_owned(), by: By::Configuration }
    }
}

impl Workers {
    /// Fixes how many workers there are, against policies too; `None` gives the
    /// choice back to them.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing changed.
    pub fn pin(&self, desired: Option<u32>) -> Result<(), OutOfBounds> {
        let Settings { min, max, start, .. } = self.pool.settings;
        let wish = match desired {
            Some(desired) if !(min..=max).contains(&desired) => {
                return Err(OutOfBounds { desired, min, max });
            }
            Some(desired) => {
                let reason = "fixed until it is taken back".to_owned();
                Wish { desired, reason, by: By::Operator }
            }
            None => Wish::configured(start),
        };
        let mut state = self.pool.lock();
        (state.pinned, state.hold_until) = (desired, None);
        self.pool.wish(&mut state, wish);
        Ok(())
    }

    /// Whether a policy is to be asked now.
    pub(super) fn takes_wishes(&self) -> bool {
        let state = self.pool.lock();
        state.pinned.is_none() && state.hold_until.is_none_or(|at| at <= Instant::now())
    }

    /// Follows a policy for so long. Its wish for no worker was made without
    /// knowing of requests that came meanwhile, and is not followed then.
    pub(super) fn follow(&self, place: &str, desired: u32, reason: String, hold: Duration) {
        let Settings { min, max, .. } = self.pool.settings;
        let mut state = self.pool.lock();
        let is_late = desired == 0 && (self.pool.arrivals.any() || !state.pending.is_empty());
        if state.pinned.is_some() || is_late {
            return;
        }
        state.hold_until = Some(Instant::now() + hold);
        let wish = Wish { desired: desired.clamp(min, max), reason, by: By::Policy(place.to_owned()) };
        self.pool.wish(&mut state, wish);
    }

    /// What is wanted where nobody else says: what is configured, or the least
    /// once there was nothing to do for long enough.
    pub(super) fn follow_configuration(&self) {
        let settings = &self.pool.settings;
        let mut state = self.pool.lock();
        if state.pinned.is_some() {
            return;
        }
        let idle_for = state.idle_since.map_or(Duration::ZERO, |since| since.elapsed());
        let wish = if !settings.idle_timeout.is_zero() && idle_for >= settings.idle_timeout {
            let reason = format!("nothing to do for {:?}", settings.idle_timeout);
            Wish { desired: settings.min, reason, by: By::Configuration }
        } else {
            Wish::configured(settings.start)
        };
        self.pool.wish(&mut state, wish);
    }
}

impl Pool {
    fn wish(&self, state: &mut State, wish: Wish) {
        if state.wish.desired != wish.desired {
            let by = wish.by.to_string();
            tracing::info!(desired = wish.desired, by, reason = wish.reason, "workers wanted");
            self.changed.notify_all();
        }
        state.wish = wish;
    }
}

impl State {
    /// Workers that there should be now.
    pub(super) fn wanted(&self, settings: &Settings) -> u32 {
        let desired = self.wish.desired.clamp(settings.min, settings.max);
        desired.max(u32::from(!self.pending.is_empty()))
    }

    /// Somebody asks: zero is no answer any more.
    pub(super) fn wake(&mut self) {
        if self.wish.desired == 0 {
            self.wish = Wish { desired: 1, reason: "a request waits".to_owned(), by: By::Request };
            self.pinned = self.pinned.filter(|&desired| desired > 0);
            self.hold_until = None;
            tracing::info!(desired = 1, by = "request", "workers wanted");
        }
    }
}
