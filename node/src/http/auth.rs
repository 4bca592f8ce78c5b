//! API keys from a file, compared in constant time, read again when it changes.
//!
//! One key a line; `name=key` gives its holder a name, which is the tenant of
//! its requests. Empty lines and lines with `#` first are left out. Only the
//! keys' digests are kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The file is looked at no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the file of keys is refused at the start.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("{path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        why: io::Error,
    },
    /// It holds no key: nobody could ask anything.
    #[error("{0} holds no key")]
    Empty(PathBuf),
}

/// Who asks, as far as the key tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// The name before the key, if it has one.
    pub(super) name: Option<Arc<str>>,
}

struct Key {
    digest: [u8; 32],
    name: Option<Arc<str>>,
}

/// When the file was last looked at, and what it looked like.
struct Seen {
    checked: Instant,
    stamp: Stamp,
}

type Stamp = Option<(SystemTime, u64)>;

/// The keys that may ask.
pub(super) struct Keys {
    path: PathBuf,
    keys: ArcSwap<Vec<Key>>,
    seen: Mutex<Seen>,
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// [`KeysError`]: a node that nobody can ask does not start.
    pub(super) fn load(path: &Path) -> Result<Keys, KeysError> {
        let stamp = stamp(path);
        let keys = read(path)?;
        Ok(Keys {
            path: path.to_owned(),
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(Seen { checked: Instant::now(), stamp }),
        })
    }

    /// The holder of `key`, or `None` when it is no key of ours. Every key is
    /// compared, whether or not an earlier one fits, so that the time taken
    /// tells nothing.
    pub(super) fn caller(&self, key: &str) -> Option<Caller> {
        self.reload_if_changed(Instant::now());
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let keys = self.keys.load();
        let mut found = None;
        for key in keys.iter() {
            let same: Choice = key.digest.ct_eq(&digest);
            if bool::from(same) {
                found = Some(Caller { name: key.name.clone() });
            }
        }
        found
    }

    fn reload_if_changed(&self, now: Instant) {
        // Another request is looking: the set it finds will do for the next one.
        let Ok(mut seen) = self.seen.try_lock().or_else(|error| match error {
            std::sync::TryLockError::Poisoned(poisoned) => Ok(PoisonError::into_inner(poisoned)),
            std::sync::TryLockError::WouldBlock => Err(()),
        }) else {
            return;
        };
        if now.saturating_duration_since(seen.checked) < CHECK_INTERVAL {
            return;
        }
        seen.checked = now;
        let found = stamp(&self.path);
        if found == seen.stamp {
            return;
        }
        match read(&self.path) {
            Ok(keys) => {
                tracing::info!(path = %self.path.display(), num_keys = keys.len(), "api keys read again");
                self.keys.store(Arc::new(keys));
                seen.stamp = found;
            }
            // The old keys stay good: an editor's half-written file locks nobody out.
            Err(error) => tracing::warn!(%error, "api keys kept, the changed file is refused"),
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &Path) -> Result<Vec<Key>, KeysError> {
    let text = fs::read_to_string(path).map_err(|why| KeysError::Read { path: path.to_owned(), why })?;
    let keys: Vec<Key> = text.lines().filter_map(parse).collect();
    if keys.is_empty() {
        return Err(KeysError::Empty(path.to_owned()));
    }
    Ok(keys)
}

/// A name holds letters, digits, `-`, `_` and `.` alone, so that a bare key may
/// end in the `=` of base64.
fn parse(line: &str) -> Option<Key> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (name, key) = match line.split_once('=') {
        Some((name, key)) if is_name(name.trim()) && !key.trim_matches('=').trim().is_empty() => {
            (Some(Arc::from(name.trim())), key.trim())
        }
        _ => (None, line),
    };
    Some(Key { digest: Sha256::digest(key.as_bytes()).into(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn lines_become_keys_and_names() {
        let (_dir, path) = keys_file("# people\n\nplain-key\nalice = sk-1\nc2VjcmV0==\n");
        let keys = Keys::load(&path).unwrap();
        assert_eq!(keys.caller("plain-key"), Some(Caller { name: None }));
        assert_eq!(keys.caller("sk-1"), Some(Caller { name: Some("alice".into()) }));
        assert_eq!(keys.caller("c2VjcmV0=="), Some(Caller { name: None }));
        assert_eq!(keys.caller("# people"), None);
        assert_eq!(keys.caller(""), None);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_lost_one_keeps_the_keys() {
        let (_dir, path) = keys_file("first\n");
        let keys = Keys::load(&path).unwrap();
        fs::write(&path, "second and longer\n").unwrap();
        keys.reload_if_changed(Instant::now());
        assert!(keys.caller("first").is_some(), "looked at again within the interval");

        keys.reload_if_changed(Instant::now() + CHECK_INTERVAL);
        assert!(keys.caller("first").is_none());
        assert!(keys.caller("second and longer").is_some());

        fs::remove_file(&path).unwrap();
        keys.reload_if_changed(Instant::now() + 3 * CHECK_INTERVAL);
        assert!(keys.caller("second and longer").is_some());
    }

    #[test]
    fn a_file_without_keys_is_refused_at_the_start() {
        let (_dir, path) = keys_file("# nobody\n");
        assert!(matches!(Keys::load(&path), Err(KeysError::Empty(_))));
    }
}
