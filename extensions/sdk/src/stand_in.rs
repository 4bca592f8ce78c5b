//! The node's side for native tests: in memory, and each thread has its own, so
//! that tests do not meet.
//!
//! ```
//! use quern_policy_sdk::{host::config, stand_in};
//!
//! stand_in::set_config("quantum-steps", "4");
//! assert_eq!(config::get("quantum-steps").as_deref(), Some("4"));
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::host::kv::KvError;
use crate::host::log::Level;
use crate::host::metrics::Kind;

/// What the store takes at most in one value, in bytes.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// What the store takes at most in all, in bytes.
const MAX_STORE_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Node {
    settings: BTreeMap<String, String>,
    store: BTreeMap<String, Vec<u8>>,
    messages: Vec<(Level, String)>,
    series: Vec<(String, Kind, f64)>,
    now_us: u64,
}

thread_local! {
    static NODE: RefCell<Node> = RefCell::default();
}

fn node<R>(use_it: impl FnOnce(&mut Node) -> R) -> R {
    NODE.with_borrow_mut(use_it)
}

/// Forgets everything that this thread's stand-in knows.
pub fn reset() {
    node(|node| *node = Node::default());
}

/// Sets one of the operator's settings.
pub fn set_config(key: &str, value: &str) {
    node(|node| node.settings.insert(key.into(), value.into()));
}

/// Sets the clock, in microseconds since the node started.
pub fn set_now_us(now_us: u64) {
    node(|node| node.now_us = now_us);
}

/// Messages that were written so far.
pub fn logged() -> Vec<(Level, String)> {
    node(|node| node.messages.clone())
}

/// A counter's sum, a gauge's value, or the number of values that a histogram
/// took in; none if there is no such series.
pub fn metric(name: &str) -> Option<f64> {
    node(|node| node.series.iter().find(|(other, ..)| other == name).map(|&(.., value)| value))
}

pub(crate) fn log_enabled(_: Level) -> bool {
    true
}

pub(crate) fn log_write(level: Level, message: &str) {
    node(|node| node.messages.push((level, message.into())));
}

pub(crate) fn metric_define(name: &str, kind: Kind) -> Result<u32, String> {
    node(|node| {
        if name.is_empty() {
            return Err("a series needs a name".into());
        }
        if let Some(id) = node.series.iter().position(|(other, ..)| other == name) {
            return Ok(id as u32);
        }
        node.series.push((name.into(), kind, 0.0));
        Ok(node.series.len() as u32 - 1)
    })
}

pub(crate) fn metric_update(id: u32, value: f64) {
    node(|node| {
        let Some((_, kind, now)) = node.series.get_mut(id as usize) else { return };
        match kind {
            Kind::Counter => *now += value,
            Kind::Gauge => *now = value,
            Kind::Histogram => *now += 1.0,
        }
    });
}

pub(crate) fn config_get(key: &str) -> Option<String> {
    node(|node| node.settings.get(key).cloned())
}

pub(crate) fn now_us() -> u64 {
    node(|node| node.now_us)
}

pub(crate) fn kv_get(key: &str) -> Option<Vec<u8>> {
    node(|node| node.store.get(key).cloned())
}

pub(crate) fn kv_set(key: &str, value: &[u8]) -> Result<(), KvError> {
    node(|node| {
        if value.len() > MAX_VALUE_BYTES {
            return Err(KvError::TooLarge);
        }
        let others = node.store.iter().filter(|(other, _)| *other != key);
        if others.map(|(_, value)| value.len()).sum::<usize>() + value.len() > MAX_STORE_BYTES {
            return Err(KvError::QuotaExceeded);
        }
        node.store.insert(key.into(), value.into());
        Ok(())
    })
}

pub(crate) fn kv_delete(key: &str) {
    node(|node| node.store.remove(key));
}
