//! What workers are made of: engines on weights that are loaded once, planners
//! and drafters.
//!
//! Weights live as long as a worker that computes with them. The first worker
//! after the last has gone reads them again.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{Capabilities, Engine};
use quern_llama::{LlamaConfig, LlamaEngine, LlamaModel};
use quern_scheduler::draft::{Drafter, ModelDrafter, ModelDrafterConfig, PromptLookup};
use quern_wgsl::{WgslConfig, WgslEngine, WgslModel};

use super::App;
use super::load::LoadError;
use crate::config::{EngineKind, Fake, Speculation};
use crate::policies::Policies;
use crate::workers::Parts;

/// A model in memory, as an engine computes with it.
pub(super) trait Loadable: Sized {
    /// What it is loaded by.
    type Config;

    /// Reads a file. Blocks; `go_on` ends it with `false`.
    fn load(
        path: &Path,
        config: &Self::Config,
        go_on: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self, LoadError>;

    /// Whether engines can still be made on it.
    fn is_usable(&self) -> bool {
        true
    }
}

impl Loadable for LlamaModel {
    type Config = LlamaConfig;

    fn load(
        path: &Path,
        config: &LlamaConfig,
        go_on: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self, LoadError> {
        Ok(LlamaModel::load(path, config, go_on)?)
    }
}

impl Loadable for WgslModel {
    type Config = WgslConfig;

    fn load(path: &Path, config: &WgslConfig, go_on: &mut dyn FnMut(f32) -> bool) -> Result<Self, LoadError> {
        Ok(WgslModel::load(path, config, go_on)?)
    }

    fn is_usable(&self) -> bool {
        !self.is_lost()
    }
}

/// A model file that is read when somebody needs it.
pub(super) struct Weights<M: Loadable> {
    path: PathBuf,
    config: M::Config,
    /// Locked while it is read, so that it is read once.
    loaded: Mutex<Weak<M>>,
}

impl<M: Loadable> Weights<M> {
    fn new(path: PathBuf, config: M::Config) -> Weights<M> {
        Weights { path, config, loaded: Mutex::default() }
    }

    /// The weights, read if nobody has them, or only such as went with their device.
    fn get(&self, cancelled: &AtomicBool) -> Result<Arc<M>, LoadError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = loaded.upgrade().filter(|model| model.is_usable()) {
            return Ok(model);
        }
        let mut go_on = |_part: f32| !cancelled.load(Ordering::Relaxed);
        let model = Arc::new(M::load(&self.path, &self.config, &mut go_on)?);
        *loaded = Arc::downgrade(&model);
        Ok(model)
    }
}

impl Weights<LlamaModel> {
    fn engine(&self, cancelled: &AtomicBool) -> Result<LlamaEngine, LoadError> {
        let engine = LlamaEngine::on(&self.get(cancelled)?)?;
        let info = engine.model_info();
        tracing::info!(
            path = %self.path.display(),
            model = info.description,
            devices = ?info.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(),
            size_bytes = info.size_bytes,
            widened_bytes = info.widened_bytes,
            kv_bytes = info.kv_bytes,
            compute_bytes = info.compute_bytes,
            threads = info.threads,
            threads_prefill = info.threads_prefill,
            "engine loaded"
        );
        Ok(engine)
    }
}

/// What engines compute with, by the kind that is configured.
pub(super) enum Source {
    /// Weights in llama.cpp.
    Llama(Weights<LlamaModel>),
    /// Weights on a device.
    Wgsl(Weights<WgslModel>),
    /// Nothing.
    Fake(Fake),
}

impl Source {
    /// Reads the weights if nobody has them. They stay as long as what this gives.
    pub(super) fn get(
        &self,
        cancelled: &AtomicBool,
    ) -> Result<Option<Arc<dyn Any + Send + Sync>>, LoadError> {
        Ok(match self {
            Source::Llama(weights) => Some(weights.get(cancelled)?),
            Source::Wgsl(weights) => Some(weights.get(cancelled)?),
            Source::Fake(_) => None,
        })
    }

