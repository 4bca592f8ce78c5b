//! A model that is judged: its file, what turns text into its tokens, its head, and an
//! engine on it that fits the work. No scheduler and no HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quern_adapters::{Adapter, FileType, Format, Head, PipelineError, check_base, convert};
use quern_engine::{AdapterId, Engine as _, TokenId};
use quern_gguf::Gguf;
use quern_llama::{LlamaConfig, LlamaEngine};
use quern_models::{cache_dir, resolve};
use quern_text::{ChatTemplate, Special, TemplateError, Tokenizer};

use super::EvalError;
use crate::config::KvType;
use crate::serving::{LabelTask, TEXT, Wording};

/// The adapter's number in an engine.
const ADAPTER: AdapterId = AdapterId(1);

/// Rows in a step. More make no step faster and cost memory.
const MAX_ROWS: u32 = 256;

/// A model and, where one is wanted, an adapter on it.
pub(crate) struct Subject {
    /// What to call it in a report.
    pub(crate) name: String,
    /// The model's file.
    pub(crate) path: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    /// Where the model has one.
    pub(crate) template: Option<Arc<ChatTemplate>>,
    /// The adapter's head, or the one that was merged into the model.
    pub(crate) head: Option<Head>,
    /// Tokens of the longest sequence that the model was trained for.
    pub(crate) trained_context: usize,
    adapter: Option<Adapter>,
    architecture: String,
}

/// What the work needs of an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Tokens of all sequences together.
    pub(crate) kv_capacity: usize,
    pub(crate) max_sequences: u32,
    pub(crate) max_outputs: u32,
}

/// What can be chosen about the machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// 0 is one a core.
    pub(crate) threads: u32,
    /// All without it.
    pub(crate) gpu_layers: Option<u32>,
    pub(crate) kv_type: KvType,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { threads: 0, gpu_layers: None, kv_type: KvType::F16 }
    }
}

impl Subject {
    /// Finds and checks a model and an adapter for it. Loads no weights.
    pub(crate) fn open(model: &str, adapter: Option<&Path>) -> Result<Subject, EvalError> {
        let resolved = resolve(model, &cache_dir().ok_or(EvalError::NoCacheDir)?)?;
        let gguf = quern_gguf::check(&resolved.path)?;
        let architecture = gguf.architecture()?.to_owned();
        let merged = |fault| EvalError::Head { path: resolved.path.clone(), fault };
        let mut head = Head::from_metadata(gguf.metadata()).map_err(merged)?;
        let adapter = adapter.map(|path| fitting(path, &gguf, &architecture)).transpose()?;
        if let Some(adapter) = &adapter {
            head = adapter.head.clone();
        }
        let template = match ChatTemplate::from_gguf(&gguf) {
            Ok(template) => Some(Arc::new(template)),
            Err(TemplateError::Gguf(error)) if error.is_missing_key() => None,
            Err(error) => return Err(error.into()),
        };
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let trained_context = gguf.u32(&format!("{architecture}.context_length"))? as usize;
        Ok(Subject {
            name: resolved.id,
            path: resolved.path,
            tokenizer,
            template,
            head,
            trained_context,
            adapter,
            architecture,
        })
    }

    /// Loads the weights, and the adapter that is then to be computed with.
    pub(crate) fn engine(
        &self,
        needs: Needs,
        machine: &Machine,
    ) -> Result<(LlamaEngine, AdapterId), EvalError> {
        let wanted = u32::try_from(needs.kv_capacity.next_multiple_of(256).max(256)).unwrap_or(u32::MAX);
        let config = LlamaConfig {
            kv_capacity: wanted,
            max_sequence_len: wanted,
            max_sequences: needs.max_sequences,
            max_rows: MAX_ROWS,
            micro_batch_rows: MAX_ROWS,
            max_outputs: needs.max_outputs.min(MAX_ROWS),
            threads: machine.threads,
            threads_prefill: machine.threads,
            gpu_layers: machine.gpu_layers,
            kv_type: machine.kv_type.to_engine(),
            ..LlamaConfig::default()
        };
        let mut engine = LlamaEngine::load(&self.path, &config, &mut |_| true)?;
        let known = self.tokenizer.vocab_size();
        if engine.capabilities().vocab_size != known {
            let model = engine.capabilities().vocab_size;
            return Err(EvalError::Vocabulary { path: self.path.clone(), model, tokenizer: known });
        }
        let Some(adapter) = &self.adapter else { return Ok((engine, AdapterId::BASE)) };
        match adapter.format {
            Format::Gguf => engine.load_adapter(ADAPTER, &adapter.path)?,
            Format::Peft => {
                // llama.cpp has read all of it when this returns, and the folder goes.
                let folder = tempfile::tempdir().map_err(EvalError::Temporary)?;
                let path = folder.path().join("adapter.gguf");
                convert(adapter, &self.architecture, FileType::F32, &path)?;
                engine.load_adapter(ADAPTER, &path)?;
            }
        }
        Ok((engine, ADAPTER))
    }

    /// A text's tokens, as a model reads it that was trained on bare texts.
    pub(crate) fn text(&self, text: &str) -> Result<Vec<TokenId>, EvalError> {
        Ok(self.tokenizer.encode_prompt(text, Special::AsText)?)
    }

    /// Labels as answers to a conversation of a system's message and the text, as a node
    /// would score them.
    pub(crate) fn label_task(
        &self,
        system: Option<&str>,
        labels: &[String],
        end_token: Option<bool>,
    ) -> Result<LabelTask, EvalError> {
        if self.template.is_none() {
            return Err(EvalError::NoTemplate { path: self.path.clone() });
        }
        if end_token == Some(true) && self.tokenizer.eos().is_none() {
            return Err(EvalError::NoEnd { path: self.path.clone() });
        }
        let message = |role: &str, content: &str| (role.to_owned(), content.to_owned());
        let system = system.map(|content| message("system", content));
        let wording = Wording::Messages(system.into_iter().chain([message("user", TEXT)]).collect());
        let template = self.template.as_ref();
        Ok(LabelTask::new(&self.tokenizer, template, wording, labels.to_vec(), end_token, 0.0)?)
    }
}

/// An adapter that the model can compute with.
fn fitting(path: &Path, base: &Gguf, architecture: &str) -> Result<Adapter, EvalError> {
    let adapter = Adapter::open(path)?;
    let mismatches = check_base(&adapter, architecture, base.tensors());
    if !mismatches.is_empty() {
        let adapter = path.to_owned();
        return Err(PipelineError::NotServable { adapter, mismatches }.into());
    }
    Ok(adapter)
}
