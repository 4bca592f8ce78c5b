//! What workers are made of: engines on weights that are loaded once, planners
//! and drafters.
//!
//! Weights live as long as a worker that computes with them. The first worker
//! after the last has gone reads them again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{Capabilities, Engine};
use quern_llama::{LlamaConfig, LlamaEngine, LlamaModel};
use quern_scheduler::draft::{Drafter, ModelDrafter, ModelDrafterConfig, PromptLookup};

use super::App;
use super::load::LoadError;
use crate::config::{EngineKind, Fake, Speculation};
use crate::policies::Policies;
use crate::workers::Parts;

/// A model file that llama.cpp reads when somebody needs it.
pub(super) struct Weights {
    path: PathBuf,
    config: LlamaConfig,
    /// Locked while it is read, so that it is read once.
    loaded: Mutex<Weak<LlamaModel>>,
}

impl Weights {
    fn new(path: PathBuf, config: LlamaConfig) -> Weights {
        Weights { path, config, loaded: Mutex::default() }
    }

    /// The weights, read if nobody has them.
    pub(super) fn get(&self, cancelled: &AtomicBool) -> Result<Arc<LlamaModel>, LoadError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = loaded.upgrade() {
            return Ok(model);
        }
        let mut go_on = |_part: f32| !cancelled.load(Ordering::Relaxed);
        let model = Arc::new(LlamaModel::load(&self.path, &self.config, &mut go_on)?);
        *loaded = Arc::downgrade(&model);
        Ok(model)
    }

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

/// Makes parts of workers, whenever one is wanted.
pub(super) struct Engines {
    kind: EngineKind,
    fake: Fake,
    weights: Arc<Weights>,
    draft: Option<Weights>,
    speculation: Speculation,
    /// Tokens that the tokenizer knows.
    vocab_size: usize,
    policies: Policies,
}

impl Engines {
    /// The weights of the model that an app serves.
    pub(super) fn weights(app: &App) -> Arc<Weights> {
        Arc::new(Weights::new(app.model.path.clone(), app.config.engine.llama.to_engine()))
    }

    pub(super) fn new(app: &App, weights: Arc<Weights>, vocab_size: usize, policies: Policies) -> Engines {
        let draft = app.draft.as_ref();
        let draft = draft.map(|draft| Weights::new(draft.path.clone(), app.config.engine.llama.to_engine()));
        Engines {
            kind: app.config.engine.kind,
            fake: app.config.engine.fake.clone(),
            weights,
            draft,
            speculation: app.config.scheduler.speculation,
            vocab_size,
            policies,
        }
    }

    /// All parts of another worker. Blocks; `cancelled` ends it early.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(super) fn parts(&self, cancelled: &AtomicBool) -> Result<Parts, LoadError> {
        let engine: Box<dyn Engine> = match self.kind {
            EngineKind::Fake => fake_engine(&self.fake, self.vocab_size),
            EngineKind::Wgsl => return Err(LoadError::NoSuchEngine),
            EngineKind::Llama => Box::new(self.weights.engine(cancelled)?),
        };
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
