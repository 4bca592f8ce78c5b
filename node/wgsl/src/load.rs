//! From a file and a configuration to weights on a device, and every way to fail there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quern_gguf::Gguf;
use quern_shaders::model::{Model, ModelError};
use quern_shaders::step::RunnerError;
use quern_shaders::{Device, DeviceError, Profile};

use crate::config::{ConfigError, WgslConfig};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A setting that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No device, or one that failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The file cannot be used.
    #[error("{path}: {source}")]
    Model {
        /// The model's file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
    /// Buffers for steps do not fit.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// Whoever waited for the model has changed their mind.
    #[error("loading was cancelled")]
    Cancelled,
}

/// Weights on a device, shared by engines on them.
#[derive(Debug)]
pub struct WgslModel {
    pub(crate) device: Device,
    pub(crate) model: Arc<Model>,
    pub(crate) config: WgslConfig,
    pub(crate) path: PathBuf,
}

impl WgslModel {
    /// Opens a device and loads a GGUF file's weights. Blocks; `progress` is called with the part that is
    /// loaded, from 0 to 1, and ends the loading with `false`.
    ///
    /// # Errors
    /// [`LoadError`] names the file or the device and the cause.
    pub fn load(
        path: &Path,
        config: &WgslConfig,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<WgslModel, LoadError> {
        config.validate()?;
        let failed = |source: ModelError| match source {
            ModelError::Cancelled => LoadError::Cancelled,
            ModelError::Device(error) => LoadError::Device(error),
            source => LoadError::Model { path: path.to_owned(), source },
        };
        // The file first: what is wrong with it can be said without a device.
        let gguf = Gguf::open(path).map_err(|error| failed(error.into()))?;
        let device = Device::open(&config.device)?;
        let model = Arc::new(Model::load(&device, &gguf, progress).map_err(failed)?);
        Ok(WgslModel { device, model, config: config.clone(), path: path.to_owned() })
    }

    /// The device that the weights are on.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        self.device.profile()
    }

    /// Whether the device is gone, and the weights with it: load the model anew.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    /// Takes the device away from all engines on it, as a driver does that fails. For tests of what follows.
    pub fn lose_device(&self) {
        self.device.lose();
    }

    /// Bytes of the weights on the device.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.model.size_bytes
    }
}
