//! A model folder of Hugging Face's, seen as a GGUF model: `config.json`, one or many safetensors files,
//! and `tokenizer.json`.
//!
//! Only Qwen2, Qwen2.5 and Qwen3 are known, whose rows need no permutation. Matrices keep the type they
//! are stored in; vectors become F32, as llama.cpp wants them.

mod config;
mod tokenizer;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use quern_gguf::{Metadata, TensorInfo, TensorType};

use crate::codec::{Codec, Plain};
use crate::error::{Fault, PipelineError};
use crate::head::read_text;
use crate::names::gguf_of_hf;
use crate::safe_file::{Entry, SafeFile};
use crate::source::Source;

use config::Config;

/// A vocabulary of 150,000 tokens takes some 11 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// An open folder whose configuration, tensors and tokenizer were held against each other.
pub(crate) struct Folder {
    path: PathBuf,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// For each tensor the file and what that says about it.
    places: Vec<(usize, Entry)>,
    files: Vec<SafeFile>,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder, PipelineError> {
        let bad = |reason: String| PipelineError::Folder { path: path.to_owned(), reason };
        let text = text(path, "config.json")?.ok_or_else(|| bad("it has no config.json".into()))?;
        let config = Config::parse(&text).map_err(&bad)?;
        let files = files(path)?;
        let mut folder = Folder {
            path: path.to_owned(),
            metadata: Metadata::new(),
            tensors: vec![],
            places: vec![],
            files,
        };
        folder.collect(&config).map_err(&bad)?;
        config.check(&folder.tensors).map_err(&bad)?;

        let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
        let entries = config.entries(&name).into_iter();
        let entries = entries.chain(tokenizer::entries(path, &config, MAX_TEXT_BYTES).map_err(&bad)?);
        for (key, value) in entries {
            folder.metadata.insert(&key, value).map_err(|problem| bad(problem.to_string()))?;
        }
        Ok(folder)
    }

    /// Gives every tensor its name and type in GGUF, in the order of a model: the embedding, the layers,
    /// the rest.
    fn collect(&mut self, config: &Config) -> Result<(), String> {
        let mut found: BTreeMap<(u32, String), (usize, Entry)> = BTreeMap::new();
        for (file_idx, file) in self.files.iter().enumerate() {
            for entry in file.entries() {
                let name = gguf_of_hf(&entry.name);
                let name = name.ok_or_else(|| format!("the tensor {:?} is not known", entry.name))?;
                // A tied output matrix is the embedding once more.
                if config.tied && name == "output.weight" {
                    continue;
                }
                let layer = crate::names::layer_of(&name).map_or(u32::MAX, |layer_idx| layer_idx + 1);
                let order = if name == "token_embd.weight" { 0 } else { layer };
                if found.insert((order, name.clone()), (file_idx, entry.clone())).is_some() {
                    return Err(format!("the tensor {name} is there twice"));
                }
            }
        }
        for ((_, name), (file_idx, entry)) in found {
            let stored = entry.kind.ok_or_else(|| {
                format!(
                    "the tensor {:?} is stored as {}; F32, F16 and BF16 can be read",
                    entry.name, entry.kind_name
                )
            })?;
            let shape: Vec<u64> = entry.shape.iter().rev().copied().collect();
            let kind = if shape.len() < 2 { TensorType::F32 } else { stored };
            let size_bytes = kind.size_bytes(&shape).map_err(|reason| {
                format!("the tensor {:?} has the shape {:?}: {reason}", entry.name, entry.shape)
            })?;
            self.tensors.push(TensorInfo { name, shape, kind, offset: 0, size_bytes });
            self.places.push((file_idx, entry));
        }
        Ok(())
    }
}

impl Source for Folder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, tensor_idx: usize, start: u64, out: &mut [u8]) -> Result<(), PipelineError> {
        let (tensor, (file_idx, entry)) = (&self.tensors[tensor_idx], &self.places[tensor_idx]);
        let file = &self.files[*file_idx];
        let io = |error| PipelineError::Io { path: file.path().to_owned(), error };
        let stored = entry.kind.expect("tensors of other types were refused when the folder was opened");
        if stored == tensor.kind {
            return file.read_at(entry.start + start, out).map_err(io);
        }
        // A vector in half precision: read it as F32.
        let element_bytes = stored.block_bytes();
        let mut bytes = vec![0; out.len() / 4 * element_bytes as usize];
        file.read_at(entry.start + start / 4 * element_bytes, &mut bytes).map_err(io)?;
        let mut values = vec![0.0; out.len() / 4];
        let codec = |error| PipelineError::Codec { tensor: tensor.name.clone(), error };
        Plain.decode(stored, &bytes, &mut values).map_err(codec)?;
        out.chunks_exact_mut(4)
            .zip(values)
            .for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()));
        Ok(())
    }
}

/// The files that the index names, or the only one.
fn files(folder: &Path) -> Result<Vec<SafeFile>, PipelineError> {
    let bad = |reason: String| PipelineError::Folder { path: folder.to_owned(), reason };
    let index = text(folder, "model.safetensors.index.json")?;
    let names: HashSet<String> = match index {
        None => HashSet::from(["model.safetensors".into()]),
        Some(index) => {
            let wrong = |error: &dyn std::fmt::Display| bad(format!("model.safetensors.index.json: {error}"));
            let index: serde_json::Value = serde_json::from_slice(&index).map_err(|error| wrong(&error))?;
            let map = index.get("weight_map").and_then(serde_json::Value::as_object);
            let map = map.ok_or_else(|| wrong(&"it has no object weight_map"))?;
            map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        }
    };
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    let open = |name: &String| {
        // An index comes from the same stranger as the tensors: it names files, not paths.
        if name.contains('/') || name.contains('\\') || name.starts_with('.') {
            return Err(bad(format!(
                "model.safetensors.index.json names {name:?}, which is no file of the folder"
            )));
        }
        SafeFile::open(&folder.join(name)).map_err(|fault| bad(format!("{name}: {fault}")))
    };
    names.iter().map(open).collect()
}

/// Reads a small file; none where there is none.
fn text(folder: &Path, file: &'static str) -> Result<Option<Vec<u8>>, PipelineError> {
    let bad = |fault: Fault| PipelineError::Folder { path: folder.to_owned(), reason: fault.to_string() };
    read_text(folder, file, MAX_TEXT_BYTES).map_err(bad)
}
