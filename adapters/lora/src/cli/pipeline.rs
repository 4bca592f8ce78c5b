//! `quern adapter convert`, `quern adapter merge`, `quern quantize` and `quern prune`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapter::Adapter;
use crate::codec::Codec;
use crate::convert::architecture_of;
use crate::error::PipelineError;
use crate::importance::Importance;
use crate::merge::{Merge, Part};
use crate::mix::FileType;
use crate::prune::{Prune, Scope};
use crate::rewrite::{Change, Progress, Summary, Types, Unchanged, rewrite};
use crate::source::{Source, open_source};

use super::{Outcome, adapter_error, mebibytes};

/// `quern adapter convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A PEFT folder.
    pub adapter: PathBuf,
    /// The GGUF file to write.
    pub out: PathBuf,
    /// F32, F16 or BF16.
    #[arg(long = "type", value_name = "TYPE", default_value = "F32")]
    pub file_type: FileType,
    /// The model that it is for, a GGUF file; says the architecture, and that the adapter fits.
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
}

/// `quern adapter merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// A GGUF model, or a folder of Hugging Face's with Qwen2, 2.5 or 3.
    pub base: PathBuf,
    /// Adapters, each with a weight if it is not 1: PATH or PATH=WEIGHT.
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// The GGUF file to write.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// What to store it as: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M or Q2_K.
    #[arg(long = "type", value_name = "TYPE", default_value = "BF16")]
    pub file_type: FileType,
    /// An importance matrix, as llama.cpp writes it.
    #[arg(long, value_name = "FILE")]
    pub importance: Option<PathBuf>,
    /// Leave classification heads behind.
    #[arg(long)]
    pub without_head: bool,
}

/// `quern quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A GGUF model, or a folder of Hugging Face's with Qwen2, 2.5 or 3.
    pub model: PathBuf,
    /// The GGUF file to write.
    pub out: PathBuf,
    /// What to store it as: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M or Q2_K.
    #[arg(value_name = "TYPE")]
    pub file_type: FileType,
    /// An importance matrix, as `quern importance` or llama.cpp writes it.
    #[arg(long, value_name = "FILE")]
    pub importance: Option<PathBuf>,
    /// Measure the importance matrix on this text; some 25,000 tokens of what the model will read do.
    #[arg(long, value_name = "FILE", conflicts_with = "importance")]
    pub calibration_text: Option<PathBuf>,
    /// Read no more than so many pieces of 512 tokens of the calibration text.
    #[arg(long, value_name = "N", requires = "calibration_text", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub calibration_chunks: u32,
}

/// Measures the importance matrix of a GGUF model on a text, of which it reads so many pieces at most. Comes
/// from the binary, which alone knows engines; says in words what went wrong.
pub type Measure<'a> = dyn Fn(&Path, &Path, u32) -> Result<Importance, String> + 'a;

/// `quern prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// A GGUF model, or a folder of Hugging Face's with Qwen2, 2.5 or 3.
    pub model: PathBuf,
    /// The GGUF file to write.
    pub out: PathBuf,
    /// How many of the layers' weights become 0: 0.3 is three in ten.
    #[arg(long, value_name = "SHARE")]
    pub fraction: f64,
    /// Among which weights the smallest are sought.
    #[arg(long, value_enum, default_value = "global")]
    pub by: By,
    /// What to store it as; each tensor as it was without it. Block types with minima, such as Q4_K, keep
    /// zeros only about.
    #[arg(long = "type", value_name = "TYPE")]
    pub file_type: Option<FileType>,
}

/// Among which weights the smallest are sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// All layers together.
    Global,
    /// Each layer by itself.
    Layer,
    /// Each matrix by itself.
    Tensor,
}

pub(super) fn convert(args: &ConvertArgs) -> Result<Outcome, PipelineError> {
    let adapter = Adapter::open(&args.adapter).map_err(adapter_error)?;
    let base = args.base.as_deref().map(quern_gguf::check).transpose()?;
    let arch = architecture_of(&adapter, base.as_ref())?;
    if let Some(base) = &base {
        let mismatches = crate::base::check_base(&adapter, &arch, base.tensors());
        if !mismatches.is_empty() {
            return Err(PipelineError::NotServable { adapter: args.adapter.clone(), mismatches });
        }
    }
    let done = crate::convert::convert(&adapter, &arch, args.file_type, &args.out)?;
    println!("{}: {} modules, {}", args.out.display(), done.num_modules, mebibytes(done.size_bytes));
    if done.num_folded > 0 {
        println!("{} modules have a scale of their own, which their B carries", done.num_folded);
    }
    Ok(Outcome::Well)
}

