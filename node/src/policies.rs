//! Policies at work: the places that the configuration names, and what the node
//! asks of them.
//!
//! A place may have any hooks. Where several have the same one, they are asked
//! in the order of the configuration, and the first that has an opinion decides;
//! the node's own way is the last. This folder must not know HTTP, nor how a
//! policy is run: that is `quern_extensions`.

mod chain;
mod desk;
mod learning;
pub mod recordings;
mod tuning;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use quern_extensions::watch::Watch;
use quern_extensions::{
    AdmissionRequest, Decision, EngineError, EngineSettings, Hook, LoadError, NodeLoad, PolicyEngine,
    Replicas, Settings, Slot, Source, StepLimits, Target, Window,
};
use quern_scheduler::Completion;
use quern_scheduler::plan::Planner;

use desk::{Desk, Question};
use recordings::Recordings;

pub use tuning::{keep_tuning, node_load};

/// One place, as it is configured.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name, limits and trust.
    pub settings: Settings,
    /// What serves there from the start.
    pub file: Option<PathBuf>,
    /// Load the file again when it changes.
    pub watch: bool,
}

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// The sandbox cannot be set up on this machine.
    #[error("policies: {0}")]
    Engine(#[from] EngineError),
    /// The system gives no thread: for watching a file, asking on admission, or
    /// telling who left.
    #[error("policies: no thread: {0}")]
    Thread(std::io::Error),
    /// A configured policy cannot serve.
    #[error("policy `{name}`: {file}: {source}")]
    Load {
        /// Its place.
        name: String,
        /// Its file.
        file: PathBuf,
        /// Why.
        source: Box<LoadError>,
    },
}

/// All places. Cheap to clone.
#[derive(Clone)]
pub struct Policies {
    places: Arc<[Slot]>,
    desk: Desk,
    reports: SyncSender<Completion>,
    recordings: Recordings,
    /// Kept, because dropping one ends it.
    _watches: Arc<[Watch]>,
}

impl Policies {
    /// Loads what the configuration names, with room for so many step loops. Blocks
    /// while it is compiled.
    ///
    /// # Errors
    /// [`PoliciesError`] for the first that cannot serve.
    pub fn start(places: &[Place], max_step_loops: u32) -> Result<Policies, PoliciesError> {
        let defaults = EngineSettings::default();
        let wanted = instances(places.len(), max_step_loops);
        let settings = EngineSettings { max_instances: wanted.max(defaults.max_instances), ..defaults };
        Policies::start_on(&settings, places)
    }

    /// As [`Policies::start`], on an engine set up like this.
    ///
    /// # Errors
    /// As for [`Policies::start`].
    pub fn start_on(engine: &EngineSettings, places: &[Place]) -> Result<Policies, PoliciesError> {
        let engine = PolicyEngine::new(engine)?;
        let (mut slots, mut watches) = (Vec::new(), Vec::new());
        for place in places {
            let slot = Slot::new(&engine, place.settings.clone());
            if let Some(file) = &place.file {
                let loaded =
                    slot.load(&Source::File(file.clone())).map_err(|source| PoliciesError::Load {
                        name: place.settings.name.clone(),
                        file: file.clone(),
                        source: Box::new(source),
                    })?;
                tracing::info!(
                    policy = place.settings.name,
                    name = loaded.name,
                    version = loaded.version,
                    hooks = ?loaded.hooks,
                    digest = loaded.digest,
                    "policy loaded"
                );
                if place.watch {
                    watches.push(Watch::start(&slot, file).map_err(PoliciesError::Thread)?);
                }
            }
            slots.push(slot);
        }
        let places: Arc<[Slot]> = slots.into();
        let desk = Desk::start(Arc::clone(&places)).map_err(PoliciesError::Thread)?;
        let reports = learning::start(Arc::clone(&places)).map_err(PoliciesError::Thread)?;
        let recordings = Recordings::default();
        Ok(Policies { places, desk, reports, recordings, _watches: watches.into() })
    }

    /// Keeps recordings as the operator wants them.
    #[must_use]
    pub fn recording(self, recordings: Recordings) -> Policies {
        Policies { recordings, ..self }
    }

    /// What is recorded, and where to.
    #[must_use]
    pub fn recordings(&self) -> &Recordings {
        &self.recordings
    }

