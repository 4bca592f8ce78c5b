//! The unfinished file: bytes from the start of the model, and their digest.
//!
//! The length of `.part` is the only record of how far it has come, so a kill at
//! any moment leaves nothing that contradicts it. Whoever appends keeps the
//! digest going; the file is read again only when a pull is taken up later.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::{Slot, read_toml, remove, write_toml};
use crate::error::{PullError, SourceError};
use crate::progress::Progress;

const BUFFER_BYTES: usize = 1 << 20;

/// What the file must be in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Expected {
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
}

/// The note beside a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    becomes: Expected,
    /// Sizes of the wheels' parts that are known so far, in order.
    #[serde(default)]
    wheel_bytes: Vec<u64>,
}

/// An open part.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    state_path: PathBuf,
    state: State,
    len: u64,
    digest: Sha256,
}

impl Part {
    /// Opens the part that becomes `expected`: goes on with one that is there, or
    /// starts anew where it was on its way to something else.
    pub(crate) fn open(slot: &Slot, expected: &Expected, progress: &dyn Progress) -> Result<Part, PullError> {
        let (path, state_path) = (slot.part(), slot.state());
        let known: Option<State> = read_toml(&state_path);
        let state = match known {
            Some(state) if state.becomes == *expected => state,
            _ => {
                remove(&path)?;
                let state = State { becomes: expected.clone(), wheel_bytes: Vec::new() };
                write_toml(&state_path, &state)?;
                state
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(PullError::file("open", &path))?;
        let mut part = Part { file, path, state_path, state, len: 0, digest: Sha256::new() };
        part.catch_up(progress)?;
        Ok(part)
    }

    /// Hashes what is there already.
    fn catch_up(&mut self, progress: &dyn Progress) -> Result<(), PullError> {
        let found = self.file.metadata().map_err(PullError::file("read", &self.path))?.len();
        if found > self.state.becomes.size_bytes {
            return self.cut(0);
        }
        if found > 0 {
            progress.note(&format!("going on from {found} bytes that came earlier"));
        }
        (self.digest, self.len) = hash_from_start(&mut self.file, found, &self.path)?;
        // A file that shrank between the two looks cannot happen under the lock,
        // but appending must start where the digest ends.
        self.seek(self.len)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.len == self.state.becomes.size_bytes
    }

    pub(crate) fn expected(&self) -> &Expected {
        &self.state.becomes
    }

    /// Appends bytes that came from a source.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.file.write_all(bytes).map_err(PullError::file("write", &self.path))?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything past `len`.
    pub(crate) fn cut(&mut self, len: u64) -> Result<(), PullError> {
        self.file.set_len(len).map_err(PullError::file("cut", &self.path))?;
        (self.digest, self.len) = hash_from_start(&mut self.file, len, &self.path)?;
        self.seek(self.len)
    }

    fn seek(&mut self, to: u64) -> Result<(), PullError> {
        self.file.seek(SeekFrom::Start(to)).map_err(PullError::file("read", &self.path))?;
        Ok(())
    }

    /// The size of wheel `idx`'s part, if it was met before.
    pub(crate) fn wheel_bytes(&self, idx: usize) -> Option<u64> {
        self.state.wheel_bytes.get(idx).copied()
    }

    /// Notes the size of the next wheel's part, so that it need not come again.
    pub(crate) fn note_wheel(&mut self, idx: usize, bytes: u64) -> Result<(), PullError> {
        if self.state.wheel_bytes.len() == idx {
            self.state.wheel_bytes.push(bytes);
            write_toml(&self.state_path, &self.state)?;
        }
        Ok(())
    }

    /// Puts what came on the disk and gives its digest. Wrong bytes are thrown away.
    pub(crate) fn check(self) -> Result<Result<String, SourceError>, PullError> {
        self.file.sync_all().map_err(PullError::file("write", &self.path))?;
        let actual = hex(&self.digest.finalize());
        let expected = self.state.becomes.sha256;
        if actual == expected {
            return Ok(Ok(actual));
        }
        remove(&self.path)?;
        remove(&self.state_path)?;
        Ok(Err(SourceError::WrongBytes { expected, actual }))
    }
}

/// The digest of a whole file, in lower-case hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String, PullError> {
    let mut file = File::open(path).map_err(PullError::file("open", path))?;
    let (digest, _) = hash_from_start(&mut file, u64::MAX, path)?;
    Ok(hex(&digest.finalize()))
}

/// Hashes at most `max` bytes from the start; gives how many there were.
fn hash_from_start(file: &mut File, max: u64, path: &Path) -> Result<(Sha256, u64), PullError> {
    let failed = || PullError::file("read", path);
    let mut digest = Sha256::new();
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    let mut reader = file.take(max);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut len = 0;
    loop {
        let num_read = reader.read(&mut buffer).map_err(failed())?;
        if num_read == 0 {
            return Ok((digest, len));
        }
        digest.update(&buffer[..num_read]);
        len += num_read as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
