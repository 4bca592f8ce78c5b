//! Content between the disk and the engines: copies in memory, in the form that engines
//! read, as many as a bound allows.
//!
//! A copy is made whole from files that look as they did when the adapter was loaded,
//! so that one generation is one content, whatever happens to its files meanwhile.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::{counter, histogram};
use quern_adapters::{Adapter, FileType, convert_into};
use quern_engine::AdapterId;
use quern_scheduler::AdapterSource;

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
    /// Whether there is a copy, for those who must not wait for a lock.
    in_memory: Arc<AtomicBool>,
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
            in_memory: Arc::default(),
            num_held: AtomicUsize::new(0),
            making: Mutex::default(),
            memory,
        }
    }

    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Whether a request need not wait for the disk.
    pub(super) fn is_at_hand(&self) -> bool {
        self.is_in_memory() || self.num_held.load(Ordering::Relaxed) > 0
    }

    /// `device`, `memory` or `disk`: the nearest place that has it.
    pub(super) fn tier(&self) -> &'static str {
        match (self.num_held.load(Ordering::Relaxed) > 0, self.is_in_memory()) {
            (true, _) => "device",
            (false, true) => "memory",
            (false, false) => "disk",
        }
    }

    /// Brings it to memory. Blocks on the disk where it is not there.
    ///
    /// # Errors
    /// Why its files cannot be used any more.
    pub(super) fn stage(&self) -> Result<(), String> {
        self.copy().map(|_| ())
    }

    fn copy(&self) -> Result<Arc<File>, String> {
        if let Some(copy) = self.memory.get(self.id) {
            return Ok(copy);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = self.memory.get(self.id) {
            return Ok(copy);
        }
        let began = Instant::now();
        let (file, size_bytes) = self.make()?;
        histogram!("quern_adapter_read_seconds").record(began.elapsed().as_secs_f64());
        let copy = Arc::new(file);
        self.memory.put(self.id, Arc::clone(&copy), size_bytes, &self.in_memory, self.is_pinned);
        Ok(copy)
    }

    fn make(&self) -> Result<(File, u64), String> {
        self.check_unchanged()?;
        let mut adapter = Adapter::open(&self.path).map_err(|error| error.to_string())?;
        // Engines have no use for it, and would only print it.
        adapter.head = None;
        let file = memory_file().map_err(|error| format!("no file in memory: {error}"))?;
        let converted = convert_into(&adapter, &self.architecture, self.format, &file);
        // First: whatever came of files that changed says less than that they did.
        self.check_unchanged()?;
        Ok((file, converted.map_err(|error| error.to_string())?.size_bytes))
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

    fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Relaxed)
    }

    fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    fn with_file(&self, read: &mut dyn FnMut(&Path)) -> Result<(), String> {
        let copy = self.copy()?;
        read(&path_of(&copy));
        Ok(())
    }

    fn note_held(&self, is_held: bool) {
        match is_held {
            true => self.num_held.fetch_add(1, Ordering::Relaxed),
            false => self.num_held.fetch_sub(1, Ordering::Relaxed),
        };
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

/// All copies of a registry.
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
    file: Arc<File>,
    size_bytes: u64,
    last_used: u64,
    is_pinned: bool,
    /// Lowered when it goes.
    is_here: Arc<AtomicBool>,
}

impl Memory {
    pub(super) fn new(max_bytes: u64) -> Memory {
        Memory { max_bytes, copies: Mutex::default() }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.lock().used_bytes
    }

    fn get(&self, id: AdapterId) -> Option<Arc<File>> {
        let mut copies = self.lock();
        copies.clock += 1;
        let clock = copies.clock;
        let copy = copies.by_id.get_mut(&id)?;
        copy.last_used = clock;
        Some(Arc::clone(&copy.file))
    }

    /// Keeps a copy in place of those that were not used for longest; one that is
    /// larger than all may be is not kept.
    fn put(
        &self,
        id: AdapterId,
        file: Arc<File>,
        size_bytes: u64,
        is_here: &Arc<AtomicBool>,
        is_pinned: bool,
    ) {
        if size_bytes > self.max_bytes {
            return;
        }
        let mut copies = self.lock();
        copies.clock += 1;
        while copies.used_bytes + size_bytes > self.max_bytes || copies.by_id.len() >= MAX_COPIES {
            let age = |(_, copy): &(&AdapterId, &Kept)| (copy.is_pinned, copy.last_used);
            let Some(oldest) = copies.by_id.iter().min_by_key(age).map(|(&id, _)| id) else { break };
            copies.remove(oldest);
            counter!("quern_adapter_evictions_total", "tier" => "memory").increment(1);
        }
        is_here.store(true, Ordering::Relaxed);
        let (last_used, is_here) = (copies.clock, Arc::clone(is_here));
        copies.used_bytes += size_bytes;
        copies.by_id.insert(id, Kept { file, size_bytes, last_used, is_pinned, is_here });
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
        if let Some(copy) = self.by_id.remove(&id) {
            copy.is_here.store(false, Ordering::Relaxed);
            self.used_bytes -= copy.size_bytes;
        }
    }
}
