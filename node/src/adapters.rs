//! LoRA adapters that requests name like models: which there are, and what becomes of
//! them.
//!
//! A name stands for a version: content that was found sound, under an id of its own.
//! Loading a name anew makes the next generation, and whoever began with the one
//! before ends with it: a request holds a [`Lease`], and a version goes, from memory
//! and from all engines, with the last share of it ([`version`]). Content lies on the
//! disk, as a copy in memory once it was used ([`stored`]), and on the engines that
//! compute with it, which `quern_scheduler` looks after. Names come from the
//! configuration, a watched folder ([`watch`]) and operators.
//!
//! This folder must not know HTTP, nor which engine computes.

mod error;
mod found;
mod labels;
mod order;
mod stored;
#[cfg(test)]
mod tests;
mod version;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quern_engine::AdapterId;
use quern_scheduler::{AdapterFiles, AdapterLoad};
use tokio::sync::Semaphore;

use crate::workers::Workers;

use self::labels::Labels;
use self::stored::Memory;

pub use self::error::Error;
pub use self::found::{Base, Found, check_path};
pub use self::order::{InWork, Named, Order, Origin, Settings, Status};
pub use self::version::{Drained, Lease, Version};
pub use self::watch::{Watched, keep_watching, lying_in};

/// All adapters of one base model. Cheap to clone, and all clones are one registry.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    base: Base,
    settings: Settings,
    files: AdapterFiles,
    workers: Workers,
    memory: Arc<Memory>,
    names: Mutex<Names>,
    /// What ids are called, for metrics; each version takes its own out.
    ids: version::Ids,
    labels: Labels,
    next_id: AtomicU32,
    /// Turns to read and check.
    checking: Semaphore,
    /// Turns to bring content to memory for a request, so that it need not wait for
    /// a thousand loads.
    staging: Semaphore,
}

#[derive(Default)]
struct Names {
    served: BTreeMap<String, Entry>,
    /// Names that are being loaded.
    changing: BTreeSet<String>,
    /// Why names of the watched folder are not served.
    failed: BTreeMap<String, String>,
}

struct Entry {
    version: Arc<Version>,
    origin: Origin,
    last_error: Option<String>,
}

impl Registry {
    /// A registry without adapters, for engines that follow `files`.
    #[must_use]
    pub fn new(base: Base, settings: Settings, files: AdapterFiles, workers: Workers) -> Registry {
        let turns = settings.max_reading.max(1);
        Registry(Arc::new(Shared {
            memory: Arc::new(Memory::new(settings.max_memory_bytes)),
            labels: Labels::new(settings.max_series),
            checking: Semaphore::new(turns),
            staging: Semaphore::new(turns),
            names: Mutex::default(),
            ids: version::Ids::default(),
            next_id: AtomicU32::new(AdapterId::BASE.0 + 1),
            base,
            settings,
            files,
            workers,
        }))
    }

