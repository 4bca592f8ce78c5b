//! What an adapter is: pairs of matrices for modules of a base, and at times a classification head.
//!
//! It holds its files open: one that is replaced under its name stays readable, one that is cut gives an
//! error at the next read.

use std::path::{Path, PathBuf};

use quern_gguf::{Gguf, TensorType};

use crate::codec::{Codec, Plain};
use crate::error::{AdapterError, Fault, SafeFault};
use crate::head::Head;
use crate::names::Place;
use crate::safe_file::SafeFile;
use crate::{lora_gguf, peft};

/// What an adapter is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder as PEFT saves it.
    Peft,
    /// A GGUF file of the type `adapter`.
    Gguf,
}

/// What an adapter was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To go on with text.
    CausalLm,
    /// To choose a label by its head.
    SequenceClassification,
    /// To make embeddings.
    FeatureExtraction,
}

/// One module of the base that the adapter changes: `W + scale * B * A`.
#[derive(Clone, Debug)]
pub struct Module {
    /// The base's tensor, in GGUF's names: `blk.0.attn_q.weight`.
    pub tensor: String,
    /// The layer; none for the LM head.
    pub layer_idx: Option<u32>,
    /// What PEFT calls it: `q_proj`.
    pub target: &'static str,
    /// The inner dimension of the pair.
    pub rank: u64,
    /// The alpha that it was trained with; 0 where a file gives none and the scale is 1.
    pub alpha: f64,
    /// What the product is multiplied with, rsLoRA and patterns considered.
    pub scale: f64,
    /// The length of the base's rows.
    pub input: u64,
    /// The number of the base's rows.
    pub output: u64,
    /// `[rank, input]`, row-major.
    pub(crate) a: Stored,
    /// `[output, rank]`, row-major.
    pub(crate) b: Stored,
}

/// A matrix in the adapter's file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub name: String,
    pub kind: TensorType,
    /// Where it begins in a safetensors file; a GGUF file is asked by name.
    pub start: u64,
    pub size_bytes: u64,
    pub rows: u64,
    pub cols: u64,
}

/// The open file that the matrices lie in.
#[derive(Debug)]
pub(crate) enum Weights {
    Safe(SafeFile),
    Gguf(Gguf),
}

/// An adapter whose structure was found sound when it was opened. It may be shared by threads.
#[derive(Debug)]
pub struct Adapter {
    /// The folder or file.
    pub path: PathBuf,
    /// What it is stored as.
    pub format: Format,
    /// What it was trained for.
    pub task: Task,
    /// `general.architecture` of the base, where the file gives it.
    pub architecture: Option<String>,
    /// What it says it was trained on.
    pub base_name: Option<String>,
    /// Whether its scales are alpha / sqrt(rank).
    pub rs_lora: bool,
    /// The modules, by layer and then in a fixed order.
    pub modules: Vec<Module>,
    /// The head of a classification adapter.
    pub head: Option<Head>,
    /// Whether it was trained on every layer of its base.
    pub on_every_layer: bool,
    /// The size of its weights' file.
    pub size_bytes: u64,
    pub(crate) weights: Weights,
}

impl Adapter {
    /// Opens a PEFT folder or a GGUF LoRA and checks its whole structure; of the numbers only the head is
    /// read, see [`Adapter::check_values`]. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, see [`Fault`].
    pub fn open(path: &Path) -> Result<Adapter, AdapterError> {
        let opened = match std::fs::metadata(path) {
            Err(error) => Err(Fault::Io(error)),
            Ok(found) if found.is_dir() => peft::open(path),
            Ok(found) if found.is_file() => lora_gguf::open(path),
            Ok(_) => Err(Fault::NotAnAdapter),
        };
        opened.map_err(|fault| AdapterError::new(path, fault))
    }

    /// The module that changes the base's tensor of that name.
    pub fn module(&self, tensor: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.tensor == tensor)
    }

    /// The A matrix of a module: `[rank, input]`, f32, row-major. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `Io`, when the file was cut since it was opened.
    pub fn a(&self, module: &Module) -> Result<Vec<f32>, AdapterError> {
        self.weights.values(&module.a).map_err(|fault| AdapterError::new(&self.path, fault))
    }

    /// The B matrix of a module: `[output, rank]`, f32, row-major. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// As [`Adapter::a`].
    pub fn b(&self, module: &Module) -> Result<Vec<f32>, AdapterError> {
        self.weights.values(&module.b).map_err(|fault| AdapterError::new(&self.path, fault))
    }

    /// Reads every number and finds those that are none. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `NotFinite`, or as [`Adapter::a`].
    pub fn check_values(&self) -> Result<(), AdapterError> {
        let matrices = self.modules.iter().flat_map(|module| [&module.a, &module.b]);
        for stored in matrices {
            let values = self.weights.values(stored).map_err(|fault| AdapterError::new(&self.path, fault))?;
            check_finite(&stored.name, &values).map_err(|fault| AdapterError::new(&self.path, fault))?;
        }
        Ok(())
    }
}

