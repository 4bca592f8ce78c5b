//! `quern profile`: what each operation of a prefill and of decode steps takes.
//!
//! A model is loaded with the settings that a node would have, and computes the same work
//! four times: to warm up, as a node does, with every operation computed alone and timed,
//! and as a node does once more. What timing costs is said by the second against the third and
//! the fourth: fused operations come apart, and threads or the device come to rest behind
//! each, so the sums are good for shares and not for speeds. Offline: no scheduler, no
//! tokenizer and no HTTP. `pass.rs` does the work, `summary.rs` adds up, `trace.rs` writes
//! the file.

mod pass;
mod summary;
mod trace;

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use quern_engine::{Engine as _, EngineError};
use quern_gguf::GgufError;
use quern_llama::{LlamaEngine, LoadError};
use quern_models::{ResolveError, cache_dir, resolve};

use crate::cli::SettingsArgs;
use crate::config::{Config, EngineKind};

use pass::{Work, measure};
use summary::Summary;

/// `quern profile`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ProfileArgs {
    /// The file to write: a trace in Chrome's format, which ui.perfetto.dev shows.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_tokens: u32,
    /// Tokens that are decoded behind it, one a step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub decode_steps: u32,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// What is computed and how, as a node would.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

const AFTER_HELP: &str = "Each operation is computed alone: what is fused comes apart, nothing overlaps, and each \
    pays for starting and resting threads. Read shares, not speeds; the same work is also done as a node does it, and \
    the summary says how long both took; where it took longer before than behind, or shorter, the machine had other \
    work: profile again. Settings of a node that computing does not need are accepted and make no \
    difference.";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another engine is configured.
    #[error("engine.kind: only the operations of llama.cpp can be timed; choose --engine llama")]
    Engine,
    /// Nowhere to look for models.
    #[error("no cache folder: set QUERN_CACHE_DIR, or HOME")]
    NoCacheDir,
    /// There is no such model.
    #[error("model.name: {0}")]
    Resolve(#[from] ResolveError),
    /// The model's file is unsound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No sequence can be as long.
    #[error(
        "--prefill-tokens and --decode-steps: {wanted} tokens; a sequence has {limit} at most, by the model, \
         --max-sequence-len and --kv-capacity"
    )]
    TooLong {
        /// Tokens of the prompt and behind it.
        wanted: u64,
        /// The longest sequence.
        limit: usize,
    },
    /// The computation failed.
    #[error(transparent)]
    Step(#[from] EngineError),
    /// The trace cannot be written.
    #[error("--out {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ProfileError {
    /// Whether what was typed is at fault, and not a file or the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, ProfileError::Engine | ProfileError::Resolve(_) | ProfileError::TooLong { .. })
    }
}

/// Profiles the configured model, writes the trace and gives the summary as it is to be printed. The trace comes into
/// place whole or not at all. Fetches no model. Blocks.
///
/// # Errors
/// [`ProfileError`].
pub fn profile(args: &ProfileArgs, config: &Config) -> Result<String, ProfileError> {
    if config.engine.kind != EngineKind::Llama {
        return Err(ProfileError::Engine);
    }
    let file_error = |source| ProfileError::File { path: args.out.clone(), source };
    check_place(&args.out).map_err(file_error)?;
    let model = resolve(&config.model.name, &cache_dir().ok_or(ProfileError::NoCacheDir)?)?;
    quern_gguf::check(&model.path)?;
    let mut engine = LlamaEngine::load(&model.path, &config.engine.llama.to_engine(), &mut |_| true)?;
    let work = Work {
        prefill_tokens: args.prefill_tokens,
        decode_steps: args.decode_steps,
        max_rows: config.scheduler.token_budget.min(engine.capabilities().max_rows),
    };
    let (wanted, limit) = (work.num_tokens(), engine.capabilities().max_sequence_len);
    if wanted > limit as u64 {
        return Err(ProfileError::TooLong { wanted, limit });
    }
    let phases = measure(&mut engine, work)?;
    put(&args.out, &trace::trace(&phases)).map_err(file_error)?;
    let summary = Summary::new(&model.id, engine.model_info(), work, &phases);
    Ok(if args.json { summary.to_json() } else { summary.to_string() })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Finds out whether the trace could be written, before the work. Leaves nothing there.
fn check_place(path: &Path) -> io::Result<()> {
    if path.exists() && !path.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it exists and is no plain file"));
    }
    tempfile::tempfile_in(folder_of(path)).map(drop)
}

/// Writes a file beside its place and moves it there.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    // The process's umask applies to these permissions as it does to any new file.
    let mut file = tempfile::Builder::new()
        .prefix(".profile-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))?;
    file.write_all(content)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
