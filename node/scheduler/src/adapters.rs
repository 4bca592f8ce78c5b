//! Where adapters come from, and which of them an engine holds.
//!
//! Whoever registers adapters shares one table of [`AdapterFiles`] with every step
//! loop. An id stands for one content for good: what is loaded anew under an old
//! name gets another id, so that state computed with one never meets the other.
//!
//! A loop keeps as many on its engine as a number and a size allow, and lets go of
//! the one that was not used for longest. It must not know names, formats or
//! requests, nor where files lie; and since a step waits for it, it takes nothing but
//! what is [`Prepared`]: whoever submits a request holds that ready until it is over.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::{Counter, Histogram, counter, histogram};
use quern_engine::{AdapterId, Engine, EngineError};

/// One adapter's content, for any number of engines.
pub trait AdapterSource: Send + Sync {
    /// What it takes on an engine, in bytes.
    fn size_bytes(&self) -> u64;

    /// The content as engines read it, where somebody holds it ready now. Does not wait.
    fn prepared(&self) -> Option<Arc<dyn Prepared>>;

    /// Whether engines should keep it before others.
    fn is_pinned(&self) -> bool;

    /// An engine holds it from now on, or does not any more.
    fn note_held(&self, is_held: bool) {
        // Only those who place content want to know.
        let _ = is_held;
    }
}

/// An adapter's content in the form that engines read, while somebody holds it. To make
/// one may take long, so that whoever makes it is no step loop; to use one does not.
pub trait Prepared: Send + Sync {
    /// Where an engine may open it while this is held.
    fn path(&self) -> &Path;
}

/// All adapters that may be asked for. Cheap to clone, and all clones are one table.
#[derive(Clone, Default)]
pub struct AdapterFiles(Arc<Table>);

#[derive(Default)]
struct Table {
    sources: Mutex<HashMap<AdapterId, Arc<dyn AdapterSource>>>,
    num_retired: AtomicU64,
}

impl std::fmt::Debug for AdapterFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AdapterFiles").field(&self.lock().len()).finish()
    }
}

impl AdapterFiles {
    /// Offers an adapter under an id that stood for no other before.
    pub fn insert(&self, id: AdapterId, source: Arc<dyn AdapterSource>) {
        debug_assert_ne!(id, AdapterId::BASE);
        self.lock().insert(id, source);
    }

    /// Takes an adapter back for good. Loops let go of it, and of all state that was
    /// computed with it, before their next step; see [`crate::Handle::look_at_adapters`]
    /// for those that stand idle.
    pub fn retire(&self, id: AdapterId) {
        if self.lock().remove(&id).is_some() {
            self.0.num_retired.fetch_add(1, Ordering::Release);
        }
    }

    fn get(&self, id: AdapterId) -> Option<Arc<dyn AdapterSource>> {
        self.lock().get(&id).cloned()
    }

    /// A panic elsewhere leaves the table whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<AdapterId, Arc<dyn AdapterSource>>> {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which adapters a scheduler has to do with, each once, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterLoad {
    /// Of sequences that run.
    pub running: Vec<AdapterId>,
    /// Of sequences that wait.
    pub waiting: Vec<AdapterId>,
    /// On the engine.
    pub resident: Vec<AdapterId>,
}

/// The adapters on one engine, and the bounds that they keep.
pub(crate) struct Residents {
    files: AdapterFiles,
    max_adapters: usize,
    max_bytes: u64,
    held: Vec<Held>,
    clock: u64,
    /// [`Table::num_retired`] when the table was last looked through.
    seen_retired: u64,
    loads: Counter,
    failures: Counter,
    evictions: Counter,
    load_time: Histogram,
}

struct Held {
    id: AdapterId,
    size_bytes: u64,
    last_used: u64,
    source: Arc<dyn AdapterSource>,
}

/// Whether rows of an adapter can join a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The engine holds it.
    Ready,
    /// All that the engine has room for is in use in this very step.
    NoRoom,
    /// It cannot be had, and this is why.
    Failed(String),
}

impl Residents {
    pub(crate) fn new(files: AdapterFiles, max_adapters: usize, max_bytes: u64) -> Residents {
        Residents {
            files,
            max_adapters: max_adapters.max(1),
            max_bytes,
            held: Vec::new(),
            clock: 0,
            seen_retired: 0,
            loads: counter!("quern_adapter_loads_total", "outcome" => "loaded"),
            failures: counter!("quern_adapter_loads_total", "outcome" => "failed"),
            evictions: counter!("quern_adapter_evictions_total", "tier" => "device"),
            load_time: histogram!("quern_adapter_load_seconds"),
        }
    }

    /// Where an adapter is, as planners see it: 0 disk, 1 host memory, 2 device.
    pub(crate) fn tier(&self, id: AdapterId) -> u8 {
        if id == AdapterId::BASE || self.holds(id) {
            return 2;
        }
        u8::from(self.files.get(id).is_some_and(|source| source.prepared().is_some()))
    }