    fn engine(&self, vocab_size: usize, cancelled: &AtomicBool) -> Result<Box<dyn Engine>, LoadError> {
        Ok(match self {
            Source::Llama(weights) => Box::new(weights.engine(cancelled)?),
            Source::Wgsl(weights) => Box::new(WgslEngine::on(&weights.get(cancelled)?)?),
            Source::Fake(fake) => fake_engine(fake, vocab_size),
        })
    }
}

/// Makes parts of workers, whenever one is wanted.
pub(super) struct Engines {
    source: Arc<Source>,
    draft: Option<Weights<LlamaModel>>,
    speculation: Speculation,
    /// Tokens that the tokenizer knows.
    vocab_size: usize,
    policies: Policies,
}

impl Engines {
    /// What the engines of an app compute with.
    pub(super) fn source(app: &App) -> Arc<Source> {
        let (path, engine) = (app.model.path.clone(), &app.config.engine);
        Arc::new(match engine.kind {
            EngineKind::Llama => Source::Llama(Weights::new(path, engine.llama.to_engine())),
            EngineKind::Wgsl => Source::Wgsl(Weights::new(path, engine.wgsl.to_engine())),
            EngineKind::Fake => Source::Fake(engine.fake.clone()),
        })
    }

    pub(super) fn new(app: &App, source: Arc<Source>, vocab_size: usize, policies: Policies) -> Engines {
        let draft = app.draft.as_ref();
        let draft = draft.map(|draft| Weights::new(draft.path.clone(), app.config.engine.llama.to_engine()));
        Engines { source, draft, speculation: app.config.scheduler.speculation, vocab_size, policies }
    }

    /// All parts of another worker. Blocks; `cancelled` ends it early.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(super) fn parts(&self, cancelled: &AtomicBool) -> Result<Parts, LoadError> {
        let engine = self.source.engine(self.vocab_size, cancelled)?;
        let model = engine.capabilities().vocab_size;
        if model != self.vocab_size {
            return Err(LoadError::Vocabulary { model, tokenizer: self.vocab_size });
        }
        let drafter = self.drafter(cancelled)?;
        let (planner, reports) = (Some(self.policies.planner()), Some(self.policies.reports()));
        Ok(Parts { engine, planner, drafter, reports })
    }

    /// Where guesses come from: nowhere, the sequence itself, or a second model.
    fn drafter(&self, cancelled: &AtomicBool) -> Result<Option<Box<dyn Drafter>>, LoadError> {
        match (self.speculation, &self.draft) {
            (Speculation::Lookup, _) => Ok(Some(Box::new(PromptLookup::default()))),
            (Speculation::Draft, Some(draft)) => {
                let engine = Box::new(draft.engine(cancelled)?);
                let drafter = ModelDrafter::new(engine, self.vocab_size, ModelDrafterConfig::default())?;
                Ok(Some(Box::new(drafter)))
            }
            // A configuration without its draft model was refused when it was read.
            (Speculation::Off | Speculation::Draft, _) => Ok(None),
        }
    }
}

fn fake_engine(fake: &Fake, vocab_size: usize) -> Box<dyn Engine> {
    let defaults = FakeConfig::default();
    let capabilities = Capabilities {
        vocab_size,
        kv_capacity: fake.kv_capacity,
        max_sequences: fake.max_sequences,
        max_sequence_len: fake.max_sequence_len.min(fake.kv_capacity),
        max_rows: fake.max_rows,
        max_outputs: fake.max_sequences.min(fake.max_rows),
        ..defaults.capabilities
    };
    Box::new(FakeEngine::new(FakeConfig { capabilities, step_time: fake.step_time.0, ..defaults }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights on a device that a test can take away.
    #[derive(Default)]
    struct Mortal(AtomicBool);

    impl Loadable for Mortal {
        type Config = ();

        fn load(_: &Path, _: &(), _: &mut dyn FnMut(f32) -> bool) -> Result<Self, LoadError> {
            Ok(Mortal::default())
        }

        fn is_usable(&self) -> bool {
            !self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn weights_are_shared_until_they_are_lost() {
        let weights: Weights<Mortal> = Weights::new(PathBuf::new(), ());
        let get = || weights.get(&AtomicBool::new(false)).expect("nothing can fail");
        let (first, second) = (get(), get());
        assert!(Arc::ptr_eq(&first, &second));
        first.0.store(true, Ordering::Relaxed);
        // Whoever holds the lost ones may hold them on: they help nobody.
        let third = get();
        assert!(!Arc::ptr_eq(&first, &third) && third.is_usable());
        assert!(Arc::ptr_eq(&third, &get()));
    }
}
