//! From a configuration to a running node, and from there to its end.
//!
//! [`App::build`] does what can fail quickly: it finds and checks the model's
//! file and binds both sockets. [`App::run`] loads, serves, waits for the signal
//! to end, and drains. In between nothing is hidden: the wiring can be read here.

mod calibration;
mod check;
mod classifiers;
mod engines;
mod load;
mod serve;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use quern_gguf::{Gguf, GgufError};
use quern_models::{PullError, PullOptions, ResolveError, ResolvedModel, catalog, pull, resolve};

use crate::adapters::{self, Base, check_path};
use crate::config::{self, Config};
use crate::http::ServeError;

pub use check::CheckedAdapter;
pub use classifiers::{ClassifierError, ClassifierFault};
pub use load::LoadError;
pub use serve::Ended;

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configured model is not here, or is none.
    #[error("{key}: {source}")]
    Resolve {
        /// The configuration's key.
        key: &'static str,
        /// Why.
        source: ResolveError,
    },
    /// The model could not be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The file is damaged, cut short, or no model.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Adapters are not where the configuration says.
    #[error("{}", lines(.0))]
    Misplaced(Vec<Misplaced>),
    /// An address cannot be listened on.
    #[error("{key}: cannot listen on {address}: {source}")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A listener could not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system gave no thread or socket.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A thread that computes had ended, which it only does when it fails.
    #[error("a step loop has ended by itself")]
    StepLoopEnded,
}

impl AppError {
    /// Whether the configuration is at fault, and not the moment.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, AppError::Resolve { .. } | AppError::Misplaced(_))
    }
}

/// A path of the configuration that leads to no adapter.
#[derive(Debug, thiserror::Error)]
#[error("adapter[{idx}].path: {source}")]
pub struct Misplaced {
    /// Its place among the configured adapters, those of flags behind those of the file.
    pub idx: usize,
    /// What is there.
    pub source: adapters::Error,
}

fn lines(all: &[Misplaced]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A node that has its sockets and knows its model, and does not serve yet.
pub struct App {
    config: Config,
    model: ResolvedModel,
    draft: Option<ResolvedModel>,
    gguf: Gguf,
    public: TcpListener,
    admin: TcpListener,
}

impl App {
    /// Finds the model, checks its file and binds both sockets. Fetches nothing.
    ///
    /// # Errors
    /// [`AppError`] naming the key, the file or the address.
    pub fn build(config: Config) -> Result<App, AppError> {
        let model = find("model.name", &config.model.name)?;
        let model = ResolvedModel { id: config.model.id.clone().unwrap_or(model.id), path: model.path };
        let draft = config.scheduler.draft_model.as_ref().map(|name| find("scheduler.draft_model", name));
        let draft = draft.transpose()?;
        let gguf = quern_gguf::check(&model.path)?;
        if let Some(draft) = &draft {
            quern_gguf::check(&draft.path)?;
        }
        let public = bind("http.listen", config.http.listen)?;
        let admin = bind("admin.listen", config.admin.listen)?;
        Ok(App { config, model, draft, gguf, public, admin })
    }

    /// The id and the file of the model to be served.
    #[must_use]
    pub fn model(&self) -> &ResolvedModel {
        &self.model
    }

    /// The checked model file.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// What adapters are for.
    fn base(&self) -> Result<Base, GgufError> {
        Base::new(&self.model.id, &self.gguf, self.config.adapters.file_type())
    }

    /// The addresses that were bound: public, operators'.
    ///
    /// # Errors
    /// The system's, when it does not know.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.public.local_addr()?, self.admin.local_addr()?))
    }
}

/// Looks whether the adapters that the configuration names are where it says: to be
/// called first, since all else takes longer to find out. Opens nothing.
///
/// # Errors
/// [`AppError::Misplaced`] with all that are not.
pub fn look_for_adapters(config: &Config) -> Result<(), AppError> {
    let look = |(idx, adapter): (usize, &config::Adapter)| {
        check_path(&adapter.path).err().map(|source| Misplaced { idx, source })
    };
    let misplaced: Vec<Misplaced> = config.adapter.iter().enumerate().filter_map(look).collect();
    if misplaced.is_empty() { Ok(()) } else { Err(AppError::Misplaced(misplaced)) }
}

/// Fetches the models of the catalogue that the configuration names and that are
/// not here, if it may.
///
/// # Errors
/// [`AppError::Pull`].
pub fn pull_missing(config: &Config, progress: &dyn quern_models::Progress) -> Result<(), AppError> {
    if !config.model.pull {
        return Ok(());
    }
    let names = [Some(&config.model.name), config.scheduler.draft_model.as_ref()];
    for entry in names.into_iter().flatten().filter_map(|name| catalog().get(name)) {
        pull(entry, &PullOptions::from_env()?, progress)?;
    }
    Ok(())
}

fn find(key: &'static str, name: &str) -> Result<ResolvedModel, AppError> {
    let cache_dir: PathBuf = quern_models::cache_dir().ok_or(PullError::NoCacheDir)?;
    resolve(name, &cache_dir).map_err(|source| AppError::Resolve { key, source })
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| AppError::Listen { key, address, source })
}
