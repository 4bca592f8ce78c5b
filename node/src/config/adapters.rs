//! `[adapters]` and `[[adapter]]`: LoRA adapters, where they come from and what they may take.

use std::path::{Path, PathBuf};

use quern_adapters::FileType;
use quern_scheduler::{AdapterFiles, SchedulerConfig};
use serde::{Deserialize, Serialize};

use super::{Bytes, Span};
use crate::adapters::{Named, Settings, Watched};

/// `[adapters]`, see [`crate::adapters::Settings`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapters {
    /// Each folder and each GGUF file in it is an adapter, named by its stem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// How often files are looked at; `0ms` is once, at the start.
    pub watch_interval: Span,
    /// Names at once.
    pub max_registered: usize,
    /// Adapters that an engine holds at once.
    pub max_resident: usize,
    /// Bytes that they may take there together.
    pub device_bytes: Bytes,
    /// Bytes of copies that are kept in memory, beside those that requests are served with.
    pub host_bytes: Bytes,
    /// Adapters that are read from the disk at once.
    pub max_reading: usize,
    /// How matrices are stored in memory and on engines.
    pub format: AdapterFormat,
    /// Steps that one adapter is served in a row while others have work.
    pub quantum: u32,
    /// How long who unloads one waits for the requests that it serves.
    pub drain_timeout: Span,
    /// Names with metrics of their own; the others share one.
    pub max_series: usize,
}

/// How matrices are stored in memory and on engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterFormat {
    /// 32 bits a number.
    F32,
    /// 16 bits a number.
    F16,
    /// 16 bits a number, of which more are for its size.
    Bf16,
}

/// `[[adapter]]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// What requests call it.
    pub name: String,
    /// A PEFT folder or a GGUF LoRA.
    pub path: PathBuf,
    /// Keep it in memory and on engines before others.
    #[serde(default)]
    pub pin: bool,
}

impl Default for Adapters {
    fn default() -> Self {
        let (s, scheduler) = (Settings::default(), SchedulerConfig::default());
        Adapters {
            folder: None,
            watch_interval: Span(std::time::Duration::from_secs(1)),
            max_registered: s.max_registered,
            max_resident: s.max_resident,
            device_bytes: Bytes(s.max_resident_bytes as usize),
            host_bytes: Bytes(s.max_memory_bytes as usize),
            max_reading: s.max_reading,
            format: AdapterFormat::F16,
            quantum: scheduler.adapter_quantum,
            drain_timeout: Span(s.drain_timeout),
            max_series: s.max_series,
        }
    }
}

impl Adapters {
    /// As the registry takes it.
    #[must_use]
    pub fn to_settings(&self) -> Settings {
        Settings {
            max_registered: self.max_registered,
            max_reading: self.max_reading,
            max_memory_bytes: self.host_bytes.0 as u64,
            max_resident: self.max_resident,
            max_resident_bytes: self.device_bytes.0 as u64,
            max_series: self.max_series,
            drain_timeout: self.drain_timeout.0,
        }
    }

    /// What schedulers need to know, on top of their own section.
    #[must_use]
    pub fn to_scheduler(&self, own: SchedulerConfig, files: AdapterFiles) -> SchedulerConfig {
        SchedulerConfig {
            adapters: files,
            max_adapters: self.max_resident,
            max_adapter_bytes: self.device_bytes.0 as u64,
            adapter_quantum: self.quantum,
            ..own
        }
    }

    /// As the registry takes it.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        match self.format {
            AdapterFormat::F32 => FileType::F32,
            AdapterFormat::F16 => FileType::F16,
            AdapterFormat::Bf16 => FileType::Bf16,
        }
    }

    /// What is looked at, beside the folder.
    #[must_use]
    pub fn watched(&self, named: &[Adapter]) -> Watched {
        Watched { folder: self.folder.clone(), named: named.iter().map(Adapter::to_named).collect() }
    }

    /// What is wrong with it, each with its key.
    pub(super) fn check(&self) -> Vec<(&'static str, &'static str)> {
        let checks = [
            (self.max_registered == 0, "adapters.max_registered"),
            (self.max_resident == 0, "adapters.max_resident"),
            (self.max_reading == 0, "adapters.max_reading"),
            (self.quantum == 0, "adapters.quantum"),
        ];
        checks
            .into_iter()
            .filter(|(wrong, _)| *wrong)
            .map(|(_, key)| (key, "it must be at least 1"))
            .collect()
    }
}

impl Adapter {
    /// The adapter that `--adapter NAME=PATH` stands for.
    #[must_use]
    pub fn of(name: &str, path: &Path) -> Adapter {
        Adapter { name: name.to_owned(), path: path.to_owned(), pin: false }
    }

    /// As the registry takes it.
    #[must_use]
    pub fn to_named(&self) -> Named {
        Named { name: self.name.clone(), path: self.path.clone(), pin: self.pin }
    }
}
