//! Looking after adapters' files: those of a folder come, change and go; those that the
//! configuration names change.
//!
//! Files are looked at every so often. What looks another way than when it was last
//! acted on is loaded once it stood still for two looks, so that nothing is read while
//! it is copied there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;

use super::found::Stamp;
use super::{Named, Order, Origin, Registry, off_thread};

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Each folder and each GGUF file in it is an adapter, named by its stem.
    pub folder: Option<PathBuf>,
    /// What the configuration names, and serves already.
    pub named: Vec<Named>,
}

/// The looks, without the clock.
pub(super) struct Looks {
    registry: Registry,
    watched: Watched,
    seen: BTreeMap<String, Seen>,
    is_first: bool,
}

/// What a look found under a name.
struct Lying {
    path: PathBuf,
    origin: Origin,
    stamp: Option<Stamp>,
}

struct Seen {
    path: PathBuf,
    origin: Origin,
    /// What the last look saw; `None` was nothing.
    last: Option<Stamp>,
    /// What was loaded, or could not be.
    acted: Option<Stamp>,
}

/// Looks after files until it is dropped, first at once and then every `period`.
/// `first` is told when all that lay there at the start was read; without a period
/// that is all.
pub async fn keep_watching(
    registry: Registry,
    watched: Watched,
    period: Option<Duration>,
    first: tokio::sync::oneshot::Sender<()>,
) {
    let mut looks = Looks::new(registry, watched);
    looks.look().await;
    // Whoever started this may have given up waiting.
    let _ = first.send(());
    let Some(period) = period else { return };
    loop {
        tokio::time::sleep(period).await;
        looks.look().await;
    }
}

impl Looks {
    pub(super) fn new(registry: Registry, watched: Watched) -> Looks {
        Looks { registry, watched, seen: BTreeMap::new(), is_first: true }
    }

    /// Takes one look, and acts on it.
    pub(super) async fn look(&mut self) {
        let watched = self.watched.clone();
        let found = match off_thread(move || all(&watched)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return tracing::warn!(error = %error, "folder of adapters cannot be read"),
            // The node is ending.
            Err(_) => return,
        };
        let is_first = std::mem::take(&mut self.is_first);
        let mut due = Vec::new();
        for (name, Lying { path, origin, stamp }) in &found {
            let seen = self.seen.entry(name.clone()).or_insert_with(|| {
                // The configuration's were loaded before the first look.
                let present = self.registry.get(name).filter(|present| present.version.found.path == *path);
                let acted = present.map(|present| present.version.stamp().clone());
                Seen { path: path.clone(), origin: *origin, last: None, acted }
            });
            let stands_still = seen.last == *stamp || is_first;
            seen.last.clone_from(stamp);
            seen.path.clone_from(path);
            if stamp.is_some() && stands_still && seen.acted != *stamp {
                seen.acted.clone_from(stamp);
                due.push(Order {
                    name: name.clone(),
                    path: seen.path.clone(),
                    in_place: may_replace(&self.registry, name, seen.origin),
                    expected_generation: None,
                    pin: None,
                    origin: seen.origin,
                });
            }
        }
        let registry = &self.registry;
        let most = registry.settings().max_reading.max(1);
        futures_util::stream::iter(due).for_each_concurrent(most, |order| load(registry, order)).await;
        self.drop_missing(&found);
    }

    /// Those that were not there for two looks go, unless somebody named them.
    fn drop_missing(&mut self, found: &BTreeMap<String, Lying>) {
        let registry = &self.registry;
        self.seen.retain(|name, seen| {
            if found.contains_key(name) {
                return true;
            }
            if seen.last.take().is_some() {
                return true;
            }
            registry.forget_failure(name);
            if registry.get(name).is_some_and(|present| present.origin == Origin::Folder) {
                // It may have been unloaded just now, which is all the same.
                let _ = registry.unload(name, None);
            }
            false
        });
    }
}

/// What an operator loaded under a name of the folder is not replaced by it.
fn may_replace(registry: &Registry, name: &str, origin: Origin) -> bool {
    registry.get(name).is_none_or(|present| present.origin == origin)
}

async fn load(registry: &Registry, order: Order) {
    let (name, path) = (order.name.clone(), order.path.clone());
    if let Err(error) = registry.load(order).await {
        tracing::warn!(adapter = name, path = %path.display(), error = %error, "adapter not loaded");
    }
}

/// All that lies there now. Blocks on the disk.
fn all(watched: &Watched) -> std::io::Result<BTreeMap<String, Lying>> {
    let mut found = BTreeMap::new();
    if let Some(folder) = &watched.folder {
        for (name, path) in lying_in(folder)? {
            // A link is followed, and one that leads nowhere is nothing.
            if let Ok(stamp) = Stamp::of(&path) {
                found.insert(name, Lying { path, origin: Origin::Folder, stamp: Some(stamp) });
            }
        }
    }
    for Named { name, path, .. } in &watched.named {
        let stamp = Stamp::of(path).ok();
        let origin = Origin::Configuration;
        found.insert(name.clone(), Lying { path: path.clone(), origin, stamp });
    }
    Ok(found)
}

/// What lies in a folder of adapters, by name. Blocks on the disk.
///
/// # Errors
/// The system's, when the folder cannot be read.
pub fn lying_in(folder: &Path) -> std::io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(name) = name_of(&path) {
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// What an adapter in the folder is called; `None` is none.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str().filter(|name| !name.starts_with('.'))?;
    if path.is_dir() {
        return Some(name.to_owned());
    }
    Some(name.strip_suffix(".gguf")?.to_owned())
}
