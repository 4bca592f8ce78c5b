//! From a file to code that can be instantiated.
//!
//! Read, check who made it, make a component of a core module, read what it
//! wants, compile. All of it takes milliseconds and more, so it runs on a
//! thread that nobody waits for.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime::component::InstancePre;

use crate::engine::PolicyEngine;
use crate::host::Host;
use crate::inspect::{self, Kind, NotAPolicy};
use crate::instance::Indices;
use crate::settings::Settings;
use crate::trust::{self, Digest, Untrusted};
use crate::verdict::{Fault, HookSet};

/// Longest signature file: the Base64 of 64 bytes, with a line's end.
const MAX_SIGNATURE: u64 = 256;

/// Where a policy comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, with its signature, if any, beside it under its name and `.sig`.
    File(PathBuf),
    /// Bytes that somebody sent.
    Bytes {
        /// A component, or a core module built against the contract.
        wasm: Vec<u8>,
        /// A detached signature: 64 bytes or their Base64.
        signature: Option<Vec<u8>>,
    },
}

/// Why a policy was not loaded. What served before still serves.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was written while it was read.
    #[error("{0} is being written; try again")]
    Changing(PathBuf),
    /// The file is too long.
    #[error("it has {bytes} bytes, and {max} are allowed")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// What the profile allows.
        max: u64,
    },
    /// The file is not the one that the operator meant.
    #[error("it is not trusted: {0}")]
    Untrusted(#[from] Untrusted),
    /// The file is no policy.
    #[error(transparent)]
    NotAPolicy(#[from] NotAPolicy),
    /// It has no hook that is wanted in this place.
    #[error("it has none of the hooks that may serve here")]
    NoWantedHook,
    /// The compiler or the linker refuses it.
    #[error("it cannot be compiled: {0}")]
    Compile(String),
    /// An instance could not be made, or `init` failed.
    #[error("it does not start: {0}")]
    Start(Fault),
}

/// A policy's code: checked, compiled and linked.
pub(crate) struct Code {
    pub(crate) pre: InstancePre<Host>,
    pub(crate) indices: Indices,
    pub(crate) digest: Digest,
    /// What it exports and may serve here.
    pub(crate) hooks: HookSet,
    pub(crate) imports: Vec<String>,
    pub(crate) source: Option<PathBuf>,
    /// The most memory that any instance of it ever had.
    pub(crate) memory_peak: Arc<AtomicU64>,
}

/// Reads, checks and compiles. Blocks for as long as that takes.
pub(crate) fn load(engine: &PolicyEngine, source: &Source, settings: &Settings) -> Result<Code, LoadError> {
    let max = settings.profile.caps().file_bytes;
    let path = match source {
        Source::File(path) => Some(path.clone()),
        Source::Bytes { .. } => None,
    };
    let (wasm, signature) = match source {
        Source::File(path) => (read_still(path, max)?, read_signature(path)?),
        Source::Bytes { wasm, signature } => (wasm.clone(), signature.clone()),
    };
    if wasm.len() as u64 > max {
        return Err(LoadError::TooLarge { bytes: wasm.len() as u64, max });
    }
    let digest = trust::check(&wasm, signature.as_deref(), &settings.trust)?;
    let component = match inspect::kind(&wasm)? {
        Kind::Component => wasm,
        Kind::Module => inspect::componentize(&wasm)?,
    };
    let outline = inspect::outline(&component)?;
    let hooks = outline.hooks.and(settings.hooks);
    if hooks.is_empty() {
        return Err(LoadError::NoWantedHook);
    }
    let refused = |error: wasmtime::Error| LoadError::Compile(format!("{error:#}"));
    let compiled = engine.compile(&component).map_err(refused)?;
    let pre = engine.linker().instantiate_pre(&compiled).map_err(refused)?;
    let indices = Indices::new(&pre, hooks).map_err(refused)?;
    Ok(Code {
        pre,
        indices,
        digest,
        hooks,
        imports: outline.imports,
        source: path,
        memory_peak: Arc::default(),
    })
}

/// Reads a file that nobody writes to meanwhile.
///
/// A file that is replaced by renaming is either the old one or the new one.
/// One that is written in place shows another length or time afterwards; what
/// slips through has half a file's sections and is refused as malformed.
pub(crate) fn read_still(path: &Path, max: u64) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if before.len() > max {
        return Err(LoadError::TooLarge { bytes: before.len(), max });
    }
    let mut bytes = Vec::with_capacity(before.len() as usize);
    file.by_ref().take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    let after = file.metadata().map_err(failed)?;
    let still = before.len() == after.len() && before.modified().ok() == after.modified().ok();
    if !still || bytes.len() as u64 != after.len() {
        return Err(LoadError::Changing(path.to_owned()));
    }
    Ok(bytes)
}

/// Where a file's detached signature lies.
pub(crate) fn signature_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

fn read_signature(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let path = signature_of(path);
    if !path.exists() {
        return Ok(None);
    }
    read_still(&path, MAX_SIGNATURE).map(Some)
}
