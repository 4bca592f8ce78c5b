//! An open GGUF file: its checked header, and tensor data by positioned reads.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{GgufError, Problem};
use crate::header::Header;
use crate::metadata::Metadata;
use crate::reader::{Forward, ReadAt};
use crate::tensor::TensorInfo;
use crate::value::{ByteStrings, Value};

/// A GGUF file whose whole structure was found sound when it was opened. It may be shared by threads.
///
/// The getters name the file, the key and what was found instead in their errors; see [`Metadata`] for
/// which types they accept.
pub struct Gguf {
    path: PathBuf,
    source: Box<dyn ReadAt>,
    header: Header,
    tensor_index: HashMap<String, usize>,
}

/// Checks that the file is a whole model: a sound header, every tensor inside the file, an architecture.
/// Reads the header only, so the size of the model does not matter.
///
/// # Errors
///
/// Says what is wrong with the file, see [`Problem`].
#[cfg(unix)]
pub fn check(path: &Path) -> Result<Gguf, GgufError> {
    let gguf = Gguf::open(path)?;
    gguf.architecture()?;
    if gguf.tensors().is_empty() {
        return Err(GgufError::new(path, Problem::NoTensors));
    }
    Ok(gguf)
}

impl Gguf {
    /// Opens a file, reads its header and checks the whole structure. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file, see [`Problem`].
    #[cfg(unix)]
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let file = open(path).map_err(|problem| GgufError::new(path, problem))?;
        Gguf::from_reader(file, path)
    }

    /// As [`Gguf::open`], of a file that need not be one: in memory, say. `name` stands for its path, in
    /// errors too. Blocks where `source` does.
    ///
    /// # Errors
    ///
    /// As [`Gguf::open`].
    pub fn from_reader(source: impl ReadAt + 'static, name: &Path) -> Result<Gguf, GgufError> {
        let header = read_header(&source).map_err(|problem| GgufError::new(name, problem))?;
        let names = header.tensors.iter().map(|tensor| tensor.name.clone());
        let tensor_index = names.zip(0..).collect();
        Ok(Gguf { path: name.to_owned(), source: Box::new(source), header, tensor_index })
    }

    /// The path that the file was opened by, or the name that it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Tensor data begins at multiples of this.
    pub fn alignment(&self) -> u64 {
        self.header.alignment
    }

    /// All metadata in the order of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// `general.architecture`, such as `qwen2`.
    ///
    /// # Errors
    ///
    /// As [`Metadata::str`].
    pub fn architecture(&self) -> Result<&str, GgufError> {
        self.str("general.architecture")
    }

    /// As [`Metadata::str`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.with_path(self.metadata().str(key))
    }

    /// As [`Metadata::u32`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.with_path(self.metadata().u32(key))
    }

    /// As [`Metadata::u64`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.with_path(self.metadata().u64(key))
    }

    /// As [`Metadata::f32`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.with_path(self.metadata().f32(key))
    }

    /// As [`Metadata::bool`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.with_path(self.metadata().bool(key))
    }

    /// As [`Metadata::strings`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        self.with_path(self.metadata().strings(key))
    }

    /// As [`Metadata::byte_strings`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn byte_strings(&self, key: &str) -> Result<&ByteStrings, GgufError> {
        self.with_path(self.metadata().byte_strings(key))
    }

    /// As [`Metadata::u32s`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn u32s(&self, key: &str) -> Result<&[u32], GgufError> {
        self.with_path(self.metadata().u32s(key))
    }

    /// As [`Metadata::i32s`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn i32s(&self, key: &str) -> Result<&[i32], GgufError> {
        self.with_path(self.metadata().i32s(key))
    }

    /// As [`Metadata::f32s`].
    ///
    /// # Errors
    ///
    /// The same, with the path.
    pub fn f32s(&self, key: &str) -> Result<&[f32], GgufError> {
        self.with_path(self.metadata().f32s(key))
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&idx| &self.header.tensors[idx])
    }

    /// The tensor of that name.
    ///
    /// # Errors
    ///
    /// `MissingTensor`.
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.with_path(self.tensor(name).ok_or_else(|| Problem::MissingTensor { tensor: name.to_owned() }))
    }

    /// Where a tensor's data begins in the file.
    pub fn file_offset(&self, tensor: &TensorInfo) -> u64 {
        self.header.data_start + tensor.offset
    }

    /// All data of a tensor as it is stored. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `Io`; among others when the file has shrunk since it was opened, or with `OutOfMemory` where a tensor
    /// is larger than any memory of this machine.
    pub fn read_tensor(&self, tensor: &TensorInfo) -> Result<Vec<u8>, GgufError> {
        let too_large = |_| Problem::from(io::Error::from(io::ErrorKind::OutOfMemory));
        let size = self.with_path(usize::try_from(tensor.size_bytes).map_err(too_large))?;
        let mut bytes = vec![0; size];
        self.read_tensor_part(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes `start..start + out.len()` of a tensor's data. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `Io`; with `InvalidInput` when the range reaches beyond the tensor.
    pub fn read_tensor_part(&self, tensor: &TensorInfo, start: u64, out: &mut [u8]) -> Result<(), GgufError> {
        let inside = start.checked_add(out.len() as u64).is_some_and(|end| end <= tensor.size_bytes);
        let read = if inside {
            Forward::new(&*self.source, self.file_offset(tensor) + start).read_exact(out)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "the range reaches beyond the tensor"))
        };
        self.with_path(read.map_err(Problem::from))
    }

    fn with_path<T>(&self, result: Result<T, Problem>) -> Result<T, GgufError> {
        result.map_err(|problem| GgufError::new(&self.path, problem))
    }
}

#[cfg(unix)]
fn open(path: &Path) -> Result<std::fs::File, Problem> {
    // Asked before opening, because opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Problem::NotAFile);
    }
    Ok(std::fs::File::open(path)?)
}

fn read_header(source: &dyn ReadAt) -> Result<Header, Problem> {
    let size_bytes = source.size_bytes()?;
    Header::parse(BufReader::with_capacity(1 << 18, Forward::new(source, 0)), size_bytes)
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("entries", &self.header.metadata.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}
