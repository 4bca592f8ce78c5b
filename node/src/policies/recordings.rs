//! What step loops are asked, kept in files: where they lie and what they are
//! called. Only names come from outside, never paths.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use quern_policy_tools::record::{Limits, Recording, StartError, Tap};

/// Longest name of a file.
const MAX_NAME: usize = 100;

/// See the module's text. Cheap to clone, and all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Recordings {
    tap: Tap,
    folder: Option<PathBuf>,
    limits: Limits,
}

/// Why nothing is recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operator did not say where to.
    #[error("recording.folder is not set, so there is no place for recordings")]
    NoFolder,
    /// The folder cannot be made.
    #[error("recording.folder: {} cannot be made: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name that is more, or less, than a name.
    #[error(
        "a name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, `-`, `_` and `.`, and begins with none of the last"
    )]
    Name,
    /// Something is recorded already, or the file cannot be created.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Recordings {
    /// Keeps files of at most `max_bytes` in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`RecordError::Folder`].
    pub fn in_folder(folder: &Path, max_bytes: u64) -> Result<Recordings, RecordError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| RecordError::Folder { folder: folder.to_owned(), source })?;
        let limits = Limits { max_bytes, ..Limits::default() };
        Ok(Recordings { tap: Tap::default(), folder: Some(folder.to_owned()), limits })
    }

    /// Begins to record under this name, or under one of the moment, until
    /// [`Recordings::stop`], `max_steps` or the largest size. Blocks while the
    /// file is created.
    ///
    /// # Errors
    /// [`RecordError`]; nothing changed.
    pub fn start(&self, name: Option<&str>, max_steps: Option<u64>) -> Result<Recording, RecordError> {
        let folder = self.folder.as_ref().ok_or(RecordError::NoFolder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = name.map_or_else(|| format!("steps-{now}.rec"), str::to_owned);
        if !is_name(&name) {
            return Err(RecordError::Name);
        }
        let recording = self.tap.start(&folder.join(name), max_steps, self.limits)?;
        tracing::info!(path = %recording.path.display(), max_steps, "recording steps");
        Ok(recording)
    }

    /// Ends the recording that runs. False if none does.
    #[must_use]
    pub fn stop(&self) -> bool {
        self.tap.stop()
    }

    /// What is recorded, or was last.
    #[must_use]
    pub fn status(&self) -> Option<Recording> {
        self.tap.status()
    }

    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_no_paths() {
        let folder = tempfile::tempdir().unwrap();
        let recordings = Recordings::in_folder(&folder.path().join("new"), 1 << 20).unwrap();
        for name in ["", ".", "..", "../x", "/etc/x", "a/b", ".hidden", "a b", "ä", &"a".repeat(101)] {
            assert!(matches!(recordings.start(Some(name), None), Err(RecordError::Name)), "{name}");
        }
        let recording = recordings.start(Some("a-b_c.rec"), None).unwrap();
        assert_eq!(recording.path, folder.path().join("new/a-b_c.rec"));
        assert!(matches!(recordings.start(None, None), Err(RecordError::Start(StartError::Running(_)))));
        assert!(recordings.stop() && !recordings.stop());
        assert!(matches!(Recordings::default().start(None, None), Err(RecordError::NoFolder)));
    }
}
