//! `quern-bench experiment`: questions on a node's settings, each answered by figures, a plot and a section.
//!
//! This is the one part of the program that knows Quern's command line: an experiment starts nodes with the settings
//! it compares (`node.rs`), asks them through the same client as any load, and has the node's other commands make and
//! judge files. Each experiment is one file here, a function from a [`Lab`] to [`Findings`]; `sheet.rs` holds
//! figures, `section.rs` writes what is left behind and `reading.rs` reads it, `chart.rs` draws.

mod arrivals;
mod attention;
mod batching;
mod by_length;
mod chart;
mod distillation;
mod hardware;
mod kv_cache;
mod lab;
mod load;
mod lora;
mod model_files;
mod operations;
mod policies;
mod profile;
mod pruning;
mod quality;
mod quantization;
pub mod reading;
pub(crate) mod section;
mod sheet;
mod speculative;
mod speed;
mod steps;
mod texts;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::machine::{Machine, now_utc};
use lab::{Lab, Wish};
use section::{Findings, Heading};

/// `quern-bench experiment`.
#[derive(Debug, Args)]
pub struct ExperimentArgs {
    /// What to find out.
    #[command(subcommand)]
    pub experiment: Experiment,
}

/// The experiments with their flags.
#[derive(Debug, Subcommand)]
pub enum Experiment {
    /// Prefill and decode against what the machine can do, a trace of steps and operations, memory and quality.
    Profile(Asked<profile::ProfileArgs>),
    /// Static batches, batches with a wait window, and continuous batching under the same arrivals.
    Batching(Asked<batching::BatchingArgs>),
    /// Every format of the pipeline: size, memory, speed, perplexity, accuracy.
    Quantization(Asked<quantization::QuantizationArgs>),
    /// An adapter served, merged, and quantised; changes between adapters; many of them in one process.
    Lora(Asked<lora::LoraArgs>),
    /// No cache, the cache in each of its formats, and beginnings shared or not, by length.
    KvCache(Asked<kv_cache::KvCacheArgs>),
    /// Guessing ahead by lookup and by a draft model.
    Speculative(Asked<speculative::SpeculativeArgs>),
    /// Flash attention on and off, by length.
    Attention(Asked<attention::AttentionArgs>),
    /// Policies on the same arrivals, on a real node and simulated.
    Policies(Asked<policies::PoliciesArgs>),
    /// Smaller models beside a big one, on the big one's labels.
    Distillation(Asked<distillation::DistillationArgs>),
    /// What this machine serves, how busy it is, and what that costs.
    Hardware(Asked<hardware::HardwareArgs>),
    /// The model without its smallest weights, by share: quality and speed.
    Pruning(Asked<pruning::PruningArgs>),
}

/// The experiments' names, which are also their folders'.
pub const NAMES: [&str; 11] = [
    profile::ABOUT.name,
    quantization::ABOUT.name,
    pruning::ABOUT.name,
    batching::ABOUT.name,
    kv_cache::ABOUT.name,
    attention::ABOUT.name,
    lora::ABOUT.name,
    speculative::ABOUT.name,
    distillation::ABOUT.name,
    hardware::ABOUT.name,
    policies::ABOUT.name,
];

/// An experiment's own flags, and those of all.
#[derive(Debug, Args)]
pub struct Asked<A: Args> {
    /// Its own.
    #[command(flatten)]
    pub own: A,
    /// Those of all.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every experiment.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// The program to measure; the one beside this program, or the one in PATH, without it.
    #[arg(long, value_name = "FILE")]
    pub quern: Option<PathBuf>,
    /// The model's GGUF file.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Results go to a folder in this one that has the experiment's name.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Be done in minutes: fewer rounds, levels and rows. Says so in the results.
    #[arg(long)]
    pub quick: bool,
    /// How often each setting is measured; 2 with --quick, else 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Threads of each node; all cores without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// A key of every node's configuration; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The text that perplexity is judged by; a short one of this program without it.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Labelled rows, columns text and label; a few of this program without it.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// The system's message before each labelled row.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
}

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It could not be made.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// What was left behind.
#[derive(Debug)]
pub struct Left {
    /// The folder with the results.
    pub folder: PathBuf,
    /// The section for people.
    pub markdown: String,
    /// Settings that failed, with the reasons.
    pub failed: Vec<String>,
}

