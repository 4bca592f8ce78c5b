//! PEFT folder to GGUF LoRA, laid out as llama.cpp reads it.
//!
//! A file has one alpha, and llama.cpp multiplies each product with alpha / rank. Where rsLoRA or patterns
//! give a module another factor, the ratio is multiplied into its B matrix, so that the file means the same.

use std::fs::File;
use std::path::Path;

use quern_gguf::{Gguf, GgufError, GgufWriter, TensorStream, TensorType};

use crate::adapter::{Adapter, Module, Task};
use crate::codec::{Codec, Plain};
use crate::error::PipelineError;
use crate::lora_gguf::{ALPHA, BASE, TASK};
use crate::mix::FileType;

/// What a conversion did.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// How many modules the file has.
    pub num_modules: usize,
    /// The file's alpha.
    pub alpha: f32,
    /// How many modules carry a factor of their own in B.
    pub num_folded: usize,
    /// The size of the file.
    pub size_bytes: u64,
}

/// Writes the adapter as a GGUF LoRA. The file appears under its name only when it is whole. Matrices are
/// stored as F32, F16 or BF16. Blocks on the disk.
///
/// # Errors
///
/// A number is none or does not fit the type, or the disk refused.
pub fn convert(
    adapter: &Adapter,
    architecture: &str,
    file_type: FileType,
    out: &Path,
) -> Result<Converted, PipelineError> {
    let (alpha, num_folded) = write(adapter, architecture, file_type, out, |writer| writer.create(out))?;
    let error = |error| PipelineError::Io { path: out.to_owned(), error };
    let size_bytes = std::fs::metadata(out).map_err(error)?.len();
    Ok(Converted { num_modules: adapter.modules.len(), alpha, num_folded, size_bytes })
}

/// As [`convert`], into a file that is open and empty: one in memory, say. Blocks on the adapter's disk.
///
/// # Errors
///
/// As [`convert`].
pub fn convert_into(
    adapter: &Adapter,
    architecture: &str,
    file_type: FileType,
    out: &File,
) -> Result<Converted, PipelineError> {
    let name = &adapter.path;
    let io = |error| PipelineError::Io { path: name.clone(), error };
    let file = out.try_clone().map_err(io)?;
    let (alpha, num_folded) =
        write(adapter, architecture, file_type, name, |writer| writer.create_in(file, name))?;
    let size_bytes = out.metadata().map_err(io)?.len();
    Ok(Converted { num_modules: adapter.modules.len(), alpha, num_folded, size_bytes })
}

/// Writes what `begin` opens; `out` stands for it in errors. The alpha, and how many modules were folded.
fn write(
    adapter: &Adapter,
    architecture: &str,
    file_type: FileType,
    out: &Path,
    begin: impl FnOnce(GgufWriter) -> Result<TensorStream, GgufError>,
) -> Result<(f32, usize), PipelineError> {
    let kind = match file_type {
        FileType::F32 => TensorType::F32,
        FileType::F16 => TensorType::F16,
        FileType::Bf16 => TensorType::BF16,
        other => {
            return Err(PipelineError::Wish(format!("adapters are stored as F32, F16 or BF16, not {other}")));
        }
    };
    adapter.check_values()?;
    let alpha = common_alpha(&adapter.modules);
    let writer = header(adapter, architecture, file_type, kind, alpha);
    let writer = writer.map_err(|problem| GgufError { path: out.to_owned(), problem })?;
    let mut stream = begin(writer)?;
    let mut num_folded = 0;
    for module in &adapter.modules {
        let factor = factor(module, alpha);
        num_folded += usize::from(factor != 1.0);
        let a = encode(kind, &a_name(module), adapter.a(module)?, module.input)?;
        stream.write(&a_name(module), |out| out.write_all(&a))?;
        let mut b = adapter.b(module)?;
        b.iter_mut().for_each(|value| *value *= factor);
        let b = encode(kind, &b_name(module), b, module.rank)?;
        stream.write(&b_name(module), |out| out.write_all(&b))?;
    }
    stream.finish()?;
    Ok((alpha, num_folded))
}

/// The architecture that a converted file should name: the base's where one is given, else the adapter's
/// own, else what the name of its base tells.
///
/// # Errors
///
/// `Wish` when nothing tells.
pub fn architecture_of(adapter: &Adapter, base: Option<&Gguf>) -> Result<String, PipelineError> {
    if let Some(base) = base {
        return Ok(base.architecture()?.to_owned());
    }
    if let Some(own) = &adapter.architecture {
        return Ok(own.clone());
    }
    let name = adapter.base_name.as_deref().unwrap_or_default().to_lowercase();
    match ["qwen3", "qwen2"].into_iter().find(|arch| name.contains(arch)) {
        Some(arch) => Ok(arch.into()),
        None => Err(PipelineError::Wish(format!(
            "the adapter does not tell its base's architecture ({name:?}); name the base with --base"
        ))),
    }
}

fn header(
    adapter: &Adapter,
    architecture: &str,
    file_type: FileType,
    kind: TensorType,
    alpha: f32,
) -> Result<GgufWriter, quern_gguf::Problem> {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", architecture)?;
    writer.set("general.type", "adapter")?;
    writer.set("adapter.type", "lora")?;
    if let Some(name) = adapter.path.file_stem().and_then(|name| name.to_str()) {
        writer.set("general.name", name)?;
    }
    writer.set("general.file_type", file_type.number())?;
    writer.set(ALPHA, alpha)?;
    if let Some(base) = &adapter.base_name {
        writer.set(BASE, base.as_str())?;
    }
    let task = match adapter.task {
        Task::CausalLm => "CAUSAL_LM",
        Task::SequenceClassification => "SEQ_CLS",
        Task::FeatureExtraction => "FEATURE_EXTRACTION",
    };
    writer.set(TASK, task)?;
    for (key, value) in adapter.head.iter().flat_map(|head| head.entries()) {
        writer.set(key, value)?;
    }
    for module in &adapter.modules {
        writer.tensor(&a_name(module), &[module.input, module.rank], kind)?;
        writer.tensor(&b_name(module), &[module.rank, module.output], kind)?;
    }
    Ok(writer)
}

/// The alpha under which most modules need no factor of their own.
fn common_alpha(modules: &[Module]) -> f32 {
    let wanted: Vec<f32> = modules.iter().map(|module| (module.scale * module.rank as f64) as f32).collect();
    let votes = |alpha: &&f32| wanted.iter().filter(|other| other == alpha).count();
    wanted.iter().rev().max_by_key(votes).copied().unwrap_or(1.0)
}

fn factor(module: &Module, alpha: f32) -> f32 {
    let wanted = module.scale * module.rank as f64;
    if wanted as f32 == alpha { 1.0 } else { (wanted / f64::from(alpha)) as f32 }
}

fn encode(kind: TensorType, name: &str, values: Vec<f32>, row_len: u64) -> Result<Vec<u8>, PipelineError> {
    let mut bytes = vec![0; values.len() * kind.block_bytes() as usize];
    Plain
        .encode(kind, &values, row_len as usize, None, &mut bytes)
        .map_err(|error| PipelineError::Codec { tensor: name.to_owned(), error })?;
    Ok(bytes)
}

fn a_name(module: &Module) -> String {
    format!("{}.lora_a", module.tensor)
}

fn b_name(module: &Module) -> String {
    format!("{}.lora_b", module.tensor)
}
