//! Why an adapter is not served.

use std::path::PathBuf;

use quern_adapters::{AdapterError, Mismatch};

/// Why an adapter is not served, or not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that cannot stand in a URL or a label.
    #[error("{0:?} cannot be an adapter's name: up to 128 bytes of letters, digits and -_.:/@+ can")]
    BadName(String),
    /// The base model has this name.
    #[error("{0} is what the base model is called")]
    IsTheBase(String),
    /// Nothing lies there.
    #[error("{}: there is no such file or folder", .0.display())]
    NotFound(PathBuf),
    /// What lies there is no adapter, or a broken one.
    #[error(transparent)]
    Unsound(#[from] AdapterError),
    /// It is for another model.
    #[error("{}: this adapter is not for the model that is served: {}", path.display(), lines(reasons))]
    OtherBase {
        /// The folder or file.
        path: PathBuf,
        /// All that does not fit.
        reasons: Vec<Mismatch>,
    },
    /// It changed while it was read.
    #[error("{}: it changes while it is read; load it when it is complete", .0.display())]
    Changing(PathBuf),
    /// The name is taken, and was not to be replaced.
    #[error("the adapter {0} is loaded already; set load_inplace to replace it")]
    Exists(String),
    /// Nothing has that name.
    #[error("there is no adapter {0}")]
    Unknown(String),
    /// Somebody else was faster.
    #[error("the adapter {name} is at generation {found}, not {expected}")]
    Generation {
        /// Its name.
        name: String,
        /// The generation that was expected; 0 is none.
        expected: u64,
        /// The one that there is; 0 is none.
        found: u64,
    },
    /// The name is being loaded.
    #[error("the adapter {0} is being changed by somebody else")]
    Busy(String),
    /// As many names as may be.
    #[error("{max} adapters are registered, and no more may be (adapters.max_registered)")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// It alone takes more than all may.
    #[error("it takes {size_bytes} bytes, and all together may take {max_bytes} (adapters.device_bytes)")]
    TooLarge {
        /// What it takes on an engine.
        size_bytes: u64,
        /// What all may take.
        max_bytes: u64,
    },
    /// Pins would leave no room for the others.
    #[error("{max} adapters are or may be pinned: one place of adapters.max_resident is for the others")]
    TooManyPinned {
        /// The bound.
        max: usize,
    },
    /// Its files were good when it was loaded, and are not any more.
    #[error("the adapter {name} cannot be used: {why}")]
    Unusable {
        /// Its name.
        name: String,
        /// What became of its files.
        why: String,
    },
    /// A thread ended early.
    #[error("the adapter could not be read: {0}")]
    Lost(String),
}

fn lines(reasons: &[Mismatch]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
