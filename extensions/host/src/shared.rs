//! What the instances of one place share: it outlives each of them.
//!
//! A small store, the series that were defined, the ration of log lines, the
//! operator's settings. Everything is bounded, for guests fill it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::bindings::quern::policy::kv::KvError;
use crate::bindings::quern::policy::metrics::Kind;
use crate::lock;
use crate::worker::WorkerPort;

/// Longest key of the store, in bytes.
const MAX_KEY: usize = 256;
/// Longest value of the store, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// Keys in the store.
const MAX_KEYS: usize = 1024;
/// Bytes in the store, keys included.
const MAX_STORE: usize = 1 << 20;

/// Series that one place may ever define; the exporter never forgets one.
const MAX_SERIES: usize = 64;
/// Longest name of a series.
const MAX_SERIES_NAME: usize = 64;

/// Log lines that may come at once, and each second after that.
const LOG_BURST: f64 = 32.0;
const LOG_PER_SECOND: f64 = 10.0;

/// See the module's text.
pub(crate) struct Shared {
    pub(crate) policy: String,
    pub(crate) config: BTreeMap<String, String>,
    store: Mutex<Store>,
    series: Mutex<BTreeMap<String, &'static str>>,
    log: Mutex<Ration>,
    pub(crate) log_dropped: AtomicU64,
    pub(crate) updates_dropped: AtomicU64,
    /// A candidate's numbers and words are nobody's business yet.
    quiet: bool,
    pub(crate) worker: WorkerPort,
}

#[derive(Clone, Default)]
struct Store {
    values: HashMap<String, Vec<u8>>,
    bytes: usize,
}

struct Ration {
    left: f64,
    since: Instant,
}

/// Where an instance's updates go.
pub(crate) enum Series {
    /// What is below one whole is kept for later.
    Counter(Counter, f64),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Shared {
    pub(crate) fn new(policy: &str, config: BTreeMap<String, String>, worker: WorkerPort) -> Shared {
        Shared {
            policy: policy.to_owned(),
            config,
            store: Mutex::default(),
            series: Mutex::default(),
            log: Mutex::new(Ration { left: LOG_BURST, since: Instant::now() }),
            log_dropped: AtomicU64::new(0),
            updates_dropped: AtomicU64::new(0),
            quiet: false,
            worker,
        }
    }

    /// For a candidate that runs beside the serving version: a copy of the
    /// store, and no series.
    pub(crate) fn for_candidate(&self) -> Shared {
        let mut other = Shared::new(&self.policy, self.config.clone(), self.worker.clone());
        other.store = Mutex::new(lock(&self.store).clone());
        other.quiet = true;
        other
    }

    // === The store ===

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.store).values.get(key).cloned()
    }

    pub(crate) fn set(&self, key: String, value: Vec<u8>) -> Result<(), KvError> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(KvError::TooLarge);
        }
        let mut store = lock(&self.store);
        let old = store.values.get(&key).map(|old| old.len() + key.len());
        let bytes = store.bytes - old.unwrap_or(0) + key.len() + value.len();
        if bytes > MAX_STORE || old.is_none() && store.values.len() >= MAX_KEYS {
            return Err(KvError::QuotaExceeded);
        }
        store.bytes = bytes;
        store.values.insert(key, value);
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        let mut store = lock(&self.store);
        if let Some(old) = store.values.remove(key) {
            store.bytes -= old.len() + key.len();
        }
    }

    // === Series ===

    /// Registers a series, or finds the one that an instance before defined.
    pub(crate) fn define(&self, name: &str, kind: Kind) -> Result<Series, String> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || name.len() > MAX_SERIES_NAME || !name.bytes().all(fits) {
            return Err(format!("a name has 1 to {MAX_SERIES_NAME} of a-z, 0-9 and _"));
        }
        let wanted = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let mut series = lock(&self.series);
        match series.get(name) {
            Some(&found) if found != wanted => return Err(format!("{name} is a {found}")),
            None if series.len() >= MAX_SERIES => return Err(format!("{MAX_SERIES} series at most")),
            _ => series.insert(name.to_owned(), wanted),
        };
        drop(series);
        Ok(self.register(name, kind))
    }

    fn register(&self, name: &str, kind: Kind) -> Series {
        let full = format!("quern_guest_{name}");
        let policy = self.policy.clone();
        match kind {
            Kind::Counter if self.quiet => Series::Counter(Counter::noop(), 0.0),
            Kind::Gauge if self.quiet => Series::Gauge(Gauge::noop()),
            Kind::Histogram if self.quiet => Series::Histogram(Histogram::noop()),
            Kind::Counter => Series::Counter(counter!(full, "policy" => policy), 0.0),
            Kind::Gauge => Series::Gauge(gauge!(full, "policy" => policy)),
            Kind::Histogram => Series::Histogram(histogram!(full, "policy" => policy)),
        }
    }

    // === Log ===

    /// Takes one line from the ration; false where nothing is left.
    pub(crate) fn may_log(&self) -> bool {
        if self.quiet {
            return false;
        }
        let mut ration = lock(&self.log);
        let now = Instant::now();
        let earned = now.duration_since(ration.since).as_secs_f64() * LOG_PER_SECOND;
        ration.since = now;
        ration.left = (ration.left + earned).min(LOG_BURST);
        let granted = ration.left >= 1.0;
        if granted {
            ration.left -= 1.0;
        } else {
            self.log_dropped.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }
}

