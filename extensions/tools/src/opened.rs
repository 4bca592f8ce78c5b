//! A policy, loaded as the node would load it, but for deadlines: on a busy
//! machine a tool must not take a delay of its own for the policy's fault.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use quern_extensions::status::{Loaded, VersionStatus};
use quern_extensions::{
    Cache, Deadlines, EngineSettings, PolicyEngine, Profile, Quarantine, Settings, Slot, Source, Trial,
};

use crate::Usage;

/// How a policy is loaded.
#[derive(Debug, Clone, Default, Args)]
pub struct OpenArgs {
    /// A setting of the policy; can be given several times.
    #[arg(long = "config", value_name = "KEY=VALUE")]
    pub config: Vec<String>,
    /// Allow what a language's run time takes: 64 MiB and dozens of core modules.
    #[arg(long)]
    pub scripted: bool,
}

impl OpenArgs {
    fn settings(&self, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let pair = |setting: &String| match setting.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Usage(format!("{name}: --config wants KEY=VALUE, not `{setting}`"))),
        };
        Ok(self.config.iter().map(pair).collect::<Result<_, _>>()?)
    }
}

/// Time that a call may take before it counts as endless.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);

/// A policy that serves in a place of its own.
pub(crate) struct Opened {
    pub(crate) slot: Slot,
    pub(crate) loaded: Loaded,
}

impl Opened {
    /// Everything that happened to it.
    pub(crate) fn status(&self) -> anyhow::Result<VersionStatus> {
        self.slot.status().serving.context("the policy no longer serves")
    }
}

/// An engine for tools. Nothing is kept on disk: a tool runs a file once.
pub(crate) fn engine(count_instructions: bool) -> anyhow::Result<PolicyEngine> {
    let settings = EngineSettings { cache: Cache::Off, count_instructions, ..EngineSettings::default() };
    Ok(PolicyEngine::new(&settings)?)
}

/// Loads a file, or says what is wrong with it.
pub(crate) fn open(engine: &PolicyEngine, path: &Path, args: &OpenArgs) -> anyhow::Result<Opened> {
    let name = path.file_stem().map_or("policy".into(), |stem| stem.to_string_lossy().into_owned());
    let settings = Settings {
        profile: if args.scripted { Profile::Scripted } else { Profile::Native },
        deadlines: Deadlines {
            scheduler: PATIENCE,
            batcher: PATIENCE,
            admission: PATIENCE,
            autoscaler: PATIENCE,
            feedback: PATIENCE,
            init: Duration::from_secs(5),
            save: PATIENCE,
        },
        // Every fault is to be seen, and none ends the run.
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        trial: Trial { calls: 0, forgiven: 0 },
        config: args.settings(&name)?,
        ..Settings::named(&name)
    };
    let slot = Slot::new(engine, settings);
    let loaded = slot.load(&Source::File(path.to_owned()));
    let loaded = loaded.with_context(|| format!("{} is no policy", path.display()))?;
    Ok(Opened { slot, loaded })
}
