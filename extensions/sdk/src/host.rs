//! What a policy may ask of the node: log, metrics, settings, clock, a store.
//!
//! On wasm32 these go to the node; natively to [`crate::stand_in`].

#[cfg(target_arch = "wasm32")]
use crate::guest::imports as node;
#[cfg(not(target_arch = "wasm32"))]
use crate::stand_in as node;

/// Messages for the node's log, which cuts and rations them.
///
/// Nothing is formatted unless the message would be kept:
/// `log::debug(format_args!("{tenant} waits"))`.
pub mod log {
    use std::fmt;

    use super::node;

    /// How much a message matters.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Level {
        /// Each decision.
        Trace,
        /// What an author wants to know.
        Debug,
        /// What an operator may want to know.
        Info,
        /// What an operator should look at.
        Warn,
        /// What went wrong.
        Error,
    }

    /// Whether a message of this level would be kept.
    pub fn enabled(level: Level) -> bool {
        node::log_enabled(level)
    }

    /// Writes a message, if it would be kept.
    pub fn write(level: Level, message: fmt::Arguments<'_>) {
        if !enabled(level) {
            return;
        }
        match message.as_str() {
            Some(message) => node::log_write(level, message),
            None => node::log_write(level, &message.to_string()),
        }
    }

    /// Writes a message of [`Level::Debug`].
    pub fn debug(message: fmt::Arguments<'_>) {
        write(Level::Debug, message);
    }

    /// Writes a message of [`Level::Info`].
    pub fn info(message: fmt::Arguments<'_>) {
        write(Level::Info, message);
    }

    /// Writes a message of [`Level::Warn`].
    pub fn warn(message: fmt::Arguments<'_>) {
        write(Level::Warn, message);
    }

    /// Writes a message of [`Level::Error`].
    pub fn error(message: fmt::Arguments<'_>) {
        write(Level::Error, message);
    }
}

/// Series among the node's metrics.
///
/// They are defined in [`Policy::init`](crate::Policy::init) and kept in the
/// policy's fields. One that was not defined is silent.
pub mod metrics {
    use super::node;

    /// What a series is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        /// A sum that only grows.
        Counter,
        /// A value that goes up and down.
        Gauge,
        /// A distribution.
        Histogram,
    }

    /// A sum that only grows.
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Counter(Option<u32>);

    /// A value that goes up and down.
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Gauge(Option<u32>);

    /// A distribution.
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Histogram(Option<u32>);

    impl Counter {
        /// Defines the series; its name carries the unit.
        ///
        /// # Errors
        /// The node's reason: a bad name, or too many series.
        pub fn define(name: &str) -> Result<Counter, String> {
            node::metric_define(name, Kind::Counter).map(|id| Counter(Some(id)))
        }

        /// Adds to the sum.
        pub fn add(&self, value: f64) {
            self.0.into_iter().for_each(|id| node::metric_update(id, value));
        }
    }

    impl Gauge {
        /// Defines the series; its name carries the unit.
        ///
        /// # Errors
        /// The node's reason: a bad name, or too many series.
        pub fn define(name: &str) -> Result<Gauge, String> {
            node::metric_define(name, Kind::Gauge).map(|id| Gauge(Some(id)))
        }

        /// Sets the value.
        pub fn set(&self, value: f64) {
            self.0.into_iter().for_each(|id| node::metric_update(id, value));
        }
    }

    impl Histogram {
        /// Defines the series; its name carries the unit.
        ///
        /// # Errors
        /// The node's reason: a bad name, or too many series.
        pub fn define(name: &str) -> Result<Histogram, String> {
            node::metric_define(name, Kind::Histogram).map(|id| Histogram(Some(id)))
        }

        /// Takes one value in.
        pub fn observe(&self, value: f64) {
            self.0.into_iter().for_each(|id| node::metric_update(id, value));
        }
    }
}

/// The operator's settings for this policy; see also
/// [`Settings`](crate::settings::Settings).
pub mod config {
    use super::node;

    /// The value of a key, as it was written.
    pub fn get(key: &str) -> Option<String> {
        node::config_get(key)
    }
}

/// The clock, which stands still during a call.
pub mod clock {
    use super::node;

    /// Microseconds since the node started.
    pub fn now_us() -> u64 {
        node::now_us()
    }
}

/// A small store of the policy's own, which outlives its instances.
pub mod kv {
    use super::node;

    /// Why a value was not stored.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum KvError {
        /// The value or its key.
        TooLarge,
        /// All of the policy's values together.
        QuotaExceeded,
    }

    /// A stored value.
    pub fn get(key: &str) -> Option<Vec<u8>> {
        node::kv_get(key)
    }

    /// Stores a value.
    ///
    /// # Errors
    /// [`KvError`] where it does not fit.
    pub fn set(key: &str, value: &[u8]) -> Result<(), KvError> {
        node::kv_set(key, value)
    }

    /// Forgets a value.
    pub fn delete(key: &str) {
        node::kv_delete(key);
    }
}
