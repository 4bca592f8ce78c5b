//! The commands: `quern adapter inspect|convert|merge`, `quern quantize`, `quern prune`.
//!
//! Each command is a file of its own; the arguments say what can be typed, the functions below do it. The
//! codec comes from the binary, which alone knows ggml.

mod inspect;
mod pipeline;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::codec::Codec;
use crate::error::{AdapterError, PipelineError};

pub use inspect::{InspectArgs, Report, report};
pub use pipeline::{By, ConvertArgs, Measure, MergeArgs, PruneArgs, QuantizeArgs};

/// `quern adapter`.
#[derive(Debug, Args)]
pub struct AdapterArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AdapterCommand,
}

/// What can be done with adapters.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Say what an adapter is and whether a base can serve it.
    Inspect(InspectArgs),
    /// Make a GGUF LoRA of a PEFT folder.
    Convert(ConvertArgs),
    /// Merge adapters into a base.
    Merge(MergeArgs),
}

/// Runs `quern adapter`; what it has to say goes to standard output. The exit code is 0 if all is well, 1
/// if something is wrong with a file or with the machine, and 64 if the command makes no sense.
#[must_use]
pub fn adapter(args: &AdapterArgs, codec: &dyn Codec) -> ExitCode {
    ended(match &args.command {
        AdapterCommand::Inspect(args) => inspect::run(args),
        AdapterCommand::Convert(args) => pipeline::convert(args),
        AdapterCommand::Merge(args) => pipeline::merge(args, codec),
    })
}

/// Runs `quern quantize`, as [`adapter`]; `measure` is asked where a calibration text is given.
#[must_use]
pub fn quantize(args: &QuantizeArgs, codec: &dyn Codec, measure: &Measure<'_>) -> ExitCode {
    ended(pipeline::quantize(args, codec, measure))
}

/// Runs `quern prune`, as [`adapter`].
#[must_use]
pub fn prune(args: &PruneArgs, codec: &dyn Codec) -> ExitCode {
    ended(pipeline::prune(args, codec))
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Well,
    Wrong,
}

fn ended(done: Result<Outcome, PipelineError>) -> ExitCode {
    match done {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, PipelineError::Wish(_)) { 64 } else { 1 })
        }
    }
}

/// Sizes as people read them.
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn adapter_error(error: AdapterError) -> PipelineError {
    PipelineError::Adapter(error)
}
