//! What can go wrong while a model is fetched.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// This machine's own file system said no. Another source would not help.
    #[error("{}", describe_file(.action, .path, .source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Every source failed, each for its own reason.
    #[error("{name} could not be fetched: {}", list(.failures))]
    AllSourcesFailed {
        /// The entry.
        name: String,
        /// Each source, and why it failed.
        failures: Vec<(String, SourceError)>,
    },
    /// A file that was there is not what it should be.
    #[error("{} is damaged: its sha256 is {actual}, and should be {expected}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest that it should have.
        expected: String,
        /// The digest that it has.
        actual: String,
    },
    /// There is no folder to keep models in.
    #[error("no cache folder: set QUERN_CACHE_DIR, or HOME")]
    NoCacheDir,
}

/// Why one source did not give the file.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection, or it broke too often.
    #[error("{0}")]
    Unreachable(String),
    /// It answered, and the answer was no.
    #[error("status {status}{}", hint(*.status))]
    Status {
        /// HTTP's status code.
        status: u16,
    },
    /// It answered in a way that makes no sense.
    #[error("{0}")]
    Protocol(String),
    /// Neither the catalogue nor the source says what the file should be.
    #[error("it states no size and sha256 to check the file against, and the catalogue has none")]
    Unverifiable,
    /// It offers another file than the catalogue's.
    #[error("its file has {what} {actual}, and the catalogue says {expected}")]
    OtherFile {
        /// `size` or `sha256`.
        what: &'static str,
        /// What it offers.
        actual: String,
        /// What the catalogue says.
        expected: String,
    },
    /// All bytes came, and they are the wrong ones.
    #[error("what it sent has sha256 {actual} instead of {expected}")]
    WrongBytes {
        /// The digest that the file should have.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// The package client failed.
    #[error("{0}")]
    Packages(String),
}

impl PullError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PullError + use<> {
        let path = path.to_owned();
        move |source| PullError::File { action, path, source }
    }
}

/// One attempt's failure: a source's, after which the next one is tried, or this
/// machine's, which ends the pull.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Local(#[from] PullError),
}

fn describe_file(action: &str, path: &Path, source: &io::Error) -> String {
    let path = path.display();
    match source.kind() {
        io::ErrorKind::StorageFull => format!("cannot {action} {path}: the disk is full"),
        io::ErrorKind::PermissionDenied => format!("cannot {action} {path}: permission denied"),
        _ => format!("cannot {action} {path}: {source}"),
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (set HF_TOKEN if the repository needs it)",
        404 => " (no such file)",
        _ => "",
    }
}

fn list(failures: &[(String, SourceError)]) -> String {
    let lines: Vec<String> = failures.iter().map(|(from, why)| format!("{from}: {why}")).collect();
    lines.join("; ")
}
