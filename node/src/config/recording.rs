//! `[recording]`: steps as schedulers see them, kept in files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Bytes;

/// `[recording]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recording {
    /// Where files of recorded steps are written; nothing is recorded where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Largest file.
    pub max_bytes: Bytes,
    /// Begin with the first step, without being asked.
    pub from_start: bool,
}

impl Default for Recording {
    fn default() -> Self {
        Recording { folder: None, max_bytes: Bytes(256 << 20), from_start: false }
    }
}

impl Recording {
    /// Whether it is to begin without a place for its file.
    pub(super) fn goes_nowhere(&self) -> bool {
        self.from_start && self.folder.is_none()
    }
}