    pub(crate) fn holds(&self, id: AdapterId) -> bool {
        self.held.iter().any(|held| held.id == id)
    }

    /// The adapters on the engine, in no order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = AdapterId> {
        self.held.iter().map(|held| held.id)
    }

    /// Brings an adapter to the engine, if need be in place of others that no row of
    /// the step is computed with.
    pub(crate) fn prepare(
        &mut self,
        id: AdapterId,
        engine: &mut dyn Engine,
        in_step: impl Fn(AdapterId) -> bool,
    ) -> Readiness {
        if id == AdapterId::BASE {
            return Readiness::Ready;
        }
        self.clock += 1;
        if let Some(held) = self.held.iter_mut().find(|held| held.id == id) {
            held.last_used = self.clock;
            return Readiness::Ready;
        }
        let Some(source) = self.files.get(id) else {
            return Readiness::Failed("it is not loaded any more".to_owned());
        };
        let size_bytes = source.size_bytes();
        if size_bytes > self.max_bytes {
            let max = self.max_bytes;
            return Readiness::Failed(format!(
                "it takes {size_bytes} bytes, and all together may take {max}"
            ));
        }
        while self.held.len() >= self.max_adapters || self.used_bytes() + size_bytes > self.max_bytes {
            let Some(idx) = self.least_wanted(&in_step) else { return Readiness::NoRoom };
            self.let_go(idx, engine);
            self.evictions.increment(1);
        }
        match self.load(id, &*source, engine) {
            Ok(()) => {
                source.note_held(true);
                self.held.push(Held { id, size_bytes, last_used: self.clock, source });
                Readiness::Ready
            }
            Err(why) => {
                self.failures.increment(1);
                tracing::warn!(adapter = id.0, error = why, "adapter could not be loaded");
                Readiness::Failed(why)
            }
        }
    }

    fn load(&self, id: AdapterId, source: &dyn AdapterSource, engine: &mut dyn Engine) -> Result<(), String> {
        let began = Instant::now();
        let Some(prepared) = source.prepared() else {
            return Err("nobody holds its content ready for an engine".to_owned());
        };
        engine.load_adapter(id, prepared.path()).map_err(|error| match error {
            // The path is one of ours, and means nothing to anybody.
            EngineError::Adapter { why, .. } => why,
            error => error.to_string(),
        })?;
        self.loads.increment(1);
        self.load_time.record(began.elapsed().as_secs_f64());
        tracing::debug!(
            adapter = id.0,
            took_us = began.elapsed().as_micros() as u64,
            "adapter on the engine"
        );
        Ok(())
    }

    /// Adapters that were retired since the last call leave the engine. Whether there
    /// were any.
    pub(crate) fn drop_retired(&mut self, engine: &mut dyn Engine) -> bool {
        let num_retired = self.files.0.num_retired.load(Ordering::Acquire);
        if num_retired == self.seen_retired {
            return false;
        }
        self.seen_retired = num_retired;
        while let Some(idx) = self.held.iter().position(|held| !self.is_offered(held.id)) {
            self.let_go(idx, engine);
        }
        true
    }

    /// Has [`Residents::drop_retired`] look through the table once more.
    pub(crate) fn look_again(&mut self) {
        self.seen_retired = u64::MAX;
    }

    /// Whether an adapter can be asked for.
    pub(crate) fn is_offered(&self, id: AdapterId) -> bool {
        id == AdapterId::BASE || self.files.lock().contains_key(&id)
    }

    fn used_bytes(&self) -> u64 {
        self.held.iter().map(|held| held.size_bytes).sum()
    }

    /// Pinned ones only go when there is no other.
    fn least_wanted(&self, in_step: impl Fn(AdapterId) -> bool) -> Option<usize> {
        let idle = (0..self.held.len()).filter(|&idx| !in_step(self.held[idx].id));
        idle.min_by_key(|&idx| (self.held[idx].source.is_pinned(), self.held[idx].last_used))
    }

    fn let_go(&mut self, idx: usize, engine: &mut dyn Engine) {
        let held = self.held.swap_remove(idx);
        held.source.note_held(false);
        if let Err(error) = engine.unload_adapter(held.id) {
            tracing::error!(adapter = held.id.0, error = %error, "adapter could not be unloaded");
        }
    }

    /// Checks that the bounds are kept; for tests and debug builds.
    pub(crate) fn assert_consistent(&self) {
        assert!(self.held.len() <= self.max_adapters && self.used_bytes() <= self.max_bytes);
        let twice = |idx: usize| self.held[..idx].iter().any(|other| other.id == self.held[idx].id);
        assert!(!(0..self.held.len()).any(twice), "one adapter twice");
    }
}

/// The engine goes with its loop, and what it held with it.
impl Drop for Residents {
    fn drop(&mut self) {
        self.held.iter().for_each(|held| held.source.note_held(false));
    }
}