impl Series {
    /// What is not a number, and what a counter cannot take, changes nothing.
    pub(crate) fn update(&mut self, value: f64) {
        match self {
            Series::Counter(counter, rest) if value > 0.0 && value.is_finite() => {
                let sum = (*rest + value).min(1e15);
                *rest = sum.fract();
                counter.increment(sum.trunc() as u64);
            }
            Series::Gauge(gauge) if value.is_finite() => gauge.set(value),
            Series::Histogram(histogram) if value.is_finite() => histogram.record(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared::new("test", BTreeMap::new(), WorkerPort::closed())
    }

    #[test]
    fn the_store_is_bounded_and_forgets_what_is_deleted() {
        let shared = shared();
        assert_eq!(shared.set("k".repeat(MAX_KEY + 1), vec![]), Err(KvError::TooLarge));
        assert_eq!(shared.set("k".into(), vec![0; MAX_VALUE + 1]), Err(KvError::TooLarge));
        let full = (0..).find(|i| shared.set(format!("{i}"), vec![0; MAX_VALUE]).is_err());
        assert_eq!(full, Some(MAX_STORE / MAX_VALUE - 1));
        assert_eq!(shared.set("x".into(), vec![0; MAX_VALUE]), Err(KvError::QuotaExceeded));
        // Replacing takes no room, deleting gives some.
        assert_eq!(shared.set("0".into(), vec![1; MAX_VALUE]), Ok(()));
        shared.delete("0");
        assert_eq!(shared.get("0"), None);
        assert_eq!(shared.set("x".into(), vec![2; MAX_VALUE]), Ok(()));
        assert_eq!(shared.get("x"), Some(vec![2; MAX_VALUE]));
    }

    #[test]
    fn keys_are_bounded_too() {
        let shared = shared();
        for i in 0..MAX_KEYS {
            assert_eq!(shared.set(format!("{i}"), vec![]), Ok(()));
        }
        assert_eq!(shared.set("one more".into(), vec![]), Err(KvError::QuotaExceeded));
    }

    #[test]
    fn series_are_bounded_and_keep_their_kind() {
        let shared = shared();
        assert!(shared.define("Queue Length", Kind::Gauge).is_err());
        for i in 0..MAX_SERIES {
            assert!(shared.define(&format!("s{i}"), Kind::Counter).is_ok());
        }
        assert!(shared.define("one_more", Kind::Counter).is_err());
        assert!(shared.define("s0", Kind::Counter).is_ok());
        assert!(shared.define("s0", Kind::Gauge).is_err());
    }

    #[test]
    fn a_flood_of_lines_is_rationed_and_counted() {
        let shared = shared();
        let kept = (0..1000).filter(|_| shared.may_log()).count();
        assert!(kept >= LOG_BURST as usize && kept < 500, "{kept} lines were kept");
        assert_eq!(shared.log_dropped.load(Ordering::Relaxed), 1000 - kept as u64);
    }
}