    /// The model that all adapters are for.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.0.base
    }

    /// The bounds.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Whether a request may name it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.lock().served.contains_key(name)
    }

    /// How many names are served.
    #[must_use]
    pub fn num_served(&self) -> usize {
        self.lock().served.len()
    }

    /// All that is served, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Status> {
        self.lock().served.values().map(Entry::status).collect()
    }

    /// What one name stands for.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Status> {
        self.lock().served.get(name).map(Entry::status)
    }

    /// Names of the watched folder that are not served, and why.
    #[must_use]
    pub fn failed(&self) -> Vec<(String, String)> {
        self.lock().failed.iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// What a request holds while it is served with an adapter; `None` where there is
    /// none of that name. Waits while the content of one that was not used for long is
    /// brought to memory, where it stays as long as this is held.
    ///
    /// # Errors
    /// [`Error::Unusable`] when it is not there any more, or not as it was.
    pub async fn lease(&self, name: &str) -> Result<Option<Lease>, Error> {
        let Some(version) = self.lock().served.get(name).map(|entry| Arc::clone(&entry.version)) else {
            return Ok(None);
        };
        let mut lease = Lease::new(version);
        if !lease.is_ready() {
            let _turn = self.0.staging.acquire().await.expect("it is never closed");
            let content = Arc::clone(lease.content());
            match off_thread(move || content.prepare()).await? {
                Ok(copy) => lease.hold(copy),
                Err(why) => {
                    self.note_error(name, lease.id(), &why);
                    // It serves on for as long as engines keep it.
                    if !lease.content().is_on_device() {
                        return Err(Error::Unusable { name: name.to_owned(), why });
                    }
                }
            }
        }
        metrics::counter!("quern_adapter_requests_total", "adapter" => self.0.labels.of(name)).increment(1);
        Ok(Some(lease))
    }

    /// Finds out whether an adapter can be served, and serves it under its name from
    /// then on. Nothing changes where it cannot. Loads beyond the bound wait their turn.
    ///
    /// # Errors
    /// [`Error`], each cause its own.
    pub async fn load(&self, order: Order) -> Result<Arc<Version>, Error> {
        let changing = self.begin(&order).inspect_err(|error| self.note_refused(&order, error))?;
        let found = self.look(&order.path).await;
        let loaded = found.and_then(|found| self.commit(&order, &changing, found));
        loaded.inspect_err(|error| self.note_failed(&order, error))
    }

    /// As [`Registry::load`], with what was found out before.
    ///
    /// # Errors
    /// As for [`Registry::load`], but nothing about its files.
    pub fn add(&self, order: &Order, found: Found) -> Result<Arc<Version>, Error> {
        let changing = self.begin(order)?;
        self.commit(order, &changing, found)
    }

    /// Serves nothing under a name any more. Requests that have it end with it; what is
    /// given back tells when the last one has.
    ///
    /// # Errors
    /// [`Error::Unknown`] or [`Error::Generation`].
    pub fn unload(&self, name: &str, expected_generation: Option<u64>) -> Result<Drained, Error> {
        let mut names = self.lock();
        let Some(entry) = names.served.get(name) else { return Err(Error::Unknown(name.to_owned())) };
        let drained = Drained::of(&entry.version);
        check_generation(name, expected_generation, Some(&entry.version))?;
        let entry = names.served.remove(name);
        drop(names);
        // Outside the lock, which its end needs for what it is called.
        drop(entry);
        tracing::info!(adapter = name, in_use = drained.in_use(), "adapter unloaded");
        Ok(drained)
    }

    /// What adapters the workers have to do with, by name.
    #[must_use]
    pub fn in_work(&self) -> InWork {
        let AdapterLoad { running, waiting, resident } = self.0.workers.adapters();
        let ids = self.0.ids.lock();
        let named = |all: Vec<AdapterId>| -> Vec<String> {
            all.iter().filter_map(|id| ids.get(id).cloned()).collect()
        };
        InWork { running: named(running), waiting: named(waiting), num_resident: resident.len() }
    }

    /// Bytes of copies that are kept in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.0.memory.used_bytes()
    }

    /// Reads and checks an adapter on a thread that may wait, when it is its turn.
    async fn look(&self, path: &Path) -> Result<Found, Error> {
        let _turn = self.0.checking.acquire().await.expect("it is never closed");
        let (base, path) = (self.0.base.clone(), path.to_owned());
        off_thread(move || base.look_at(&path)).await?
    }

    /// Refuses what need not be read for that, and keeps the name for this load.
    fn begin(&self, order: &Order) -> Result<Changing, Error> {
        check_name(&order.name)?;
        let Order { name, .. } = order;
        if *name == self.0.base.model_id {
            return Err(Error::IsTheBase(name.clone()));
        }
        let mut names = self.lock();
        let present = names.served.get(name);
        check_generation(name, order.expected_generation, present.map(|entry| &*entry.version))?;
        if present.is_some() && !order.in_place {
            return Err(Error::Exists(name.clone()));
        }
        let before = present.map(|entry| entry.version.generation);
        let new = names.changing.iter().filter(|name| !names.served.contains_key(*name));
        let num_names = names.served.len() + new.count();
        if present.is_none() && num_names >= self.0.settings.max_registered {
            return Err(Error::TooMany { max: self.0.settings.max_registered });
        }
        if !names.changing.insert(name.clone()) {
            return Err(Error::Busy(name.clone()));
        }
        Ok(Changing { registry: self.clone(), name: name.clone(), before })
    }

    /// Gives the name to what was found.
    fn commit(&self, order: &Order, changing: &Changing, found: Found) -> Result<Arc<Version>, Error> {
        let settings = &self.0.settings;
        let Order { name, pin, origin, .. } = order;
        if found.size_bytes > settings.max_resident_bytes {
            let (size_bytes, max_bytes) = (found.size_bytes, settings.max_resident_bytes);
            return Err(Error::TooLarge { size_bytes, max_bytes });
        }
        let mut names = self.lock();
        let present = names.served.get(name);
        if present.map(|entry| entry.version.generation) != changing.before {
            return Err(Error::Busy(name.clone()));
        }
        let is_pinned = pin.unwrap_or_else(|| present.is_some_and(|entry| entry.version.is_pinned()));
        let origin = present.map_or(*origin, |entry| entry.origin);
        let others = names.served.values().filter(|entry| entry.version.name != *name);
        let num_pinned = others.filter(|entry| entry.version.is_pinned()).count();
        if is_pinned && num_pinned + 1 >= settings.max_resident {
            return Err(Error::TooManyPinned { max: settings.max_resident.saturating_sub(1) });
        }
        let version = self.make(name, changing.before.unwrap_or(0) + 1, is_pinned, found);
        let entry = Entry { version: Arc::clone(&version), origin, last_error: None };
        let before = names.served.insert(name.clone(), entry);
        names.failed.remove(name);
        drop(names);
        // Outside the lock, as when it is unloaded.
        drop(before);
        tracing::info!(
            adapter = name,
            generation = version.generation,
            path = %version.found.path.display(),
            size_bytes = version.found.size_bytes,
            "adapter loaded"
        );
        Ok(version)
    }

    fn make(&self, name: &str, generation: u64, is_pinned: bool, found: Found) -> Arc<Version> {
        // Not used twice in the life of a process: some four billion loads.
        let id = AdapterId(self.0.next_id.fetch_add(1, Ordering::Relaxed));
        let content = stored::Stored::new(id, &self.0.base, &found, is_pinned, Arc::clone(&self.0.memory));
        let content = Arc::new(content);
        self.0.files.insert(id, Arc::clone(&content) as Arc<dyn quern_scheduler::AdapterSource>);
        self.0.ids.lock().insert(id, name.to_owned());
        let ends = version::Ends {
            files: self.0.files.clone(),
            memory: Arc::clone(&self.0.memory),
            workers: self.0.workers.clone(),
            ids: self.0.ids.clone(),
        };
        Arc::new(Version::new(name, id, generation, found, content, ends))
    }

    fn note_error(&self, name: &str, id: AdapterId, why: &str) {
        tracing::warn!(adapter = name, error = why, "adapter cannot be used");
        if let Some(entry) = self.lock().served.get_mut(name).filter(|entry| entry.version.id == id) {
            entry.last_error = Some(why.to_owned());
        }
    }

    /// What was there is not what was wanted.
    fn note_failed(&self, order: &Order, error: &Error) {
        if order.in_place
            && let Some(entry) = self.lock().served.get_mut(&order.name)
        {
            entry.last_error = Some(error.to_string());
            return;
        }
        self.note_refused(order, error);
    }

    /// Nobody is told of what becomes of the watched folder, but may ask.
    fn note_refused(&self, order: &Order, error: &Error) {
        let mut names = self.lock();
        if order.origin == Origin::Folder && names.failed.len() < self.0.settings.max_registered {
            names.failed.insert(order.name.clone(), error.to_string());
        }
    }

    fn forget_failure(&self, name: &str) {
        self.lock().failed.remove(name);
    }

    /// A panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a name from being loaded twice at a time; given back when dropped.
