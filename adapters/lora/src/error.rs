//! What can be wrong with an adapter or a model, as data.

use std::io;
use std::path::{Path, PathBuf};

use quern_gguf::{GgufError, TensorType};
use thiserror::Error;

use crate::base::Mismatch;
use crate::codec::CodecError;

/// An adapter could not be read, or cannot be served.
#[derive(Debug, Error)]
#[error("{}: {fault}", path.display())]
pub struct AdapterError {
    /// The folder or file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

impl AdapterError {
    pub(crate) fn new(path: &Path, fault: impl Into<Fault>) -> AdapterError {
        AdapterError { path: path.to_owned(), fault: fault.into() }
    }
}

/// The cause of an [`AdapterError`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system refused a read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file of the folder could not be read.
    #[error("{file}: {error}")]
    File {
        /// The file's name in the folder.
        file: &'static str,
        /// What the operating system said.
        error: io::Error,
    },
    /// The path names nothing that an adapter can be.
    #[error("this is neither a PEFT folder nor a GGUF file")]
    NotAnAdapter,
    /// The folder has no configuration.
    #[error("the folder has no adapter_config.json, so it is no PEFT adapter")]
    NoConfig,
    /// The folder has no weights.
    #[error("the folder has no adapter_model.safetensors{hint}")]
    NoWeights {
        /// What lies there instead, as the end of the sentence.
        hint: &'static str,
    },
    /// A JSON file is malformed or lacks what it must say.
    #[error("{file}: {reason}")]
    BadJson {
        /// The file's name.
        file: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A text file is larger than any sensible one.
    #[error("{file} has {size_bytes} bytes, the limit is {limit}")]
    FileTooLarge {
        /// The file's name.
        file: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The largest that is accepted.
        limit: u64,
    },
    /// The adapter uses something that cannot be served.
    #[error("the adapter uses {what}, which cannot be served{hint}")]
    Unsupported {
        /// What it uses.
        what: String,
        /// What can be done about it, as the end of the sentence.
        hint: &'static str,
    },
    /// The safetensors file is unsound.
    #[error("adapter_model.safetensors: {0}")]
    Safetensors(#[from] SafeFault),
    /// The GGUF file is unsound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The GGUF file is something other than a LoRA.
    #[error("this GGUF file is no LoRA adapter: {key} is {found:?}, not {expected:?}")]
    NotALora {
        /// The key that tells.
        key: &'static str,
        /// Its value, empty where it is missing.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A tensor's name means nothing to us.
    #[error(
        "tensor {tensor:?} is not a known target; known are q, k, v, o, gate, up and down of a layer, and the LM head"
    )]
    UnknownTarget {
        /// The tensor's name.
        tensor: String,
    },
    /// The configuration names a module that has no tensors, or in some layers only.
    #[error("adapter_config.json names the target {target:?}, but layer {layer_idx} has no tensors for it")]
    MissingTarget {
        /// The target in the configuration.
        target: String,
        /// The first layer without it.
        layer_idx: u32,
    },
    /// The configuration names a module that no tensor belongs to.
    #[error("adapter_config.json names the target {target:?}, but no tensor belongs to it")]
    EmptyTarget {
        /// The target in the configuration.
        target: String,
    },
    /// A tensor belongs to a module that the configuration does not name.
    #[error("tensor {tensor:?} belongs to no target that adapter_config.json names")]
    UnnamedTarget {
        /// The tensor's name.
        tensor: String,
    },
    /// One of the two matrices of a pair is missing.
    #[error("{module} has its {found} matrix but not its {missing} matrix")]
    MissingHalf {
        /// The module in the base's names.
        module: String,
        /// The matrix that is there.
        found: &'static str,
        /// The matrix that is not.
        missing: &'static str,
    },
    /// The same matrix is there twice under two names.
    #[error("{module} has two {which} matrices")]
    TwiceDefined {
        /// The module in the base's names.
        module: String,
        /// Which matrix.
        which: &'static str,
    },
    /// There are no LoRA tensors at all.
    #[error("the adapter has no LoRA tensors")]
    Empty,
    /// A matrix is no matrix, is empty, or A and B do not fit each other.
    #[error("{module}: {which} has the shape {shape:?}, which is {reason}")]
    BadShape {
        /// The module in the base's names.
        module: String,
        /// Which matrix.
        which: &'static str,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration promises another rank than the tensors have.
    #[error("{module} has rank {found}, adapter_config.json says {expected}")]
    WrongRank {
        /// The module in the base's names.
        module: String,
        /// The rank in the configuration.
        expected: u64,
        /// The rank of the tensors.
        found: u64,
    },
    /// Numbers in a format that adapters are not stored in.
    #[error("tensor {tensor:?} is stored as {found}; F32, F16 and BF16 can be read")]
    BadType {
        /// The tensor's name.
        tensor: String,
        /// The format.
        found: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("tensor {tensor:?} holds {found} at element {element_idx}")]
    NotFinite {
        /// The tensor's name.
        tensor: String,
        /// `NaN` or `an infinity`.
        found: &'static str,
        /// The first such element, row-major.
        element_idx: u64,
    },
    /// A scale that is no positive number, or a rank of 0.
    #[error("the adapter's {what} is {found}")]
    BadNumber {
        /// What the number is.
        what: &'static str,
        /// The number.
        found: String,
    },
    /// A classification adapter without its head.
    #[error("this is a classification adapter, but it has no score tensor")]
    NoHead,
    /// Labels and head disagree.
    #[error("{file} names {num_labels} labels, the head has {num_rows} rows")]
    WrongLabels {
        /// The file.
        file: &'static str,
        /// How many labels it names.
        num_labels: usize,
        /// How many the head has.
        num_rows: usize,
    },
    /// A label is empty or occurs twice, or a number is missing.
    #[error("{file}: {reason}")]
    BadLabels {
        /// The file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// What is wrong with a safetensors file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SafeFault {
    /// The operating system refused a read; with `UnexpectedEof` when the file has shrunk.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The path names a folder, a pipe or a device.
    #[error("this is not a regular file")]
    NotAFile,
    /// The file ends before the header does.
    #[error("the file has {size_bytes} bytes, its header needs {needed_bytes}")]
    EndsInHeader {
        /// The size of the file.
        size_bytes: u64,
        /// What the header needs.
        needed_bytes: u64,
    },
    /// The header is larger than any sensible one.
    #[error("the header claims {size_bytes} bytes, the limit is {limit}")]
    HeaderTooLarge {
        /// The size that the file claims.
        size_bytes: u64,
        /// The largest that is accepted.
        limit: u64,
    },
    /// The header is no JSON, or its shapes, types and offsets contradict each other.
    #[error("the header is unsound: {reason}")]
    BadHeader {
        /// What the reader said.
        reason: String,
    },
    /// Data is missing or left over.
    #[error("the file has {size_bytes} bytes, its tensors need {needed_bytes}")]
    WrongSize {
        /// The size of the file.
        size_bytes: u64,
        /// What the header says it must be.
        needed_bytes: u64,
    },
}

/// A model could not be read or rewritten.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A GGUF file could not be read or written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// An adapter is unsound.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A folder of Hugging Face's is no model that can be read.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused a read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// A tensor could not be decoded or encoded.
    #[error("tensor {tensor:?}: {error}")]
    Codec {
        /// The tensor.
        tensor: String,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// The adapter does not fit the base.
    #[error("{}: this adapter does not fit the base: {}", adapter.display(), lines(mismatches))]
    NotServable {
        /// The adapter.
        adapter: PathBuf,
        /// All reasons.
        mismatches: Vec<Mismatch>,
    },
    /// The architecture is one whose tensors we do not know.
    #[error("{}: the architecture {found:?} is not known; qwen2 and qwen3 are", path.display())]
    Architecture {
        /// The model.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// Several classification heads meet in one model.
    #[error("{first} and {second} both have a classification head, a model has one; merge them without")]
    TwoHeads {
        /// The first adapter.
        first: String,
        /// The second.
        second: String,
    },
    /// A wish that makes no sense.
    #[error("{0}")]
    Wish(String),
    /// The importance matrix does not belong to the model.
    #[error("the importance of {tensor:?} has {found} values, the tensor's rows have {expected}")]
    Importance {
        /// The tensor.
        tensor: String,
        /// How long a row is.
        expected: u64,
        /// How many values there are.
        found: u64,
    },
    /// The importance matrix could not be measured.
    #[error("calibration on {}: {reason}", text.display())]
    Calibration {
        /// The text.
        text: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A tensor's type cannot be written without more knowledge.
    #[error("tensor {tensor:?} cannot be stored as {kind}")]
    NoType {
        /// The tensor.
        tensor: String,
        /// The type.
        kind: TensorType,
    },
}

fn lines(mismatches: &[Mismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