pub(super) fn merge(args: &MergeArgs, codec: &dyn Codec) -> Result<Outcome, PipelineError> {
    let source = open_source(&args.base)?;
    let parts: Vec<Part> = args.adapters.iter().map(|text| part(text)).collect::<Result<_, _>>()?;
    let mut change = Merge::new(source.as_ref(), parts, !args.without_head)?;
    let importance = args.importance.as_deref().map(Importance::read).transpose()?;
    let types = Types::Of(args.file_type, importance.as_ref());
    write(source.as_ref(), &mut change, types, codec, &args.out)
}

pub(super) fn quantize(
    args: &QuantizeArgs,
    codec: &dyn Codec,
    measure: &Measure<'_>,
) -> Result<Outcome, PipelineError> {
    let source = open_source(&args.model)?;
    let importance = match (&args.importance, &args.calibration_text) {
        (Some(file), _) => Some(Importance::read(file)?),
        (None, Some(text)) => Some(measured(args, text, source.as_ref(), codec, measure)?),
        (None, None) => None,
    };
    let types = Types::Of(args.file_type, importance.as_ref());
    write(source.as_ref(), &mut Unchanged, types, codec, &args.out)
}

pub(super) fn prune(args: &PruneArgs, codec: &dyn Codec) -> Result<Outcome, PipelineError> {
    let source = open_source(&args.model)?;
    let scope = match args.by {
        By::Global => Scope::Global,
        By::Layer => Scope::Layer,
        By::Tensor => Scope::Tensor,
    };
    let bar = bar("seeking the smallest weights");
    let mut change = Prune::plan(source.as_ref(), args.fraction, scope, codec, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let types = args.file_type.map_or(Types::Kept, |file_type| Types::Of(file_type, None));
    write(source.as_ref(), &mut change, types, codec, &args.out)
}

/// Measures on the model itself; one of Hugging Face's becomes a GGUF file beside the new one for so long.
fn measured(
    args: &QuantizeArgs,
    text: &Path,
    source: &dyn Source,
    codec: &dyn Codec,
    measure: &Measure<'_>,
) -> Result<Importance, PipelineError> {
    let told = |reason| PipelineError::Calibration { text: text.to_owned(), reason };
    if args.model.is_file() {
        return measure(&args.model, text, args.calibration_chunks).map_err(told);
    }
    let beside = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |error| PipelineError::Io { path: beside.to_owned(), error };
    let folder = tempfile::Builder::new().prefix(".calibration-").tempdir_in(beside).map_err(io)?;
    let model = folder.path().join("model.gguf");
    rewrite(source, &mut Unchanged, Types::Of(FileType::Bf16, None), codec, &model, &mut |_| {})?;
    measure(&model, text, args.calibration_chunks).map_err(told)
}

/// An adapter with its weight. A path that exists is taken whole, whatever signs it has.
fn part(text: &str) -> Result<Part, PipelineError> {
    let (path, weight) = match text.rsplit_once('=') {
        Some((path, weight)) if !Path::new(text).exists() => {
            let weight: Result<f32, _> = weight.parse();
            (path, weight.map_err(|_| PipelineError::Wish(format!("{text}: the weight is no number")))?)
        }
        _ => (text, 1.0),
    };
    let adapter = Adapter::open(Path::new(path)).map_err(adapter_error)?;
    Ok(Part { adapter, weight })
}

fn write(
    source: &dyn Source,
    change: &mut dyn Change,
    types: Types<'_>,
    codec: &dyn Codec,
    out: &Path,
) -> Result<Outcome, PipelineError> {
    let bar = bar("");
    let summary = rewrite(source, change, types, codec, out, &mut |progress: Progress<'_>| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(progress.tensor.to_owned());
    })?;
    bar.finish_and_clear();
    print(&summary, out);
    Ok(Outcome::Well)
}

fn print(summary: &Summary, out: &Path) {
    let (before, after) = (mebibytes(summary.bytes_before), mebibytes(summary.bytes_after));
    let (num_encoded, num_tensors) = (summary.num_encoded, summary.num_tensors);
    println!(
        "{}: {before} became {after}, {num_encoded} of {num_tensors} tensors written anew",
        out.display()
    );
    if summary.num_requantised > 0 {
        println!("{} of them were quantised before and have lost accuracy twice", summary.num_requantised);
    }
}

/// Drawn only on a terminal.
fn bar(message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta:>4}  {msg}");
    let style = style.expect("the template is sound");
    ProgressBar::new(0).with_style(style).with_message(message)
}
