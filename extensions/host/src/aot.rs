//! Compiled code on disk, so that a policy is compiled once for each machine.
//!
//! This is native code that runs in this process: whoever can write it owns the
//! node. So the folder and its files have to belong to this user and to be
//! closed to all others, files are written aside and renamed, and a file's name
//! holds the digest of its content, which is checked each time. What does not
//! fit is compiled anew. The only file of this crate with `unsafe`.
#![expect(unsafe_code, reason = "compiled code is taken from a file that only this user can write")]

use std::fs::{self, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::trust::Digest;

/// Compiled policies that are kept.
const MAX_KEPT: usize = 64;

const SUFFIX: &str = ".cwasm";

/// A folder of compiled code.
#[derive(Debug)]
pub(crate) struct AotCache {
    folder: PathBuf,
}

impl AotCache {
    /// Opens the folder; makes it where it is missing.
    ///
    /// # Errors
    /// The operating system's, or `PermissionDenied` when the folder belongs to
    /// somebody else or lets others in.
    pub(crate) fn open(folder: &Path) -> io::Result<AotCache> {
        if !folder.exists() {
            if let Some(parent) = folder.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::DirBuilder::new().mode(0o700).create(folder).or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })?;
        }
        let found = fs::symlink_metadata(folder)?;
        if !found.is_dir() || !is_private(&found) {
            let text = format!("{} is not a folder of this user alone", folder.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(AotCache { folder: folder.to_owned() })
    }

    /// The component, from here if it is here, else compiled and put here.
    /// Compiling takes a core for tens of milliseconds and more.
    ///
    /// # Errors
    /// The compiler's. Trouble with the folder is only logged.
    pub(crate) fn load(&self, engine: &Engine, component: &[u8]) -> wasmtime::Result<Component> {
        let key = key(engine, component);
        if let Some(path) = self.find(&key) {
            match take(engine, &path) {
                Ok(component) => return Ok(component),
                Err(error) => {
                    tracing::debug!(path = %path.display(), error = %error, "compiled policy not usable");
                    // If it stays, it is found unusable once more, no worse.
                    let _ = fs::remove_file(&path);
                }
            }
        }
        let code = engine.precompile_component(component)?;
        match self.put(&key, &code) {
            Ok(path) => take(engine, &path),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), error = %error, "compiled policy not kept");
                Component::new(engine, component)
            }
        }
    }

    fn find(&self, key: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.folder).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| name_of(path).is_some_and(|name| name.starts_with(key) && name.ends_with(SUFFIX)))
    }

    fn put(&self, key: &str, code: &[u8]) -> io::Result<PathBuf> {
        self.make_room()?;
        let path = self.folder.join(format!("{key}-{}{SUFFIX}", Digest::of(code)));
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(code)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }

    /// Drops the oldest files, so that there is a place for one more.
    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let surplus = (files.len() + 1).saturating_sub(MAX_KEPT);
        for (_, path) in files.into_iter().take(surplus) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Takes compiled code from a file, if it is ours and whole.
fn take(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    let found = fs::symlink_metadata(path)?;
    wasmtime::ensure!(found.is_file() && is_private(&found), "the file is not this user's alone");
    let content = Digest::of(&fs::read(path)?).to_string();
    let named =
        name_of(path).is_some_and(|name| name.strip_suffix(SUFFIX).unwrap_or(name).ends_with(&content));
    wasmtime::ensure!(named, "the file is not what its name says");
    // SAFETY: the file is output of `precompile_component` of an engine with the
    // same settings and version: its name holds the digest of its content, which
    // was just checked, and only this user can write to it or to its folder.
    // Nobody changes a file here; it is only replaced or removed, which leaves a
    // mapping of it as it is.
    let component = unsafe { Component::deserialize_file(engine, path)? };
    Ok(component)
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn is_private(found: &fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0
}

/// Names a component together with all that its code depends on.
fn key(engine: &Engine, component: &[u8]) -> String {
    let mut sum = Sum(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sum);
    sum.0.update(Sha256::digest(component));
    Digest(sum.0.finalize().into()).to_string()
}

/// SHA-256 where the standard library wants 64 bits.
struct Sum(Sha256);

impl Hasher for Sum {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let sum: [u8; 32] = self.0.clone().finalize().into();
        sum.into_iter().take(8).fold(0, |all, byte| all << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component() -> Vec<u8> {
        wat::parse_str("(component (core module $m (func (export \"f\") (result i32) i32.const 1)))").unwrap()
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn garbage_and_truncated_entries_are_compiled_anew() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("policies");
        let cache = AotCache::open(&folder).unwrap();
        let engine = Engine::default();
        cache.load(&engine, &component()).unwrap();
        let [path] = &files(&folder)[..] else { panic!("one file is kept") };
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        let whole = fs::read(path).unwrap();

        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for broken in [whole[..whole.len() / 2].to_vec(), b"garbage".to_vec(), Vec::new(), flipped] {
            fs::write(path, broken).unwrap();
            cache.load(&engine, &component()).unwrap();
            assert_eq!(fs::read(path).unwrap(), whole);
        }
        assert_eq!(files(&folder).len(), 1);
    }

    #[test]
    fn a_file_that_others_may_write_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("policies");
        let cache = AotCache::open(&folder).unwrap();
        let engine = Engine::default();
        cache.load(&engine, &component()).unwrap();
        let path = files(&folder).remove(0);
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(take(&engine, &path).is_err());
        cache.load(&engine, &component()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("policies");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let error = AotCache::open(&folder).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(AotCache::open(&link).is_err());
    }

    #[test]
    fn another_engine_has_another_key() {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        let other = Engine::new(&config).unwrap();
        assert_ne!(key(&Engine::default(), &component()), key(&other, &component()));
        assert_eq!(key(&other, &component()), key(&other, &component()));
    }
}
