//! Content between the disk and the engines: copies in memory, in the form that engines
//! read, as many as a bound allows.
//!
//! A copy is made whole from files that look as they did when the adapter was loaded,
//! so that one generation is one content, whatever happens to its files meanwhile.
//! Making one takes a step's time, which step loops must not wait for: they are given
//! copies that are there, and leases see to it that there is one for each request, also
//! where the bound is too small to keep it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use metrics::{counter, histogram};
use quern_adapters::{Adapter, FileType, Task, convert_into};
use quern_engine::AdapterId;
use quern_scheduler::{AdapterSource, Prepared};

use super::found::{Base, Found, Stamp};

/// Copies at once, however small: each is an open file, of which a process has some
/// thousand.
const MAX_COPIES: usize = 256;

/// One generation's content.
pub(super) struct Stored {
    id: AdapterId,
    path: PathBuf,
    stamp: Stamp,
    architecture: Arc<str>,
    format: FileType,
    size_bytes: u64,
    is_pinned: bool,
    /// The copy, while somebody holds it. Locked for no longer than to look.
    copy: Mutex<Weak<Staged>>,
    /// Engines that have it.
    num_held: AtomicUsize,
    /// Locked while a copy is made, so that it is made once.
    making: Mutex<()>,
    memory: Arc<Memory>,
}

impl Stored {
    pub(super) fn new(
        id: AdapterId,
        base: &Base,
        found: &Found,
        is_pinned: bool,
        memory: Arc<Memory>,
    ) -> Stored {
        Stored {
            id,
            path: found.path.clone(),
            stamp: found.stamp.clone(),
            architecture: Arc::clone(&base.architecture),
            format: base.format,
            size_bytes: found.size_bytes,
            is_pinned,
            copy: Mutex::default(),
            num_held: AtomicUsize::new(0),
            making: Mutex::default(),
            memory,
        }
    }

    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Whether an engine has it.
    pub(super) fn is_on_device(&self) -> bool {
        self.num_held.load(Ordering::Relaxed) > 0
    }

    /// `device`, `memory` or `disk`: the nearest place that has it.
    pub(super) fn tier(&self) -> &'static str {
        match (self.is_on_device(), self.present().is_some()) {
            (true, _) => "device",
            (false, true) => "memory",
            (false, false) => "disk",
        }
    }

    /// The copy that is there, which counts as used. Does not wait.
    pub(super) fn at_hand(&self) -> Option<Arc<Staged>> {
        self.memory.touch(self.id);
        self.present()
    }

    /// The copy, made if it is not there. Blocks on the disk.
    ///
    /// # Errors
    /// Why its files cannot be used any more.
    pub(super) fn prepare(&self) -> Result<Arc<Staged>, String> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = self.at_hand() {
            return Ok(copy);
        }
        let began = Instant::now();
        let copy = Arc::new(self.make()?);
        histogram!("quern_adapter_read_seconds").record(began.elapsed().as_secs_f64());
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&copy);
        self.memory.put(self.id, Arc::clone(&copy), self.is_pinned);
        Ok(copy)
    }

    fn present(&self) -> Option<Arc<Staged>> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn make(&self) -> Result<Staged, String> {
        self.check_unchanged()?;
        let mut adapter = Adapter::open(&self.path).map_err(|error| error.to_string())?;
        // Engines have no use for a head, and would only print it. What is left gives hidden states; were
        // it called a classifier still, whoever opens it would miss the head.
        if adapter.head.take().is_some() {
            adapter.task = Task::FeatureExtraction;
        }
        let file = memory_file().map_err(|error| format!("no file in memory: {error}"))?;
        let converted = convert_into(&adapter, &self.architecture, self.format, &file);
        // First: whatever came of files that changed says less than that they did.
        self.check_unchanged()?;
        let size_bytes = converted.map_err(|error| error.to_string())?.size_bytes;
        Ok(Staged { path: path_of(&file), _file: file, size_bytes })
    }

    fn check_unchanged(&self) -> Result<(), String> {
        match Stamp::of(&self.path) {
            Ok(stamp) if stamp.has_content_of(&self.stamp) => Ok(()),
            Ok(_) => Err(format!("{} has changed since it was loaded; load it again", self.path.display())),
            Err(error) => Err(format!("{}: {error}", self.path.display())),
        }
    }
}

impl AdapterSource for Stored {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn prepared(&self) -> Option<Arc<dyn Prepared>> {
        self.present().map(|copy| copy as Arc<dyn Prepared>)
    }

    fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    fn note_held(&self, is_held: bool) {
        match is_held {
            true => self.num_held.fetch_add(1, Ordering::Relaxed),
            false => self.num_held.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

/// A generation's content as engines read it, in memory while somebody holds it.
pub(super) struct Staged {
    /// Leads to the file while it is open.
    path: PathBuf,
    _file: File,
    size_bytes: u64,
}

impl Prepared for Staged {
    fn path(&self) -> &Path {
        &self.path
    }
}

/// A path by which this process opens a file anew that has no name.
fn path_of(file: &File) -> PathBuf {
    format!("/dev/fd/{}", file.as_raw_fd()).into()
}

#[cfg(target_os = "linux")]
fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("quern-adapter", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// The system has no such files: one on its disk that is gone with its last user.
#[cfg(not(target_os = "linux"))]
fn memory_file() -> io::Result<File> {
    tempfile::tempfile()
}

/// The copies of a registry that are kept although nobody may need them.
pub(super) struct Memory {
    max_bytes: u64,
    copies: Mutex<Copies>,
}

#[derive(Default)]
struct Copies {
    by_id: HashMap<AdapterId, Kept>,
    used_bytes: u64,
    clock: u64,
}

struct Kept {
    copy: Arc<Staged>,
    last_used: u64,
    is_pinned: bool,
}

impl Memory {
    pub(super) fn new(max_bytes: u64) -> Memory {
        Memory { max_bytes, copies: Mutex::default() }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.lock().used_bytes
    }

    /// A copy that is kept was used just now.
    fn touch(&self, id: AdapterId) {
        let mut copies = self.lock();
        copies.clock += 1;
        let clock = copies.clock;
        if let Some(kept) = copies.by_id.get_mut(&id) {
            kept.last_used = clock;
        }
    }

    /// Keeps a copy in place of those that were not used for longest; one that is
    /// larger than all may be is not kept.
    fn put(&self, id: AdapterId, copy: Arc<Staged>, is_pinned: bool) {
        let size_bytes = copy.size_bytes;
        if size_bytes > self.max_bytes {
            return;
        }
        let mut copies = self.lock();
        copies.clock += 1;
        while copies.used_bytes + size_bytes > self.max_bytes || copies.by_id.len() >= MAX_COPIES {
            let age = |(_, kept): &(&AdapterId, &Kept)| (kept.is_pinned, kept.last_used);
            let Some(oldest) = copies.by_id.iter().min_by_key(age).map(|(&id, _)| id) else { break };
            copies.remove(oldest);
            counter!("quern_adapter_evictions_total", "tier" => "memory").increment(1);
        }
        let last_used = copies.clock;
        copies.used_bytes += size_bytes;
        copies.by_id.insert(id, Kept { copy, last_used, is_pinned });
    }

    /// Lets go of a copy for good.
    pub(super) fn forget(&self, id: AdapterId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copies {
    fn remove(&mut self, id: AdapterId) {
        if let Some(kept) = self.by_id.remove(&id) {
            self.used_bytes -= kept.copy.size_bytes;
        }
    }
}
