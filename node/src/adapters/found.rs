//! What is known of an adapter once its files were read and found good.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use quern_adapters::{Adapter, AdapterError, Calibration, Fault, FileType, Head, Task, check_base};
use quern_gguf::{Gguf, GgufError, TensorInfo};

use super::Error;

/// The model that adapters are for, and how they are kept for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Base {
    /// What clients call it.
    pub model_id: String,
    /// `general.architecture`.
    pub(super) architecture: Arc<str>,
    tensors: Arc<[TensorInfo]>,
    /// How matrices are stored in memory and on engines: F32, F16 or BF16.
    pub(super) format: FileType,
}

/// An adapter that can be served.
#[derive(Debug, Clone)]
pub struct Found {
    /// The folder or file.
    pub path: PathBuf,
    /// What its files looked like.
    pub(super) stamp: Stamp,
    /// What it was trained for.
    pub task: Task,
    /// The largest rank of its modules.
    pub rank: u64,
    /// What it says it was trained on.
    pub base_name: Option<String>,
    /// Its classification head.
    pub head: Option<Arc<Head>>,
    /// What the head's scores are divided by before softmax, 1 where it is not calibrated.
    pub temperature: f32,
    /// What its matrices take on an engine.
    pub size_bytes: u64,
}

impl Base {
    /// The model in this file, under the id that clients know.
    ///
    /// # Errors
    /// The file does not name its architecture.
    pub fn new(model_id: &str, gguf: &Gguf, format: FileType) -> Result<Base, GgufError> {
        let architecture = gguf.architecture()?.into();
        Ok(Base { model_id: model_id.to_owned(), architecture, tensors: gguf.tensors().into(), format })
    }

    /// Reads an adapter, every number of it, and finds out whether this base can serve
    /// it. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error`], each cause its own.
    pub fn look_at(&self, path: &Path) -> Result<Found, Error> {
        let stamp = Stamp::of(path).map_err(|_| Error::NotFound(path.to_owned()))?;
        let checked = self.check(path);
        let calibration = Calibration::read(path);
        // Whatever else is wrong with files that change, waiting helps.
        if Stamp::of(path).ok().as_ref() != Some(&stamp) {
            return Err(Error::Changing(path.to_owned()));
        }
        let adapter = checked?;
        let bytes = match self.format {
            FileType::F32 => 4,
            _ => 2,
        };
        let numbers = adapter.modules.iter().map(|module| module.rank * (module.input + module.output));
        Ok(Found {
            stamp,
            task: adapter.task,
            rank: adapter.modules.iter().map(|module| module.rank).max().unwrap_or(0),
            size_bytes: numbers.sum::<u64>() * bytes,
            base_name: adapter.base_name,
            head: adapter.head.map(Arc::new),
            temperature: calibration?.map_or(1.0, |calibration| calibration.temperature),
            path: path.to_owned(),
        })
    }

    fn check(&self, path: &Path) -> Result<Adapter, Error> {
        let adapter = Adapter::open(path)?;
        let reasons = check_base(&adapter, &self.architecture, &self.tensors);
        if !reasons.is_empty() {
            return Err(Error::OtherBase { path: path.to_owned(), reasons });
        }
        adapter.check_values()?;
        Ok(adapter)
    }
}

/// Whether something lies at a path that may be an adapter; what it holds,
/// [`Base::look_at`] finds out. Opens nothing.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Unsound`] for a folder of something else.
pub fn check_path(path: &Path) -> Result<(), Error> {
    let unsound = |fault| Err(Error::Unsound(AdapterError { path: path.to_owned(), fault }));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound(path.to_owned())),
        Err(error) => unsound(Fault::Io(error)),
        Ok(found) if found.is_dir() && !path.join(Stamp::FILES[0]).exists() => unsound(Fault::NoConfig),
        Ok(_) => Ok(()),
    }
}

/// What an adapter's files look like from outside: other bytes look different, unless
/// somebody takes pains that they do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Of [`Stamp::FILES`], or of the one file.
    files: Vec<Option<FileStamp>>,
    /// In the folder, or beside the file.
    calibration: Option<FileStamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    size_bytes: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    /// Files that make a PEFT folder's adapter what it is.
    const FILES: [&str; 4] =
        ["adapter_config.json", "adapter_model.safetensors", "labels.json", "config.json"];

    /// # Errors
    /// The system's, when nothing is there.
    pub(super) fn of(path: &Path) -> io::Result<Stamp> {
        let look = |found: &Metadata| FileStamp {
            size_bytes: found.len(),
            modified: found.modified().ok(),
            inode: found.ino(),
        };
        let look_at = |path: &Path| fs::metadata(path).ok().as_ref().map(look);
        let found = fs::metadata(path)?;
        let files = match found.is_dir() {
            true => Self::FILES.iter().map(|file| look_at(&path.join(file))).collect(),
            false => vec![Some(look(&found))],
        };
        Ok(Stamp { files, calibration: look_at(&Calibration::path_of(path)) })
    }

    /// Whether an engine would read the same: how sure answers are is no part of it.
    pub(super) fn has_content_of(&self, other: &Stamp) -> bool {
        self.files == other.files
    }
}
