//! Loads a policy's file again when it changes.
//!
//! The file is looked at every so often. One that has another length or time is
//! read once both stood still for two looks, and loaded if its bytes are new;
//! whatever is wrong with it, what serves keeps serving.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::load::{self, LoadError, Source};
use crate::slot::Slot;
use crate::status::Loaded;
use crate::trust::Digest;

/// Time between two looks.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The looks at one file, without the clock.
pub struct Looks {
    slot: Slot,
    path: PathBuf,
    last: Option<Stamp>,
    /// What was read last, whether it could be loaded or not.
    read: Option<Stamp>,
    /// What was loaded last. An operator may have rolled it back since, and does
    /// not want it again because somebody touched the file.
    loaded: Option<Digest>,
}

/// A file's length and time, and those of its signature, which may come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    policy: (u64, Option<SystemTime>),
    signature: Option<(u64, Option<SystemTime>)>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let stamp = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.len(), found.modified().ok()))
        };
        Some(Stamp { policy: stamp(path)?, signature: stamp(&load::signature_of(path)) })
    }
}

impl Looks {
    /// At `path`, for `slot`. What the place serves already is not loaded again.
    #[must_use]
    pub fn new(slot: &Slot, path: &Path) -> Looks {
        let loaded = slot.digest();
        Looks { slot: slot.clone(), path: path.to_owned(), last: None, read: None, loaded }
    }

    /// Takes one look. Blocks while a file that changed is loaded. `None` is
    /// nothing new.
    pub fn look(&mut self) -> Option<Result<Loaded, LoadError>> {
        let stamp = Stamp::of(&self.path);
        let last = std::mem::replace(&mut self.last, stamp);
        let stamp = stamp.filter(|_| stamp == last && stamp != self.read)?;
        match load::read_still(&self.path, self.slot.max_file_bytes()) {
            // Another look will find it at rest, or gone.
            Err(LoadError::Changing(_) | LoadError::Read { .. }) => return None,
            Ok(bytes) if self.loaded == Some(Digest::of(&bytes)) => {
                self.read = Some(stamp);
                return None;
            }
            // One that is too large is refused below, in the same words.
            Ok(_) | Err(_) => self.read = Some(stamp),
        }
        let loaded = self.slot.load(&Source::File(self.path.clone()));
        if loaded.is_ok() {
            self.loaded = self.slot.digest();
        }
        Some(loaded)
    }
}

/// A thread that looks every [`PERIOD`]; it stops when this is dropped.
pub struct Watch {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub fn start(slot: &Slot, path: &Path) -> std::io::Result<Watch> {
        let mut looks = Looks::new(slot, path);
        let (stop, stopped) = sync_channel::<()>(1);
        let thread = std::thread::Builder::new().name("quern-watch".into()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if let Some(Err(error)) = looks.look() {
                    tracing::warn!(path = %looks.path.display(), error = %error, "policy not loaded");
                }
            }
        })?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It ends with its present look.
            let _ = thread.join();
        }
    }
}
