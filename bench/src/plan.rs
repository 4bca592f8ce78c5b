//! `quern-bench plan`: how many of which machine carry a rate within a latency, what that costs, and what the answer
//! rests on.
//!
//! `curve.rs` finds what one machine carries, by `queue.rs` where only a closed loop was measured; `chart.rs` draws
//! throughput against cost, `text.rs` writes the answer. Nothing here measures.

mod chart;
mod curve;
mod queue;
mod text;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::prices::Prices;
use curve::Candidate;

/// Hours of a month: 365 days by 24 hours over 12.
const HOURS_A_MONTH: f64 = 730.0;
/// Machines of a kind above which something must be wrong with the question.
const MAX_MACHINES: f64 = 1e6;

/// The plan for people.
pub const PLAN_FILE: &str = "plan.md";
/// Throughput against cost.
pub const CURVE_FILE: &str = "plan.svg";

/// `quern-bench plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Results of a kind of machine, by its name in the price table: a folder with the experiment `hardware`, with
    /// open-loop runs (`quern-bench run --rates` or a ramp), or with both. Open-loop runs are preferred. May be given
    /// again for other machines.
    #[arg(long = "results", value_name = "NAME=FOLDER", required = true)]
    pub results: Vec<String>,
    /// A price table, see bench/prices.example.toml.
    #[arg(long, value_name = "FILE")]
    pub prices: PathBuf,
    /// Milliseconds within which 95 of 100 requests must end, waiting included.
    #[arg(long, value_name = "MS")]
    pub target_p95_ms: f64,
    /// Requests per second that all machines together must carry.
    #[arg(long, value_name = "N")]
    pub rate: f64,
    /// What a request wants.
    #[arg(long, value_enum, default_value_t = What::Answers)]
    pub what: What,
    /// Plan by open-loop runs of this workload only.
    #[arg(long, value_name = "NAME")]
    pub workload: Option<String>,
    /// Share of what a machine carries that is kept free for peaks and for error of the figures.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    pub headroom: f64,
    /// Machines beyond those needed, for when some are down.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub spare: u32,
    /// Folder for plan.md and plan.svg, the curve of throughput against cost; without it the plan is only printed.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What requests want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Answers of the length that was measured.
    Answers,
    /// Labels of texts.
    Texts,
}

impl What {
    /// For people.
    fn words(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Texts => "classified texts",
        }
    }

    /// Throughput and p95 in the experiment `hardware`.
    fn columns(self) -> (&'static str, &'static str) {
        match self {
            Self::Answers => ("requests_per_s", "answer_p95_ms"),
            Self::Texts => ("texts_per_s", "text_p95_ms"),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The command line or the price table makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Results cannot be used, or the plan cannot be written.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// No machine can do it.
    #[error("no machine does it: {0}")]
    Impossible(String),
}

/// One way to do it.
#[derive(Debug)]
struct Way {
    machine: String,
    /// The setting or server that was measured.
    setting: String,
    /// How p95 was found.
    method: &'static str,
    /// What it rests on.
    evidence: String,
    /// The most of one machine within the target, and what of it is planned with; requests per second.
    most: f64,
    planned: f64,
    /// Machines that carry the rate, and all with the spare ones.
    needed: u32,
    count: u32,
    usd_per_month: f64,
    /// Of one machine with spare ones idle; milliseconds.
    p95_ms: f64,
}

/// All that was found out.
#[derive(Debug)]
struct Plan {
    /// The cheapest first.
    ways: Vec<Way>,
    /// Machines and settings that cannot do it, with the reason.
    impossible: Vec<String>,
}

/// Plans, writes what was asked for, and returns the plan as Markdown.
///
/// # Errors
/// When the flags contradict each other, a machine has no price or no results, or no machine can do it.
pub fn plan(args: &PlanArgs, command_line: &str) -> Result<String, PlanError> {
    check(args).map_err(PlanError::Usage)?;
    let machines = machines_of(args).map_err(PlanError::Usage)?;
    let plan = make(args, machines).map_err(PlanError::Failed)?;
    if plan.ways.is_empty() {
        return Err(PlanError::Impossible(plan.impossible.join("; ")));
    }
    let markdown = text::markdown(args, command_line, &plan);
    if let Some(folder) = &args.out {
        let written = || -> anyhow::Result<()> {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join(PLAN_FILE), &markdown)?;
            chart::draw(&folder.join(CURVE_FILE), args, &plan.ways)
        };
        let told = || format!("cannot write into {}", folder.display());
        written().with_context(told).map_err(PlanError::Failed)?;
    }
    Ok(markdown)
}

fn check(args: &PlanArgs) -> Result<(), String> {
    for (flag, value) in [("--target-p95-ms", args.target_p95_ms), ("--rate", args.rate)] {
        if !value.is_finite() || value <= 0.0 {
            return Err(format!("{flag} {value}: must be above 0"));
        }
    }
    if !(0.0..1.0).contains(&args.headroom) {
        return Err(format!("--headroom {}: must be a share from 0 to below 1", args.headroom));
    }
    Ok(())
}

/// A kind of machine: its name, its results, what an hour costs.
struct Machine {
    name: String,
    folder: PathBuf,
    usd_per_hour: f64,
}

fn machines_of(args: &PlanArgs) -> Result<Vec<Machine>, String> {
    let prices = Prices::read(&args.prices).map_err(|error| format!("--prices {error}"))?;
    let mut machines: Vec<Machine> = Vec::new();
    for given in &args.results {
        let (name, folder) = given.split_once('=').ok_or(format!("--results {given}: write NAME=FOLDER"))?;
        if machines.iter().any(|machine| machine.name == name) {
            return Err(format!("--results {name}: given twice"));
        }
        let usd_per_hour = prices.usd_per_hour(name).map_err(|error| format!("--prices {error}"))?;
        machines.push(Machine { name: name.to_owned(), folder: folder.into(), usd_per_hour });
    }
    Ok(machines)
}

fn make(args: &PlanArgs, machines: Vec<Machine>) -> anyhow::Result<Plan> {
    let mut plan = Plan { ways: Vec::new(), impossible: Vec::new() };
    for machine in machines {
        for candidate in curve::read(&machine.folder, args)? {
            match way(args, &machine, &candidate) {
                Ok(way) => plan.ways.push(way),
                Err(why) => plan.impossible.push(format!("{}, {}: {why}", machine.name, candidate.name)),
            }
        }
    }
    plan.ways.sort_by(|a, b| a.usd_per_month.total_cmp(&b.usd_per_month).then(a.count.cmp(&b.count)));
    Ok(plan)
}

fn way(args: &PlanArgs, machine: &Machine, candidate: &Candidate) -> Result<Way, String> {
    let most = candidate.curve.most(args.target_p95_ms)?;
    let planned = most.rate * (1.0 - args.headroom);
    let needed = (args.rate / planned).ceil();
    if needed > MAX_MACHINES {
        return Err(format!("{needed} machines would be needed: {}", most.evidence));
    }
    let count = (needed as u32).saturating_add(args.spare);
    Ok(Way {
        machine: machine.name.clone(),
        setting: candidate.name.clone(),
        method: most.method,
        most: most.rate,
        planned,
        needed: needed as u32,
        count,
        usd_per_month: f64::from(count) * machine.usd_per_hour * HOURS_A_MONTH,
        p95_ms: candidate.curve.p95_ms(&most, args.rate / needed),
        evidence: most.evidence,
    })
}

#[cfg(test)]
mod tests;
