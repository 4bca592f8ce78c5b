//! What an operator decides about a policy: limits, deadlines, trust.
//!
//! Plain values with defaults that suit a policy compiled from Rust or C. How
//! they are written in a file is the node's matter.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::verdict::{Hook, HookSet};

/// How the engine is set up; the same for all policies of a process.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Where compiled code is kept.
    pub cache: Cache,
    /// Instances that may live at once, spares and candidates included. Each
    /// reserves about 6 GiB of address space, not memory.
    pub max_instances: u32,
    /// Count the instructions of each call, for tools: it makes guests slower,
    /// and their code is compiled and kept apart.
    pub count_instructions: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        EngineSettings { cache: Cache::User, max_instances: 32, count_instructions: false }
    }
}

/// Where compiled code is kept. It is native code, so the folder has to be the
/// user's own and closed to everybody else; if it is not, nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// `policies` in the user's cache folder of the node.
    User,
    /// This folder.
    At(PathBuf),
    /// Nowhere: compiled anew at each load.
    Off,
}

/// How much a policy may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Compiled from Rust, C and the like: 8 MiB, few core modules.
    #[default]
    Native,
    /// A language's run time inside, such as JavaScript or Python: 64 MiB and
    /// dozens of core modules. For the hooks that are called seldom.
    Scripted,
}

/// What a profile comes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    pub(crate) memory_bytes: usize,
    pub(crate) table_elements: usize,
    pub(crate) core_instances: usize,
    pub(crate) tables: usize,
    pub(crate) memories: usize,
    /// Bytes that one call may hand over to the host, in all its calls.
    pub(crate) hostcall_bytes: usize,
    pub(crate) handles: usize,
    /// The longest file.
    pub(crate) file_bytes: u64,
}

impl Profile {
    pub(crate) const fn caps(self) -> Caps {
        match self {
            Profile::Native => Caps {
                memory_bytes: 8 << 20,
                table_elements: 10_000,
                core_instances: 8,
                tables: 8,
                memories: 1,
                hostcall_bytes: 256 << 10,
                handles: 256,
                file_bytes: 8 << 20,
            },
            Profile::Scripted => Caps {
                memory_bytes: 64 << 20,
                table_elements: 100_000,
                core_instances: 48,
                tables: 32,
                memories: 4,
                hostcall_bytes: 1 << 20,
                handles: 1024,
                file_bytes: 64 << 20,
            },
        }
    }
}

/// How long each call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `plan-step`.
    pub scheduler: Duration,
    /// `tune`.
    pub batcher: Duration,
    /// `decide`.
    pub admission: Duration,
    /// `evaluate`.
    pub autoscaler: Duration,
    /// `observe`; a step that begins meanwhile waits for it.
    pub feedback: Duration,
    /// Instantiation and `init`, off the serving threads.
    pub init: Duration,
    /// `save`; a step that begins meanwhile waits for it.
    pub save: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            scheduler: Duration::from_micros(500),
            batcher: Duration::from_millis(1),
            admission: Duration::from_millis(1),
            autoscaler: Duration::from_millis(20),
            feedback: Duration::from_millis(1),
            init: Duration::from_millis(500),
            save: Duration::from_millis(1),
        }
    }
}

impl Deadlines {
    /// The deadline of one hook.
    #[must_use]
    pub fn of(&self, hook: Hook) -> Duration {
        match hook {
            Hook::Scheduler => self.scheduler,
            Hook::Batcher => self.batcher,
            Hook::Admission => self.admission,
            Hook::Autoscaler => self.autoscaler,
            Hook::Feedback => self.feedback,
        }
    }
}

/// When a policy that fails is no longer asked, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantine {
    /// This many faults among the last `window_calls` calls and within the last
    /// `window` are too many.
    pub max_faults: u32,
    /// See `max_faults`.
    pub window_calls: u64,
    /// See `max_faults`.
    pub window: Duration,
    /// How long it is not asked, the first time; doubled each time that it
    /// fails soon again.
    pub back_off: Duration,
    /// The longest time not to ask.
    pub max_back_off: Duration,
    /// Calls whose answers are thrown away, all of which have to go well,
    /// before it decides again.
    pub rehearsals: u32,
}

impl Default for Quarantine {
    fn default() -> Self {
        Quarantine {
            max_faults: 5,
            window_calls: 1000,
            window: Duration::from_secs(300),
            back_off: Duration::from_secs(10),
            max_back_off: Duration::from_secs(3600),
            rehearsals: 20,
        }
    }
}

/// The time in which a new version can still be rolled back by its faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Calls that it takes; 0 is no trial.
    pub calls: u32,
    /// Faults that are forgiven. A machine under load may delay one call.
    pub forgiven: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Trial { calls: 100, forgiven: 2 }
    }
}

/// Which files are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The file's SHA-256, if only this one may load.
    pub sha256: Option<[u8; 32]>,
    /// Public keys, Ed25519, of which one must have signed the file.
    pub public_keys: Vec<[u8; 32]>,
    /// Refuse files without a signature. A signature that is there is checked
    /// whenever there are keys.
    pub require_signature: bool,
}

/// Everything about one place where a policy serves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The place's name: in logs, metrics and for operators.
    pub name: String,
    /// Hooks that a policy may have here; others that it has are not called.
    pub hooks: HookSet,
    /// How much it may take.
    pub profile: Profile,
    /// How long its calls may take.
    pub deadlines: Deadlines,
    /// When it is no longer asked.
    pub quarantine: Quarantine,
    /// How a new version proves itself.
    pub trial: Trial,
    /// Which files are believed.
    pub trust: Trust,
    /// What `config.get` answers.
    pub config: BTreeMap<String, String>,
}

impl Settings {
    /// The defaults, under this name.
    #[must_use]
    pub fn named(name: &str) -> Settings {
        Settings {
            name: name.to_owned(),
            hooks: HookSet::ALL,
            profile: Profile::default(),
            deadlines: Deadlines::default(),
            quarantine: Quarantine::default(),
            trial: Trial::default(),
            trust: Trust::default(),
            config: BTreeMap::new(),
        }
    }
}