impl Weights {
    pub(crate) fn values(&self, stored: &Stored) -> Result<Vec<f32>, Fault> {
        let mut bytes = vec![0; stored.size_bytes as usize];
        match self {
            Weights::Safe(file) => file.read_at(stored.start, &mut bytes).map_err(SafeFault::Io)?,
            Weights::Gguf(gguf) => {
                gguf.read_tensor_part(gguf.require_tensor(&stored.name)?, 0, &mut bytes)?;
            }
        }
        let mut values = vec![0.0; (stored.rows * stored.cols) as usize];
        let bad_type = |_| Fault::BadType { tensor: stored.name.clone(), found: stored.kind.to_string() };
        Plain.decode(stored.kind, &bytes, &mut values).map_err(bad_type)?;
        Ok(values)
    }
}

/// Finds the first number that is none.
pub(crate) fn check_finite(tensor: &str, values: &[f32]) -> Result<(), Fault> {
    let Some(element_idx) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let found = if values[element_idx].is_nan() { "a NaN" } else { "an infinity" };
    Err(Fault::NotFinite { tensor: tensor.to_owned(), found, element_idx: element_idx as u64 })
}

/// The halves of the pairs that were met so far, by place.
#[derive(Default)]
pub(crate) struct Pairs(std::collections::BTreeMap<Place, (Option<Stored>, Option<Stored>)>);

impl Pairs {
    pub(crate) fn add(&mut self, place: Place, is_a: bool, stored: Stored) -> Result<(), Fault> {
        let pair = self.0.entry(place).or_default();
        let (half, which) = if is_a { (&mut pair.0, "A") } else { (&mut pair.1, "B") };
        match half.replace(stored) {
            None => Ok(()),
            Some(_) => Err(Fault::TwiceDefined { module: place.gguf(), which }),
        }
    }

    /// Makes modules of whole pairs; `numbers` gives a place's alpha and scale for a rank, or refuses it.
    pub(crate) fn modules(
        self,
        numbers: impl Fn(Place, u64) -> Result<(f64, f64), Fault>,
    ) -> Result<Vec<Module>, Fault> {
        if self.0.is_empty() {
            return Err(Fault::Empty);
        }
        let module = |(place, pair): (Place, (Option<Stored>, Option<Stored>))| {
            let tensor = place.gguf();
            let half = |found, missing| Fault::MissingHalf { module: tensor.clone(), found, missing };
            let (a, b) = match pair {
                (Some(a), Some(b)) => (a, b),
                (Some(_), None) => return Err(half("A", "B")),
                _ => return Err(half("B", "A")),
            };
            if a.rows != b.cols {
                let (shape, reason) = (vec![b.rows, b.cols], "not [rows, rank] for the rank of its A");
                return Err(Fault::BadShape { module: tensor, which: "B", shape, reason });
            }
            let rank = a.rows;
            let (alpha, scale) = numbers(place, rank)?;
            let (input, output) = (a.cols, b.rows);
            let (layer_idx, target) = (place.layer_idx, place.target());
            Ok(Module { tensor, layer_idx, target, rank, alpha, scale, input, output, a, b })
        };
        self.0.into_iter().map(module).collect()
    }
}

/// Checks that a shape, outermost dimension first, is a matrix of a size that a LoRA may have.
pub(crate) fn matrix(module: &str, which: &'static str, shape: &[u64]) -> Result<(u64, u64), Fault> {
    const MAX_DIM: u64 = 1 << 24;
    let bad = |reason| Fault::BadShape { module: module.to_owned(), which, shape: shape.to_vec(), reason };
    match *shape {
        [0, _] | [_, 0] => Err(bad("empty")),
        [rows, cols] if rows > MAX_DIM || cols > MAX_DIM => Err(bad("larger than any real one")),
        [rows, cols] => Ok((rows, cols)),
        _ => Err(bad("not a matrix")),
    }
}
