//! A model to read from: a GGUF file, or a folder of Hugging Face's seen as one.

use std::path::Path;

use quern_gguf::{Gguf, Metadata, TensorInfo};

use crate::error::PipelineError;
use crate::hf;

/// A model's metadata and tensors, in GGUF's names and shapes. It may be shared by threads.
pub trait Source: Sync {
    /// Where it lies.
    fn path(&self) -> &Path;
    /// All metadata, the tokenizer's included.
    fn metadata(&self) -> &Metadata;
    /// All tensors; their offsets mean nothing.
    fn tensors(&self) -> &[TensorInfo];
    /// Reads bytes of a tensor's data from `start`. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// The disk refused, or the file has shrunk.
    fn read(&self, tensor_idx: usize, start: u64, out: &mut [u8]) -> Result<(), PipelineError>;
}

/// Opens a GGUF model, or a folder with `config.json`, safetensors and `tokenizer.json` of Qwen2, 2.5 or 3.
///
/// # Errors
///
/// Says what is wrong with the file or the folder.
pub fn open_source(path: &Path) -> Result<Box<dyn Source>, PipelineError> {
    if path.is_dir() {
        return Ok(Box::new(hf::Folder::open(path)?));
    }
    let gguf = quern_gguf::check(path)?;
    if let Ok("adapter") = gguf.str("general.type") {
        return Err(PipelineError::Wish(format!("{}: this is an adapter, not a model", path.display())));
    }
    Ok(Box::new(gguf))
}

impl Source for Gguf {
    fn path(&self) -> &Path {
        Gguf::path(self)
    }

    fn metadata(&self) -> &Metadata {
        Gguf::metadata(self)
    }

    fn tensors(&self) -> &[TensorInfo] {
        Gguf::tensors(self)
    }

    fn read(&self, tensor_idx: usize, start: u64, out: &mut [u8]) -> Result<(), PipelineError> {
        Ok(self.read_tensor_part(&Gguf::tensors(self)[tensor_idx], start, out)?)
    }
}