    /// Where a step loop tells of those who left, for policies that learn.
    #[must_use]
    pub fn reports(&self) -> SyncSender<Completion> {
        self.reports.clone()
    }

    /// The places, in the order in which they are asked.
    #[must_use]
    pub fn places(&self) -> &[Slot] {
        &self.places
    }

    /// The place of that name.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<&Slot> {
        self.places.iter().find(|slot| slot.name() == name)
    }

    /// A planner for one step loop. Blocks while instances are made.
    #[must_use]
    pub fn planner(&self) -> Box<dyn Planner> {
        let chain = chain::Chain::new(self.places.iter().map(Slot::planner).collect());
        Box::new(self.recordings.tap().planner(chain))
    }

    /// Whether anybody decides on admission now.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.places.iter().any(|slot| slot.serves(Hook::Admission))
    }

    /// Whether to serve a request; `None` is yes, as it is. An answer that `check`
    /// finds wrong counts as the policy's fault. Whoever asks waits, and no thread
    /// that serves does.
    pub async fn decide(
        &self,
        request: AdmissionRequest,
        load: NodeLoad,
        check: impl Fn(&Decision) -> Result<(), String> + Send + 'static,
    ) -> Option<Decision> {
        if !self.admits() {
            return None;
        }
        self.desk.ask(Question::new(request, load, Box::new(check))).await
    }

    /// Whether anybody decides on workers now.
    #[must_use]
    pub fn scales(&self) -> bool {
        self.places.iter().any(|slot| slot.serves(Hook::Autoscaler))
    }

    /// How many workers there should be, and the place that says so; `None`
    /// leaves it to the node.
    #[must_use]
    pub fn evaluate(&self, window: &Window, replicas: Replicas) -> Option<(String, Target)> {
        let asked = self.places.iter().filter(|slot| slot.serves(Hook::Autoscaler));
        let mut answers =
            asked.filter_map(|slot| Some((slot.name().to_owned(), slot.evaluate(window, replicas)?)));
        answers.next()
    }

    /// How large steps may be; `None` leaves it.
    #[must_use]
    pub fn tune(&self, load: &NodeLoad) -> Option<StepLimits> {
        self.places.iter().filter(|slot| slot.serves(Hook::Batcher)).find_map(|slot| slot.tune(load))
    }

    /// Which versions would be asked how large steps may be.
    fn tuners(&self) -> Vec<(usize, Option<u64>)> {
        let tuners = self.places.iter().enumerate().filter(|(_, slot)| slot.serves(Hook::Batcher));
        tuners.map(|(idx, slot)| (idx, slot.version())).collect()
    }
}

/// Instances that may live at once: for each place four of hooks that are the
/// node's, one a step loop, with one that ends beside one that starts, each with a
/// spare, and twice that while a new version takes over; and two of a candidate.
fn instances(num_places: usize, max_step_loops: u32) -> u32 {
    /// Address space has an end: at some 6 GiB each, this is a few TiB.
    const MOST: u32 = 512;
    let of_place = max_step_loops.saturating_add(1 + 4).saturating_mul(2 * 2).saturating_add(2);
    u32::try_from(num_places).unwrap_or(MOST).saturating_mul(of_place).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_cannot_load_is_named_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("broken.wasm");
        std::fs::write(&file, b"\0asm broken").unwrap();
        let place = Place { settings: Settings::named("first"), file: Some(file.clone()), watch: false };
        let told = Policies::start(&[place], 1).err().expect("it is no policy").to_string();
        assert!(told.contains("`first`") && told.contains(&*file.to_string_lossy()), "{told}");
    }

    #[tokio::test]
    async fn an_empty_place_has_no_opinion() {
        let place = Place { settings: Settings::named("main"), file: None, watch: true };
        let policies = Policies::start(&[place], 1).unwrap();
        assert!(!policies.admits());
        let (request, load) = (AdmissionRequest::default(), NodeLoad::default());
        assert!(policies.decide(request, load, |_| Ok(())).await.is_none());
        assert!(policies.tune(&NodeLoad::default()).is_none());
        assert!(policies.planner().plan(&quern_scheduler::plan::Snapshot::default()).is_none());
        assert!(policies.place("main").is_some() && policies.place("other").is_none());
    }
}
