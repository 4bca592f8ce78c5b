//! Loading: the weights of the first worker's engine, and beside it the tokenizer,
//! the chat template and the grammar compiler, on threads of their own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use quern_adapters::{AdapterError, Fault, Head};
use quern_gguf::{Gguf, GgufError};
use quern_scheduler::draft::VocabMismatch;
use quern_text::{
    ChatTemplate, ConstraintCompileError, ConstraintFactory, TemplateError, Tokenizer, TokenizerError,
};

use super::App;
use super::classifiers::ClassifierError;
use super::engines::Engines;
use crate::adapters::{self, Base, Found, Named};
use crate::config::Config;
use crate::policies::recordings::{RecordError, Recordings};
use crate::policies::{Policies, PoliciesError};
use crate::workers::Parts;

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
    /// The portable engine could not load it.
    #[error(transparent)]
    Wgsl(#[from] quern_wgsl::LoadError),
    /// The draft model is of another family.
    #[error("scheduler.draft_model: {0}")]
    DraftModel(#[from] VocabMismatch),
    /// A classifier cannot serve.
    #[error(transparent)]
    Classifier(#[from] ClassifierError),
    /// The calibration beside the model cannot be read.
    #[error(transparent)]
    Calibration(#[from] AdapterError),
    /// The model's file does not say what it is.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The classification head in the model's file cannot be used.
    #[error("classification head: {0}")]
    Head(#[from] Fault),
    /// An adapter that the configuration names cannot be served.
    #[error("adapter `{name}`: {source}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why.
        source: adapters::Error,
    },
    /// A policy cannot serve.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// Steps cannot be recorded as configured.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Everything that a model needs to be served.
pub(super) struct Loaded {
    /// The first worker.
    pub(super) parts: Parts,
    /// How long it took to make.
    pub(super) took: Duration,
    /// Makes the others.
    pub(super) engines: Engines,
    pub(super) text: Text,
    pub(super) policies: Policies,
    pub(super) adapters: Adapters,
    /// The classification head in the model's file.
    pub(super) head: Option<Head>,
    /// When the file was written, as Unix time.
    pub(super) created: u64,
}

/// Adapters that are served from the start, and what they are for.
pub(super) struct Adapters {
    pub(super) base: Base,
    pub(super) found: Vec<(Named, Found)>,
}

/// What lies between text and tokens.
pub(super) struct Text {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<Arc<ChatTemplate>>,
    pub(super) constraints: Arc<ConstraintFactory>,
}

/// Loads everything. Blocks; `cancelled` ends it early.
pub(super) fn load(app: &App, cancelled: &AtomicBool) -> Result<Loaded, LoadError> {
    let began = Instant::now();
    let source = Engines::source(app);
    let (loaded, text, policies, adapters) = thread::scope(|scope| {
        let text = scope.spawn(|| load_text(&app.config, &app.gguf));
        let policies = scope.spawn(|| load_policies(&app.config));
        let adapters = scope.spawn(|| look_at_adapters(app));
        let loaded = source.get(cancelled);
        let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let policies = policies.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let adapters = adapters.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (loaded, text, policies, adapters)
    });
    // A policy or an adapter that cannot serve is known long before a model that can.
    let (policies, adapters) = (policies?, adapters?);
    let head = Head::from_metadata(app.gguf.metadata())?;
    // Kept until the first worker has a share of its own.
    let (_weights, text) = (loaded?, text?);
    let engines = Engines::new(app, source, text.tokenizer.vocab_size(), policies.clone());
    let parts = engines.parts(cancelled)?;
    let written = app.model.path.metadata().and_then(|meta| meta.modified()).ok();
    let created = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs());
    Ok(Loaded { parts, took: began.elapsed(), engines, text, policies, adapters, head, created })
}

fn load_policies(config: &Config) -> Result<Policies, LoadError> {
    let policies = Policies::start(&config.places(), config.workers.max)?;
    let Some(folder) = &config.recording.folder else { return Ok(policies) };
    let recordings = Recordings::in_folder(folder, config.recording.max_bytes.0 as u64)?;
    if config.recording.from_start {
        recordings.start(None, None)?;
    }
    Ok(policies.recording(recordings))
}

fn look_at_adapters(app: &App) -> Result<Adapters, LoadError> {
    let base = app.base()?;
    let named = app.config.adapter.iter().map(|adapter| {
        let found = base.look_at(&adapter.path);
        let found = found.map_err(|source| LoadError::Adapter { name: adapter.name.clone(), source })?;
        Ok((adapter.to_named(), found))
    });
    let found = named.collect::<Result<_, LoadError>>()?;
    Ok(Adapters { base, found })
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
