//! What can be wrong with a GGUF file, as data.
//!
//! [`Problem`] knows nothing of paths, so that the parser can run on bytes in memory; [`GgufError`] adds
//! the file's path at the boundary.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file could not be opened, is not a sound GGUF file, or lacks what was asked of it.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct GgufError {
    /// The file that was being read or written.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

impl GgufError {
    pub(crate) fn new(path: &Path, problem: impl Into<Problem>) -> GgufError {
        GgufError { path: path.to_owned(), problem: problem.into() }
    }

    /// Whether the file merely lacks a key that was asked for.
    pub fn is_missing_key(&self) -> bool {
        matches!(self.problem, Problem::MissingKey { .. })
    }
}

/// The cause of a [`GgufError`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// The operating system refused a read or a write.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The path names a folder, a pipe or a device.
    #[error("this is not a regular file")]
    NotAFile,
    /// The file does not begin as GGUF does.
    #[error("this is not a GGUF file: {looks_like}")]
    Foreign {
        /// What the first bytes look like, as the end of a sentence.
        looks_like: &'static str,
    },
    /// The file was written for a machine of the other byte order.
    #[error("this GGUF file is big-endian; only little-endian files are supported")]
    ByteSwapped,
    /// The container's version is not one that can be read.
    #[error("GGUF version {version} is not supported; versions 2 and 3 are")]
    UnsupportedVersion {
        /// The version that the file gives.
        version: u32,
    },
    /// The file stops before its header does.
    #[error(
        "the file ends at byte {size_bytes}, inside its header: the download is incomplete or the file is corrupt"
    )]
    EndsInHeader {
        /// The size of the file.
        size_bytes: u64,
    },
    /// The file stops before its tensor data does.
    #[error(
        "the file ends at byte {size_bytes}, tensor {tensor:?} needs {needed_bytes}: the download is incomplete"
    )]
    Truncated {
        /// The size of the file.
        size_bytes: u64,
        /// The size that the file should have at least.
        needed_bytes: u64,
        /// The tensor that reaches furthest.
        tensor: String,
    },
    /// A number in the header is beyond any sensible file's.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// What the number counts.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The largest number that is accepted.
        limit: u64,
    },
    /// A metadata key is empty or not UTF-8.
    #[error("metadata entry {entry_idx} has an empty or non-UTF-8 key")]
    BadKey {
        /// The position among the metadata entries.
        entry_idx: u64,
    },
    /// Two metadata entries have the same key.
    #[error("the metadata key {key:?} occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A value has a type that the format does not define.
    #[error("the metadata key {key:?} has the unknown value type {number}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's number in the file.
        number: u32,
    },
    /// A truth value is neither 0 nor 1.
    #[error("the metadata key {key:?} holds a truth value of {found}")]
    BadBool {
        /// The key.
        key: String,
        /// The byte in the file.
        found: u8,
    },
    /// Arrays lie in arrays in arrays.
    #[error("the metadata key {key:?} nests arrays more than {limit} deep")]
    NestedTooDeep {
        /// The key.
        key: String,
        /// How deep arrays may nest.
        limit: u32,
    },
    /// The alignment is one that no file can have.
    #[error("the alignment {found} is not a power of two between 8 and 1048576")]
    BadAlignment {
        /// The alignment that the file gives.
        found: u64,
    },
    /// A tensor's name is empty or not UTF-8.
    #[error("tensor {tensor_idx} has an empty or non-UTF-8 name")]
    BadTensorName {
        /// The position among the tensors.
        tensor_idx: u64,
    },
    /// Two tensors have the same name.
    #[error("the tensor {tensor:?} occurs twice")]
    DuplicateTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's type is unknown or no longer supported.
    #[error("tensor {tensor:?} has the unknown type {number}")]
    UnknownTensorType {
        /// The tensor's name.
        tensor: String,
        /// The type's number in the file.
        number: u32,
    },
    /// A tensor has no dimensions, too many, an empty one, or rows that are not whole blocks.
    #[error("tensor {tensor:?} has the impossible shape {shape:?}: {reason}")]
    BadShape {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, innermost first.
        shape: Vec<u64>,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error("tensor {tensor:?} begins at offset {offset}, which is no multiple of the alignment {alignment}")]
    Unaligned {
        /// The tensor's name.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// A key that was asked for is not there.
    #[error("the metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key's value has another type than was asked for.
    #[error("the metadata key {key:?} is {found}, not {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The type in the file.
        found: &'static str,
    },
    /// An integer does not fit the type that was asked for.
    #[error("the metadata key {key:?} is {found}, which does not fit {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The number in the file.
        found: i128,
    },
    /// A text that was asked for is not UTF-8.
    #[error("the metadata key {key:?} is not UTF-8")]
    NotUtf8 {
        /// The key.
        key: String,
    },
    /// A tensor that was asked for is not there.
    #[error("the tensor {tensor:?} is missing")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// The file is sound but holds no tensors, so it is no model.
    #[error("the file holds no tensors")]
    NoTensors,
    /// A writer was asked for something that would make an unsound file.
    #[error("tensor {tensor:?} was given {found_bytes} bytes, its shape needs {expected_bytes}")]
    WrongTensorSize {
        /// The tensor's name.
        tensor: String,
        /// What its shape and type need.
        expected_bytes: u64,
        /// What it was given.
        found_bytes: u64,
    },
    /// Tensor data was written in another order than the tensors were declared.
    #[error("the data of tensor {found:?} was written where another tensor's is due")]
    WrongTensorOrder {
        /// The tensor that was named.
        found: String,
    },
    /// A file was finished before all declared tensors were written.
    #[error("the data of tensor {tensor:?} was never written")]
    TensorNotWritten {
        /// The first tensor that is missing.
        tensor: String,
    },
    /// A model was asked for that cannot be made.
    #[error("no such model can be made: {reason}")]
    BadSpec {
        /// What is wrong with the wish.
        reason: &'static str,
    },
}
