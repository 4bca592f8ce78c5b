//! One generation of an adapter, and what its users hold.
//!
//! The registry has a share of the version that a name stands for, and so has each
//! request that is served with it. What ends with the last share, ends in one place.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use quern_adapters::Head;
use quern_engine::AdapterId;
use quern_scheduler::AdapterFiles;
use tokio_util::sync::CancellationToken;

use super::found::{Found, Stamp};
use super::stored::{Memory, Staged, Stored};
use crate::workers::Workers;

/// See the module's text.
pub struct Version {
    /// What requests call it.
    pub name: String,
    /// What engines call it; no other generation of any name ever has this one.
    pub id: AdapterId,
    /// Counts loads under the name, from 1.
    pub generation: u64,
    /// What its files hold.
    pub found: Found,
    /// When it was loaded, as Unix time.
    pub created: u64,
    content: Arc<Stored>,
    is_pinned: bool,
    num_leases: Arc<AtomicUsize>,
    gone: CancellationToken,
    ends: Ends,
}

/// Whom a version tells that it has ended.
pub(super) struct Ends {
    pub(super) files: AdapterFiles,
    pub(super) memory: Arc<Memory>,
    pub(super) workers: Workers,
    pub(super) ids: Ids,
}

/// What ids are called while there are versions of them.
#[derive(Clone, Default)]
pub(super) struct Ids(Arc<Mutex<HashMap<AdapterId, String>>>);

impl Ids {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<AdapterId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {}, {:?})", self.name, self.generation, self.id)
    }
}

impl Version {
    pub(super) fn new(
        name: &str,
        id: AdapterId,
        generation: u64,
        found: Found,
        content: Arc<Stored>,
        ends: Ends,
    ) -> Version {
        Version {
            name: name.to_owned(),
            id,
            generation,
            found,
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            is_pinned: quern_scheduler::AdapterSource::is_pinned(&*content),
            content,
            num_leases: Arc::default(),
            gone: CancellationToken::new(),
            ends,
        }
    }

    /// Whether it is kept before others.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Requests that are served with it.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.num_leases.load(Ordering::Relaxed)
    }

    /// What its files looked like.
    pub(super) fn stamp(&self) -> &Stamp {
        self.content.stamp()
    }

    #[cfg(test)]
    pub(super) fn content(&self) -> &Arc<Stored> {
        &self.content
    }

    /// `device`, `memory` or `disk`: the nearest place that has it.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        self.content.tier()
    }
}

/// Nobody has the name's version or a lease on it any more: engines let go of it, and
/// of all state that was computed with it.
impl Drop for Version {
    fn drop(&mut self) {
        self.ends.files.retire(self.id);
        self.ends.memory.forget(self.id);
        self.ends.ids.lock().remove(&self.id);
        self.ends.workers.look_at_adapters();
        self.gone.cancel();
    }
}

/// A request's share of a version, for as long as it is served.
pub struct Lease {
    version: Arc<Version>,
    /// Keeps the content ready for engines, which take no other; nothing where only
    /// engines have it any more.
    copy: Option<Arc<Staged>>,
}

impl Lease {
    pub(super) fn new(version: Arc<Version>) -> Lease {
        version.num_leases.fetch_add(1, Ordering::Relaxed);
        Lease { copy: version.content.at_hand(), version }
    }

    /// Whether engines can have the content while this is held.
    pub(super) fn is_ready(&self) -> bool {
        self.copy.is_some()
    }

    /// Has this hold the content ready.
    pub(super) fn hold(&mut self, copy: Arc<Staged>) {
        self.copy = Some(copy);
    }

    /// What requests call the adapter.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.version.name
    }

    /// What engines call it.
    #[must_use]
    pub fn id(&self) -> AdapterId {
        self.version.id
    }

    /// Its classification head.
    #[must_use]
    pub fn head(&self) -> Option<&Arc<Head>> {
        self.version.found.head.as_ref()
    }

    /// The generation that is leased.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    pub(super) fn content(&self) -> &Arc<Stored> {
        &self.version.content
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.version, f)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.version.num_leases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells when a version that was unloaded has no users left.
#[derive(Debug)]
pub struct Drained {
    num_leases: Arc<AtomicUsize>,
    gone: CancellationToken,
}

impl Drained {
    pub(super) fn of(version: &Version) -> Drained {
        Drained { num_leases: Arc::clone(&version.num_leases), gone: version.gone.clone() }
    }

    /// Requests that are still served with it.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.num_leases.load(Ordering::Relaxed)
    }

    /// Ready when the last of them has ended. Cancel safe.
    pub async fn wait(&self) {
        self.gone.cancelled().await;
    }
}
