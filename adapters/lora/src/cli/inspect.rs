//! `quern adapter inspect`: what an adapter is, and whether a base can serve it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::adapter::{Adapter, Format, Task};
use crate::base::check_base;
use crate::error::PipelineError;
use crate::source::{Source, open_source};

use super::{Outcome, adapter_error, mebibytes};

/// `quern adapter inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A PEFT folder or a GGUF LoRA.
    pub adapter: PathBuf,
    /// A GGUF model, or a folder of Hugging Face's, that should serve it.
    #[arg(long, value_name = "PATH")]
    pub base: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What an adapter is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `PEFT folder` or `GGUF`.
    pub format: &'static str,
    /// What it was trained for.
    pub task: &'static str,
    /// What it says it was trained on.
    pub base_name: Option<String>,
    /// The base's architecture, where the adapter gives it.
    pub architecture: Option<String>,
    /// Rank and alpha of the modules, with how many have them.
    pub ranks: Vec<RankAndAlpha>,
    /// Whether its scales are alpha / sqrt(rank).
    pub rs_lora: bool,
    /// For each target the number of layers.
    pub targets: BTreeMap<&'static str, usize>,
    /// The head's labels; none without a head.
    pub labels: Option<Vec<String>>,
    /// Numbers in all pairs of matrices.
    pub num_parameters: u64,
    /// The size of its weights' file.
    pub size_bytes: u64,
    /// Whether the base can serve it; none where no base was named.
    pub servable: Option<bool>,
    /// Why it cannot.
    pub reasons: Vec<String>,
}

/// A rank and an alpha, and how many modules have them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankAndAlpha {
    /// The inner dimension of the pairs.
    pub rank: u64,
    /// The alpha.
    pub alpha: f64,
    /// How many modules have both.
    pub num_modules: usize,
}

/// Says what an adapter is, with every number checked, and whether the base can serve it.
///
/// # Errors
///
/// What is wrong with the adapter.
pub fn report(adapter: &Adapter, base: Option<&dyn Source>) -> Result<Report, PipelineError> {
    adapter.check_values()?;
    let mut ranks: Vec<RankAndAlpha> = Vec::new();
    let mut targets = BTreeMap::new();
    for module in &adapter.modules {
        let (rank, alpha) = (module.rank, module.alpha);
        *targets.entry(module.target).or_insert(0) += 1;
        match ranks.iter_mut().find(|known| known.rank == rank && known.alpha == alpha) {
            Some(known) => known.num_modules += 1,
            None => ranks.push(RankAndAlpha { rank, alpha, num_modules: 1 }),
        }
    }
    let reasons: Option<Vec<String>> = match base {
        None => None,
        Some(base) => {
            let wrong = |problem| PipelineError::Wish(format!("{}: {problem}", base.path().display()));
            let arch = base.metadata().str("general.architecture").map_err(wrong)?;
            let mismatches = check_base(adapter, arch, base.tensors());
            Some(mismatches.iter().map(ToString::to_string).collect())
        }
    };
    Ok(Report {
        format: match adapter.format {
            Format::Peft => "PEFT folder",
            Format::Gguf => "GGUF",
        },
        task: match adapter.task {
            Task::CausalLm => "causal LM",
            Task::SequenceClassification => "sequence classification",
            Task::FeatureExtraction => "feature extraction",
        },
        base_name: adapter.base_name.clone(),
        architecture: adapter.architecture.clone(),
        ranks,
        rs_lora: adapter.rs_lora,
        targets,
        labels: adapter.head.as_ref().map(|head| head.labels.clone()),
        num_parameters: adapter.modules.iter().map(|m| m.rank * (m.input + m.output)).sum(),
        size_bytes: adapter.size_bytes,
        servable: reasons.as_ref().map(Vec::is_empty),
        reasons: reasons.unwrap_or_default(),
    })
}

pub(super) fn run(args: &InspectArgs) -> Result<Outcome, PipelineError> {
    let adapter = Adapter::open(&args.adapter).map_err(adapter_error)?;
    let base = args.base.as_deref().map(open_source).transpose()?;
    let report = report(&adapter, base.as_deref())?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).expect("a report has only text keys");
        println!("{json}");
    } else {
        print(&report);
    }
    Ok(if report.servable == Some(false) { Outcome::Wrong } else { Outcome::Well })
}

fn print(report: &Report) {
    println!("{}, {}, {}", report.format, report.task, mebibytes(report.size_bytes));
    let base = report.base_name.as_deref().unwrap_or("not named");
    let arch = report.architecture.as_ref().map_or_else(String::new, |arch| format!(" ({arch})"));
    println!("base      {base}{arch}");
    for known in &report.ranks {
        let scaled = if report.rs_lora { ", rsLoRA" } else { "" };
        println!("rank      {}, alpha {}{scaled}: {} modules", known.rank, known.alpha, known.num_modules);
    }
    let targets: Vec<String> =
        report.targets.iter().map(|(target, num_layers)| format!("{target} ({num_layers})")).collect();
    println!("targets   {}", targets.join(", "));
    println!("numbers   {}", report.num_parameters);
    if let Some(labels) = &report.labels {
        println!("head      {} labels: {}", labels.len(), labels.join(", "));
    }
    match report.servable {
        None => {}
        Some(true) => println!("the base can serve it"),
        Some(false) => {
            println!("the base cannot serve it:");
            report.reasons.iter().for_each(|reason| println!("- {reason}"));
        }
    }
}