struct Changing {
    registry: Registry,
    name: String,
    /// The generation that had the name when this began.
    before: Option<u64>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.registry.lock().changing.remove(&self.name);
    }
}

impl Entry {
    fn status(&self) -> Status {
        let Entry { version, origin, last_error } = self;
        Status { version: Arc::clone(version), origin: *origin, last_error: last_error.clone() }
    }
}

/// What a name may be: it stands in URLs, lists and labels of metrics.
///
/// # Errors
/// [`Error::BadName`].
pub fn check_name(name: &str) -> Result<(), Error> {
    const MAX_BYTES: usize = 128;
    let plain = |c: char| c.is_alphanumeric() || "-_.:/@+".contains(c);
    if name.is_empty() || name.len() > MAX_BYTES || !name.chars().all(plain) {
        return Err(Error::BadName(name.chars().take(MAX_BYTES).collect()));
    }
    Ok(())
}

fn check_generation(name: &str, expected: Option<u64>, present: Option<&Version>) -> Result<(), Error> {
    let found = present.map_or(0, |version| version.generation);
    match expected {
        Some(expected) if expected != found => {
            Err(Error::Generation { name: name.to_owned(), expected, found })
        }
        _ => Ok(()),
    }
}

/// Runs what blocks on a thread that may.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|failed| Error::Lost(failed.to_string()))
}
