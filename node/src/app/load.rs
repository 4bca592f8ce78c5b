//! Loading: the engine with its weights, and beside it the tokenizer, the chat
//! template and the grammar compiler, on threads of their own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::UNIX_EPOCH;

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{Capabilities, Engine};
use quern_gguf::Gguf;
use quern_llama::LlamaEngine;
use quern_scheduler::draft::{Drafter, ModelDrafter, ModelDrafterConfig, PromptLookup, VocabMismatch};
use quern_text::{
    ChatTemplate, ConstraintCompileError, ConstraintFactory, TemplateError, Tokenizer, TokenizerError,
};

use super::App;
use crate::config::{Config, EngineKind, Fake, Speculation};
use crate::policies::recordings::{RecordError, Recordings};
use crate::policies::{Policies, PoliciesError};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// llama.cpp could not load it.
    #[error(transparent)]
    Llama(#[from] quern_llama::LoadError),
    /// Its vocabulary cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No grammar can be compiled for its vocabulary.
    #[error("grammars: {0}")]
    Constraints(#[from] ConstraintCompileError),
    /// Its file has more or fewer tokens than its tokenizer.
    #[error("the model computes logits for {model} tokens, and its tokenizer has {tokenizer}")]
    Vocabulary {
        /// Length of a logits row.
        model: usize,
        /// Tokens that the tokenizer knows.
        tokenizer: usize,
    },
    /// The configuration asks for an engine that this build does not have.
    #[error("this build does not have this engine yet")]
    NoSuchEngine,
    /// The draft model is of another family.
    #[error("scheduler.draft_model: {0}")]
    DraftModel(#[from] VocabMismatch),
    /// A policy cannot serve.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// Steps cannot be recorded as configured.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Everything that a model needs to be served.
pub(super) struct Loaded {
    pub(super) engine: Box<dyn Engine>,
    pub(super) drafter: Option<Box<dyn Drafter>>,
    pub(super) text: Text,
    pub(super) policies: Policies,
    /// When the file was written, as Unix time.
    pub(super) created: u64,
}

/// What lies between text and tokens.
pub(super) struct Text {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<Arc<ChatTemplate>>,
    pub(super) constraints: Arc<ConstraintFactory>,
}

/// Loads everything. Blocks; `cancelled` ends it early.
pub(super) fn load(app: &App, cancelled: &AtomicBool) -> Result<Loaded, LoadError> {
    let (engine, text, policies) = thread::scope(|scope| {
        let text = scope.spawn(|| load_text(&app.config, &app.gguf));
        let policies = scope.spawn(|| load_policies(&app.config));
        let engine = load_engine(app, cancelled);
        let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let policies = policies.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (engine, text, policies)
    });
    // A policy that cannot serve is known long before a model that can.
    let policies = policies?;
    let (engine, text) = (engine?, text?);
    let engine = match engine {
        Some(engine) => engine,
        None => fake_engine(&app.config.engine.fake, text.tokenizer.vocab_size()),
    };
    let (model, tokenizer) = (engine.capabilities().vocab_size, text.tokenizer.vocab_size());
    if model != tokenizer {
        return Err(LoadError::Vocabulary { model, tokenizer });
    }
    let written = app.model.path.metadata().and_then(|meta| meta.modified()).ok();
    let created = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs());
    let drafter = drafter(app, model, cancelled)?;
    Ok(Loaded { engine, drafter, text, policies, created })
}

fn load_policies(config: &Config) -> Result<Policies, LoadError> {
    let policies = Policies::start(&config.places())?;
    let Some(folder) = &config.recording.folder else { return Ok(policies) };
    let recordings = Recordings::in_folder(folder, config.recording.max_bytes.0 as u64)?;
    if config.recording.from_start {
        recordings.start(None, None)?;
    }
    Ok(policies.recording(recordings))
}

/// The configured engine; none stands for the fake one, which needs the tokenizer first.
fn load_engine(app: &App, cancelled: &AtomicBool) -> Result<Option<Box<dyn Engine>>, LoadError> {
    match app.config.engine.kind {
        EngineKind::Fake => Ok(None),
        EngineKind::Wgsl => Err(LoadError::NoSuchEngine),
        EngineKind::Llama => Ok(Some(Box::new(llama(&app.model.path, app, cancelled)?))),
    }
}

fn llama(path: &Path, app: &App, cancelled: &AtomicBool) -> Result<LlamaEngine, LoadError> {
    let config = app.config.engine.llama.to_engine();
    let mut go_on = |_part: f32| !cancelled.load(Ordering::Relaxed);
    let engine = LlamaEngine::load(path, &config, &mut go_on)?;
    let info = engine.model_info();
    tracing::info!(
        path = %path.display(),
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

pub(super) fn load_text(config: &Config, gguf: &Gguf) -> Result<Text, LoadError> {
    let tokenizer = match &config.model.tokenizer {
        Some(path) => Tokenizer::from_json_file(path, gguf)?,
        None => Tokenizer::from_gguf(gguf)?,
    };
    let tokenizer = Arc::new(tokenizer);
    let template = match ChatTemplate::from_gguf(gguf) {
        Ok(template) => Some(Arc::new(template)),
        // A model without a template serves everything but conversations.
        Err(TemplateError::Gguf(error)) if error.is_missing_key() => None,
        Err(error) => return Err(error.into()),
    };
    let constraints = Arc::new(ConstraintFactory::new(Arc::clone(&tokenizer))?);
    Ok(Text { tokenizer, template, constraints })
}

/// Where guesses come from: nowhere, the sequence itself, or a second model.
fn drafter(
    app: &App,
    vocab_size: usize,
    cancelled: &AtomicBool,
) -> Result<Option<Box<dyn Drafter>>, LoadError> {
    match (app.config.scheduler.speculation, &app.draft) {
        (Speculation::Lookup, _) => Ok(Some(Box::new(PromptLookup::default()))),
        (Speculation::Draft, Some(draft)) => {
            let engine = llama(&draft.path, app, cancelled)?;
            let drafter = ModelDrafter::new(Box::new(engine), vocab_size, ModelDrafterConfig::default())?;
            Ok(Some(Box::new(drafter)))
        }
        // A configuration without its draft model was refused when it was read.
        (Speculation::Off | Speculation::Draft, _) => Ok(None),
    }
}
