//! From a file and a configuration to a session, and every way to fail there.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use quern_gguf::Gguf;

use crate::config::{ConfigError, LlamaConfig, physical_cores};
use crate::ffi::{self, Model, Session, VocabularySize};
use crate::info::ModelInfo;
use crate::widen::{self, Widened};
use crate::{backends, log};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A setting that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no file, or it cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The model's file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a GGUF file.
    #[error("{path} is not a GGUF file")]
    NotGguf {
        /// The model's file.
        path: PathBuf,
    },
    /// No plug-in for this machine's CPU was found.
    #[error(
        "no ggml CPU plug-in (libggml-cpu-*.so) was found in {}; set {} to the folder that has them",
        list(searched),
        backends::BACKENDS_DIR_VARIABLE
    )]
    NoCpuBackend {
        /// Folders that were searched.
        searched: Vec<PathBuf>,
    },
    /// llama.cpp does not know the model's architecture.
    #[error("{path}: {reason}")]
    UnknownArchitecture {
        /// The model's file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// The architecture keeps a state that cannot be shared or cut.
    #[error(
        "{path}: a {architecture} model keeps more state than keys and values, which this engine cannot share"
    )]
    UnsupportedArchitecture {
        /// The model's file.
        path: PathBuf,
        /// The architecture that the file names.
        architecture: String,
    },
    /// The model or its buffers do not fit into memory.
    #[error("{path}: out of memory: {reason}")]
    OutOfMemory {
        /// The model's file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// llama.cpp refused the file for another reason: it is damaged, or its
    /// tensors are not what its architecture needs.
    #[error("{path}: {reason}")]
    Model {
        /// The model's file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// llama.cpp loaded the model, but could not make a context as configured.
    #[error("{path}: no context: {reason}")]
    Context {
        /// The model's file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// The progress callback ended the loading.
    #[error("loading was cancelled")]
    Cancelled,
}

/// A model's weights, read once, for any number of engines. They stay in memory
/// until the last share is dropped, each engine's among them.
pub struct LlamaModel {
    model: Arc<Model>,
    path: PathBuf,
    config: LlamaConfig,
    /// For a step of one row, and of several.
    threads: (u32, u32),
    widened_bytes: u64,
}

impl std::fmt::Debug for LlamaModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaModel").field("path", &self.path).finish_non_exhaustive()
    }
}

