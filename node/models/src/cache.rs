//! Where models lie on this machine, and the files that stand beside one while
//! it is fetched.
//!
//! For a model `m.gguf` there may be: `m.gguf.lock` (held by whoever pulls),
//! `m.gguf.part` (what has come so far), `m.gguf.state` (what that is meant to
//! become) and `m.gguf.verified` (what it was when it was last checked).

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::PullError;

/// The folder that Quern keeps downloads in: `QUERN_CACHE_DIR`, else `quern` in
/// `XDG_CACHE_HOME`, else in `.cache` of the home folder. `None` without a home.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("QUERN_CACHE_DIR").filter(|dir| !dir.is_empty()) {
        return Some(PathBuf::from(dir));
    }
    directories::BaseDirs::new().map(|dirs| dirs.cache_dir().join("quern"))
}

/// One model's files.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) dir: PathBuf,
    pub(crate) file: PathBuf,
    name: String,
}

/// What a file was when its digest was last computed. A file that still looks
/// the same is not hashed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    pub(crate) modified_ns: u64,
}

impl Slot {
    pub(crate) fn new(cache_dir: &Path, file_name: &str) -> Slot {
        let dir = cache_dir.join("models");
        Slot { file: dir.join(file_name), dir, name: file_name.to_owned() }
    }

    pub(crate) fn part(&self) -> PathBuf {
        self.beside("part")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.beside("state")
    }

    /// A folder for packages on their way, emptied by whoever holds the lock.
    pub(crate) fn packages(&self) -> PathBuf {
        self.beside("packages")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.name))
    }

    /// Takes the lock, calling `waiting` once if somebody else has it. The lock
    /// ends with the returned file, however the process ends.
    pub(crate) fn lock(&self, waiting: impl FnOnce()) -> Result<File, PullError> {
        fs::create_dir_all(&self.dir).map_err(PullError::file("create", &self.dir))?;
        let path = self.beside("lock");
        let file = File::create(&path).map_err(PullError::file("create", &path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(e)) => return Err(PullError::file("lock", &path)(e)),
        }
        file.lock().map_err(PullError::file("lock", &path))?;
        Ok(file)
    }

    /// What the finished file looks like now, without a digest; `None` if there is none.
    pub(crate) fn look(&self) -> Result<Option<(u64, u64)>, PullError> {
        let meta = match fs::metadata(&self.file) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(PullError::file("read", &self.file)(e)),
        };
        let modified = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Ok(Some((meta.len(), modified.map_or(0, |age| age.as_nanos() as u64))))
    }

    /// The marker, if it still describes the finished file.
    pub(crate) fn marker(&self) -> Result<Option<Marker>, PullError> {
        let Some((size_bytes, modified_ns)) = self.look()? else {
            return Ok(None);
        };
        let marker: Option<Marker> = read_toml(&self.beside("verified"));
        Ok(marker.filter(|m| m.size_bytes == size_bytes && m.modified_ns == modified_ns))
    }

    /// Notes that the finished file has this digest.
    pub(crate) fn mark(&self, sha256: &str) -> Result<(), PullError> {
        let Some((size_bytes, modified_ns)) = self.look()? else {
            return Ok(());
        };
        let marker = Marker { sha256: sha256.to_owned(), size_bytes, modified_ns };
        write_toml(&self.beside("verified"), &marker)
    }

    /// Puts the part in the finished file's place and marks it. The state goes last:
    /// killed before, the next pull still knows what the file should be.
    pub(crate) fn finish(&self, sha256: &str) -> Result<(), PullError> {
        let part = self.part();
        fs::rename(&part, &self.file).map_err(PullError::file("rename", &part))?;
        sync_dir(&self.dir)?;
        self.mark(sha256)?;
        remove(&self.state())
    }
}

/// Reads a small file of our own; one that is missing or damaged counts as none.
pub(crate) fn read_toml<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    toml::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Writes a small file so that it is seen whole or not at all.
pub(crate) fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), PullError> {
    let text = toml::to_string(value).expect("plain structs of strings and numbers are TOML");
    let dir = path.parent().expect("files of a slot lie in a folder");
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(PullError::file("write", path))?;
    file.write_all(text.as_bytes()).map_err(PullError::file("write", path))?;
    file.as_file().sync_all().map_err(PullError::file("write", path))?;
    file.persist(path).map_err(|e| PullError::file("write", path)(e.error))?;
    Ok(())
}

/// Removes a file, which may be missing.
pub(crate) fn remove(path: &Path) -> Result<(), PullError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PullError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<(), PullError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(PullError::file("write", dir))
}
