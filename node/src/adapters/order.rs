//! What a registry is told and what it tells, as plain values.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Version;

/// Bounds of a registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Names at once.
    pub max_registered: usize,
    /// Adapters that are read from the disk at once: to be checked, and beside these
    /// as many to be used.
    pub max_reading: usize,
    /// Bytes of copies that are kept in memory, beside those that requests are served with.
    pub max_memory_bytes: u64,
    /// Adapters that an engine holds at once, as its scheduler was told.
    pub max_resident: usize,
    /// Bytes that they may take there together.
    pub max_resident_bytes: u64,
    /// Names that have time series of their own; the others share one.
    pub max_series: usize,
    /// How long who unloads one waits for those that it serves.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_registered: 1024,
            max_reading: 2,
            max_memory_bytes: 512 << 20,
            max_resident: 8,
            max_resident_bytes: 1 << 30,
            max_series: 64,
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// An adapter that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What requests call it.
    pub name: String,
    /// A PEFT folder or a GGUF LoRA.
    pub path: PathBuf,
    /// Keep it on engines and in memory before others.
    pub pin: bool,
}

/// Where a name came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The configuration.
    Configuration,
    /// The watched folder.
    Folder,
    /// An operator.
    Operator,
}

/// What is to be loaded.
#[derive(Debug, Clone)]
pub struct Order {
    /// What requests will call it.
    pub name: String,
    /// A PEFT folder or a GGUF LoRA.
    pub path: PathBuf,
    /// Replace what has the name, where something has.
    pub in_place: bool,
    /// The generation that must have the name; 0 is none.
    pub expected_generation: Option<u64>,
    /// Keep it before others; as before where unset.
    pub pin: Option<bool>,
    /// Who wants it.
    pub origin: Origin,
}

/// What is told of a name.
#[derive(Debug, Clone)]
pub struct Status {
    /// What serves.
    pub version: Arc<Version>,
    /// Who wanted it first.
    pub origin: Origin,
    /// Why a later load under this name came to nothing.
    pub last_error: Option<String>,
}

/// What the workers of a model have to do with, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InWork {
    /// Adapters of sequences that run.
    pub running: Vec<String>,
    /// Adapters of sequences that wait.
    pub waiting: Vec<String>,
    /// Adapters on engines, counted on each.
    pub num_resident: usize,
}