/// llama.cpp's list of devices and its description of the system are process-wide.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl LlamaModel {
    /// Loads a GGUF file's weights. Blocks; `progress` is called with the part
    /// that is loaded, from 0 to 1, and ends the loading with `false`.
    ///
    /// # Errors
    /// [`LoadError`] names the file and the cause.
    pub fn load(
        path: &Path,
        config: &LlamaConfig,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<LlamaModel, LoadError> {
        let _one_at_a_time = one_at_a_time();
        config.validate()?;
        if config.tensor_split.len() > ffi::max_devices() {
            return Err(ConfigError::BadTensorSplit.into());
        }
        check_file(path)?;
        ffi::route_log();
        backends::load_once().map_err(|searched| LoadError::NoCpuBackend { searched })?;

        let path_buf = path.to_path_buf();
        let or_cores = |threads: u32| if threads == 0 { physical_cores() } else { threads };
        let threads = (or_cores(config.threads), or_cores(config.threads_prefill));
        if !progress(0.0) {
            return Err(LoadError::Cancelled);
        }
        // A file that cannot be read here is llama.cpp's to complain about.
        let gguf = Gguf::open(path).ok();
        let widened = gguf.as_ref().and_then(|gguf| widened_for_cpu(gguf, config, threads.1));
        // Text is none of this crate's business, and llama.cpp's tables for it take
        // some 50 MB with a vocabulary of 152,000.
        let vocabulary = gguf.as_ref().and_then(vocabulary_size);
        drop(gguf);
        let readable = widened.as_ref().map_or_else(|| path_buf.clone(), Widened::path);
        let mut cancelled = false;
        let mut watched = |part: f32| {
            cancelled = !progress(part);
            !cancelled
        };
        let (model, lines) =
            log::capture(|| Model::load(&readable, config, vocabulary.as_ref(), &mut watched));
        let Some(model) = model else {
            let reason = || lines.reason().replace(&*readable.to_string_lossy(), &path.to_string_lossy());
            return Err(if cancelled { LoadError::Cancelled } else { model_error(path_buf, reason()) });
        };
        if let Some(Err(error)) = widened.as_ref().map(Widened::release_unmapped) {
            tracing::warn!(path = %path.display(), error = %error, "memory of rearranged weights is not given back");
        }
        if !model.is_plain_decoder() {
            let architecture = model.metadata("general.architecture").unwrap_or_default();
            return Err(LoadError::UnsupportedArchitecture { path: path_buf, architecture });
        }
        Ok(LlamaModel {
            model: Arc::new(model),
            path: path_buf,
            config: config.clone(),
            threads,
            widened_bytes: widened.map_or(0, |widened| widened.added_bytes),
        })
    }

    /// Makes a context on the model, with state and threads of its own.
    pub(crate) fn session(&self) -> Result<(Session, ModelInfo), LoadError> {
        let _one_at_a_time = one_at_a_time();
        let model = Arc::clone(&self.model);
        let (session, lines) = log::capture(|| Session::new(model, &self.config, self.threads));
        let Some(session) = session else {
            let (path, reason) = (self.path.clone(), lines.reason());
            return Err(if is_out_of_memory(&reason) {
                LoadError::OutOfMemory { path, reason }
            } else {
                LoadError::Context { path, reason }
            });
        };
        let info = ModelInfo::read(&session, &lines, self.threads, self.widened_bytes);
        ffi::release_freed_memory();
        Ok((session, info))
    }

    pub(crate) fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

/// The model as the CPU computes with it fastest, where that is not as it lies
/// on the disk. Failing at it costs speed only.
fn widened_for_cpu(gguf: &Gguf, config: &LlamaConfig, threads: u32) -> Option<Widened> {
    if !config.repack || uses_gpu(config) {
        return None;
    }
    widen::widen(gguf, threads).unwrap_or_else(|error| {
        tracing::warn!(path = %gguf.path().display(), error = %error, "Q5_0 weights stay as they are, which is slower");
        None
    })
}

fn vocabulary_size(gguf: &Gguf) -> Option<VocabularySize> {
    let num_tokens = u32::try_from(gguf.byte_strings("tokenizer.ggml.tokens").ok()?.len()).ok()?;
    let architecture = gguf.architecture().ok()?.to_owned();
    (num_tokens > 0).then_some(VocabularySize { architecture, num_tokens })
}

/// Whether a GPU computes anything; plug-ins must have been loaded.
pub(crate) fn uses_gpu(config: &LlamaConfig) -> bool {
    config.gpu_layers != Some(0) && ffi::devices().iter().any(|device| device.2)
}

/// Tells apart what llama.cpp would only call a failure to load.
fn check_file(path: &Path) -> Result<(), LoadError> {
    let file_error = |source| LoadError::File { path: path.to_path_buf(), source };
    let mut magic = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) if magic == *b"GGUF" => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(file_error(error)),
        _ => Err(LoadError::NotGguf { path: path.to_path_buf() }),
    }
}

fn model_error(path: PathBuf, reason: String) -> LoadError {
    if reason.contains("unknown model architecture") {
        LoadError::UnknownArchitecture { path, reason }
    } else if is_out_of_memory(&reason) {
        LoadError::OutOfMemory { path, reason }
    } else {
        LoadError::Model { path, reason }
    }
}

fn is_out_of_memory(reason: &str) -> bool {
    ["failed to allocate", "unable to allocate", "out of memory", "bad_alloc", "cudaMalloc failed"]
        .iter()
        .any(|sign| reason.contains(sign))
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}