/// Makes an experiment and leaves its results. Blocks until it is done.
///
/// # Errors
/// When the command line makes no sense, nothing could be measured, or results cannot be written. A setting that
/// fails is no error: it is told in the results.
pub fn run(args: ExperimentArgs, command_line: String) -> Result<Left, ExperimentError> {
    match args.experiment {
        Experiment::Batching(asked) => make(&batching::ABOUT, asked, command_line, batching::batching),
        Experiment::Quantization(asked) => {
            make(&quantization::ABOUT, asked, command_line, quantization::quantization)
        }
        Experiment::Lora(asked) => make(&lora::ABOUT, asked, command_line, lora::lora),
        Experiment::KvCache(asked) => make(&kv_cache::ABOUT, asked, command_line, kv_cache::kv_cache),
        Experiment::Speculative(asked) => {
            make(&speculative::ABOUT, asked, command_line, speculative::speculative)
        }
        Experiment::Attention(asked) => make(&attention::ABOUT, asked, command_line, attention::attention),
        Experiment::Profile(asked) => make(&profile::ABOUT, asked, command_line, profile::profile),
        Experiment::Policies(asked) => make(&policies::ABOUT, asked, command_line, policies::policies),
        Experiment::Distillation(asked) => {
            make(&distillation::ABOUT, asked, command_line, distillation::distillation)
        }
        Experiment::Hardware(asked) => make(&hardware::ABOUT, asked, command_line, hardware::hardware),
        Experiment::Pruning(asked) => make(&pruning::ABOUT, asked, command_line, pruning::pruning),
    }
}

/// What an experiment is called and asks.
struct About {
    name: &'static str,
    title: &'static str,
    question: &'static str,
}

fn make<A: Args>(
    about: &About,
    asked: Asked<A>,
    command_line: String,
    experiment: impl FnOnce(&Lab, &A) -> anyhow::Result<Findings>,
) -> Result<Left, ExperimentError> {
    let wish = wish_of(&asked.common).map_err(ExperimentError::Usage)?;
    let heading = |lab: &Lab| -> anyhow::Result<Heading> {
        Ok(Heading {
            name: about.name,
            title: about.title,
            question: about.question,
            date: now_utc(),
            command_line,
            versions: versions(lab)?,
            machine: Machine::read(),
            notes: notes(&lab.wish),
        })
    };
    let made = || -> anyhow::Result<Left> {
        let lab = Lab::new(wish, &asked.common.out)?;
        let heading = heading(&lab)?;
        let findings = experiment(&lab, &asked.own)?;
        let folder = section::write(&asked.common.out, &heading, &findings)?;
        let failed =
            findings.sheet.failed.iter().map(|failed| format!("{}: {}", failed.setting, failed.reason));
        let failed = failed.collect();
        Ok(Left { folder, markdown: section::markdown(&heading, &findings), failed })
    };
    made().map_err(ExperimentError::Failed)
}

fn wish_of(common: &CommonArgs) -> Result<Wish, String> {
    if !common.model.is_file() {
        return Err(format!("--model {}: there is no such file", common.model.display()));
    }
    for (flag, file) in [("--text", &common.text), ("--csv", &common.csv)] {
        if let Some(file) = file.as_ref().filter(|file| !file.is_file()) {
            return Err(format!("{flag} {}: there is no such file", file.display()));
        }
    }
    if let Some(pair) = common.set.iter().find(|pair| !pair.contains('=')) {
        return Err(format!("--set {pair}: write KEY=VALUE"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Wish {
        quern: common.quern.clone().unwrap_or_else(quern_nearby),
        model: common.model.clone(),
        is_quick: common.quick,
        rounds: common.rounds.map_or(if common.quick { 2 } else { 5 }, |rounds| rounds as usize),
        threads: common.threads.map_or(cores, |threads| threads as usize),
        set: common.set.clone(),
        text: common.text.clone(),
        csv: common.csv.clone(),
        system: common.system.clone(),
    })
}

/// The node's program beside this one, or its plain name for PATH.
fn quern_nearby() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("quern"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("quern"))
}

fn versions(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let quern = lab.quern(["--version"])?.trim().to_owned();
    Ok(vec![quern, format!("quern-bench {}", env!("CARGO_PKG_VERSION"))])
}

fn notes(wish: &Wish) -> Vec<String> {
    let name = wish.model.file_name().unwrap_or_default().to_string_lossy();
    let plural = if wish.rounds == 1 { "" } else { "s" };
    let mut notes =
        vec![format!("model file {name}, {} threads, {} round{plural}", wish.threads, wish.rounds)];
    if !wish.set.is_empty() {
        notes.push(format!("every node with {}", wish.set.join(", ")));
    }
    if wish.is_quick {
        notes.push("quick: few rounds, short texts and few rows; good for a first look only".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_is_named() {
        let command = ExperimentArgs::augment_args(clap::Command::new("experiment"));
        let mut commands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        let mut names = NAMES.to_vec();
        commands.sort_unstable();
        names.sort_unstable();
        assert_eq!(commands, names);
    }
}
