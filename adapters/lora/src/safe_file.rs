//! A safetensors file: a checked header, and data by positioned reads.
//!
//! The header's rules are those of the `safetensors` crate; this file holds its length against the file
//! before reading it, and its promises against the file's size, without mapping or reading the data.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use quern_gguf::TensorType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::SafeFault;

/// A model of 100 layers has a header of about 200 KiB.
const MAX_HEADER_BYTES: u64 = 32 << 20;

/// What the header says about one tensor; the range was held against the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
    /// How its elements are stored, where that is a type that we read.
    pub kind: Option<TensorType>,
    /// What the file calls the type.
    pub kind_name: String,
    /// Where its data begins in the file.
    pub start: u64,
    /// How many bytes it takes.
    pub size_bytes: u64,
}

/// Everything that a header says, tensors in the order of their data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensors.
    pub entries: Vec<Entry>,
}

/// An open safetensors file whose header was found sound. It may be shared by threads.
#[derive(Debug)]
pub struct SafeFile {
    path: PathBuf,
    file: File,
    layout: Layout,
}

impl Layout {
    /// Reads the header of a file of `size_bytes` and checks it: tensors follow each other without gap or
    /// overlap, their sizes follow from shapes and types, and they end where the file does.
    ///
    /// # Errors
    ///
    /// The first fault that was met.
    pub fn parse(mut reader: impl Read, size_bytes: u64) -> Result<Layout, SafeFault> {
        let mut length = [0; 8];
        if size_bytes < 8 {
            return Err(SafeFault::EndsInHeader { size_bytes, needed_bytes: 8 });
        }
        reader.read_exact(&mut length)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(SafeFault::HeaderTooLarge { size_bytes: header_bytes, limit: MAX_HEADER_BYTES });
        }
        let data_start = 8 + header_bytes;
        if data_start > size_bytes {
            return Err(SafeFault::EndsInHeader { size_bytes, needed_bytes: data_start });
        }
        let mut header = vec![0; header_bytes as usize];
        reader.read_exact(&mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| SafeFault::BadHeader { reason: error.to_string() })?;

        let names = metadata.offset_keys();
        let found = names.into_iter().filter_map(|name| metadata.info(&name).map(|info| (name, info)));
        let entries = found.map(|(name, info)| {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            Entry {
                name,
                shape: info.shape.iter().map(|&dim| dim as u64).collect(),
                kind: kind(info.dtype),
                kind_name: format!("{:?}", info.dtype),
                start: data_start.saturating_add(start),
                size_bytes: end - start,
            }
        });
        let entries: Vec<Entry> = entries.collect();
        let data_bytes = entries.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.size_bytes));
        let needed_bytes = data_bytes.and_then(|bytes| bytes.checked_add(data_start)).unwrap_or(u64::MAX);
        if needed_bytes != size_bytes {
            return Err(SafeFault::WrongSize { size_bytes, needed_bytes });
        }
        Ok(Layout { entries })
    }
}

impl SafeFile {
    /// Opens a file and checks its header. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file.
    pub fn open(path: &Path) -> Result<SafeFile, SafeFault> {
        // Asked before opening, because opening a pipe would wait for its other end.
        if !fs::metadata(path)?.is_file() {
            return Err(SafeFault::NotAFile);
        }
        let file = File::open(path)?;
        let size_bytes = file.metadata()?.len();
        let layout = Layout::parse(&file, size_bytes)?;
        Ok(SafeFile { path: path.to_owned(), file, layout })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors.
    pub fn entries(&self) -> &[Entry] {
        &self.layout.entries
    }

    /// Reads the bytes of the file from `start`. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `Io`, with `UnexpectedEof` when the file has shrunk since it was opened.
    pub fn read_at(&self, start: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(out, start)
    }
}

fn kind(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::BF16),
        _ => None,
    }
}
