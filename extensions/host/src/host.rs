//! What a policy may ask of the node: the imports of the contract.
//!
//! None blocks, none fails the guest, and each is bounded, since a guest may
//! call it as often as its deadline allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level as Tracing;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder};

use crate::bindings::quern::policy::{clock, config, kv, log, metrics, types};
use crate::settings::Caps;
use crate::shared::{Series, Shared};
use crate::verdict::cut;
use crate::worker::LogLine;

/// Longest log message that is kept, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Series that one instance may define.
const MAX_DEFINED: usize = 64;

/// Metric updates that one call may make; more are dropped and counted.
const MAX_UPDATES: u32 = 1024;

/// An instance's side of the host.
pub(crate) struct Host {
    pub(crate) limits: Limits,
    shared: Arc<Shared>,
    clock_us: u64,
    /// Series are defined during `init` only.
    in_init: bool,
    series: Vec<Series>,
    updates_left: u32,
}

impl Host {
    pub(crate) fn new(caps: &Caps, shared: Arc<Shared>, memory_peak: Arc<AtomicU64>) -> Host {
        let limits = StoreLimitsBuilder::new()
            .memory_size(caps.memory_bytes)
            .table_elements(caps.table_elements)
            .instances(caps.core_instances)
            .tables(caps.tables)
            .memories(caps.memories)
            .trap_on_grow_failure(true)
            .build();
        Host {
            limits: Limits { limits, memory_peak },
            shared,
            clock_us: 0,
            in_init: true,
            series: Vec::new(),
            updates_left: 0,
        }
    }

    /// Before every call: the clock stands still from here on.
    pub(crate) fn begin_call(&mut self, clock_us: u64) {
        self.clock_us = clock_us;
        self.updates_left = MAX_UPDATES;
    }

    /// The last call's clock.
    pub(crate) fn clock_us(&self) -> u64 {
        self.clock_us
    }

    /// After `init`.
    pub(crate) fn end_init(&mut self) {
        self.in_init = false;
    }
}

/// The store's limits, and how far memory grew.
pub(crate) struct Limits {
    limits: StoreLimits,
    memory_peak: Arc<AtomicU64>,
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = self.limits.memory_growing(current, desired, maximum)?;
        if allowed {
            self.memory_peak.fetch_max(desired as u64, Ordering::Relaxed);
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

impl types::Host for Host {}

impl log::Host for Host {
    fn enabled(&mut self, level: log::Level) -> bool {
        match level {
            log::Level::Trace => tracing::enabled!(target: LogLine::TARGET, Tracing::TRACE),
            log::Level::Debug => tracing::enabled!(target: LogLine::TARGET, Tracing::DEBUG),
            log::Level::Info => tracing::enabled!(target: LogLine::TARGET, Tracing::INFO),
            log::Level::Warn => tracing::enabled!(target: LogLine::TARGET, Tracing::WARN),
            log::Level::Error => tracing::enabled!(target: LogLine::TARGET, Tracing::ERROR),
        }
    }

    fn write(&mut self, level: log::Level, mut message: String) {
        if !self.shared.may_log() {
            return;
        }
        cut(&mut message, MAX_MESSAGE);
        message.shrink_to_fit();
        let line = LogLine { policy: self.shared.policy.clone(), level, message };
        if !self.shared.worker.log(line) {
            self.shared.log_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl metrics::Host for Host {
    fn define(&mut self, name: String, kind: metrics::Kind) -> Result<metrics::MetricId, String> {
        if !self.in_init {
            return Err("series are defined during init only".to_owned());
        }
        if self.series.len() >= MAX_DEFINED {
            return Err(format!("{MAX_DEFINED} series at most"));
        }
        let series = self.shared.define(&name, kind)?;
        self.series.push(series);
        Ok(self.series.len() as u32 - 1)
    }

    fn update(&mut self, id: metrics::MetricId, value: f64) {
        let Some(series) = self.series.get_mut(id as usize) else { return };
        if self.updates_left == 0 {
            self.shared.updates_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.updates_left -= 1;
        series.update(value);
    }
}

impl config::Host for Host {
    fn get(&mut self, key: String) -> Option<String> {
        self.shared.config.get(&key).cloned()
    }
}

impl clock::Host for Host {
    fn now_us(&mut self) -> u64 {
        self.clock_us
    }
}

impl kv::Host for Host {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.shared.get(&key)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), kv::KvError> {
        self.shared.set(key, value)
    }

    fn delete(&mut self, key: String) {
        self.shared.delete(&key);
    }
}
