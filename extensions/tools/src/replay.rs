//! `policy replay`: what a policy would have planned in recorded steps, and what
//! recorded steps cost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use quern_extensions::Hook;
use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::{self, Plan, Planner, Snapshot};
use serde::Serialize;

use crate::costs::{Fit, fit};
use crate::opened::{OpenArgs, engine, open};
use crate::record::{ReadError, Reader, Step};
use crate::simulate::BUILTIN;
use crate::{Outcome, print_json};

/// Steps whose times costs are fitted to.
const MAX_SAMPLES: usize = 1 << 20;

/// `quern policy replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// Recorded steps.
    pub recording: PathBuf,
    /// The policy to ask, or `builtin`; without one, only costs are fitted.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<String>,
    /// Plans that differ and are shown in full.
    #[arg(long, default_value_t = 3)]
    pub show: usize,
    /// Write the fitted costs, for `quern policy simulate --costs`.
    #[arg(long, value_name = "FILE.json")]
    pub costs_out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How the policy is loaded.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What a replay found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compared {
    /// Steps of the recording.
    pub steps: u64,
    /// Why not all of the file was read.
    pub rest: Option<String>,
    /// Planned as recorded.
    pub same: u64,
    /// Planned otherwise.
    pub different: u64,
    /// Of these, by what differed; a step can count several times.
    pub different_by: BTreeMap<&'static str, u64>,
    /// Steps in which the policy had no opinion, or failed.
    pub none: u64,
    /// Plans that broke a rule.
    pub invalid: u64,
    /// The first steps that differ, in words.
    pub shown: Vec<String>,
    /// What failed.
    pub faults: Vec<String>,
    /// Costs, where steps tell them.
    pub fit: Option<Fit>,
}

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<Outcome> {
    let compared = replay(args)?;
    if let (Some(path), Some(fit)) = (&args.costs_out, &compared.fit) {
        std::fs::write(path, serde_json::to_string_pretty(&fit.costs)?)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        print_json(&compared)?;
    } else {
        print(&compared, args.policy.as_deref());
    }
    let well = compared.faults.is_empty() && compared.rest.is_none() && compared.invalid == 0;
    Ok(if well { Outcome::Well } else { Outcome::Wrong })
}

/// Asks the policy what recorded steps were asked.
///
/// # Errors
/// When the file is no recording, or the policy cannot be loaded.
pub fn replay(args: &ReplayArgs) -> anyhow::Result<Compared> {
    let path = &args.recording;
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let steps =
        Reader::new(BufReader::new(file)).with_context(|| format!("{} is no recording", path.display()))?;
    let opened = match args.policy.as_deref() {
        None | Some(BUILTIN) => None,
        Some(file) => Some(open(&engine(false)?, file.as_ref(), &args.open)?),
    };
    let mut planner: Option<Box<dyn Planner>> = match (&args.policy, &opened) {
        (None, _) => None,
        (Some(_), None) => Some(Box::new(BuiltinPlanner::default())),
        (Some(name), Some(opened)) if !opened.slot.serves(Hook::Scheduler) => {
            bail!("{name} has no scheduler hook")
        }
        (Some(_), Some(opened)) => Some(Box::new(opened.slot.planner())),
    };
    let mut compared = compare(steps, planner.as_deref_mut(), args.show);
    if let Some(opened) = &opened {
        let faults = opened.status()?.faults;
        compared.faults = faults.iter().map(|fault| format!("{}: {}", fault.verdict, fault.reason)).collect();
    }
    Ok(compared)
}

fn compare(
    steps: impl Iterator<Item = Result<Step, ReadError>>,
    mut planner: Option<&mut (dyn Planner + '_)>,
    show: usize,
) -> Compared {
    let mut compared = Compared::default();
    let mut builtin = BuiltinPlanner::default();
    let mut samples = Vec::new();
    for step in steps {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                compared.rest = Some(error.to_string());
                break;
            }
        };
        compared.steps += 1;
        let recorded = step.in_force(&mut builtin);
        if let Some(sample) = step.sample(&recorded).filter(|_| samples.len() < MAX_SAMPLES) {
            samples.push(sample);
        }
        if let Some(planner) = planner.as_deref_mut() {
            compared.ask(planner, &step.snapshot, &recorded, show);
        }
    }
    compared.fit = fit(&samples);
    compared
}

impl Compared {
    fn ask(&mut self, planner: &mut dyn Planner, snapshot: &Snapshot, recorded: &Plan, show: usize) {
        let Some(plan) = planner.plan(snapshot) else {
            self.none += 1;
            return;
        };
        let judgement = plan::check(snapshot, &plan);
        planner.judged(judgement);
        if let Err(error) = judgement {
            self.invalid += 1;
            self.show(show, || format!("step {}: {error}", snapshot.step.seq));
            return;
        }
        // How long a plan may be held is no choice of whom to run.
        let parts = [
            ("admit", plan.admit != recorded.admit),
            ("admit_chunk", plan.admit_chunk != recorded.admit_chunk),
            ("preempt", plan.preempt != recorded.preempt),
            ("running_chunk", plan.running_chunk != recorded.running_chunk),
            ("adapter", !snapshot.step.mixes_adapters && plan.adapter != recorded.adapter),
        ];
        let differing: Vec<&str> =
            parts.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        if differing.is_empty() {
            self.same += 1;
            return;
        }
        self.different += 1;
        for (name, _) in parts.iter().filter(|(_, differs)| *differs) {
            *self.different_by.entry(name).or_default() += 1;
        }
        self.show(show, || in_words(snapshot, &plan, recorded, &differing));
    }

    fn show(&mut self, most: usize, text: impl FnOnce() -> String) {
        if self.shown.len() < most {
            self.shown.push(text());
        }
    }
}

fn in_words(snapshot: &Snapshot, plan: &Plan, recorded: &Plan, differing: &[&str]) -> String {
    let step = &snapshot.step;
    let (waiting, running) = (snapshot.waiting.id.len(), snapshot.running.id.len());
    let mut text = format!(
        "step {}: {waiting} waiting, {running} running, {} rows, {} tokens of state free",
        step.seq, step.token_budget, step.kv_free
    );
    for name in differing {
        let of = |plan: &Plan| match *name {
            "admit" => format!("{:?}", ids(&plan.admit, &snapshot.waiting.id)),
            "admit_chunk" => format!("{:?}", plan.admit_chunk),
            "preempt" => format!("{:?}", ids(&plan.preempt, &snapshot.running.id)),
            "running_chunk" => format!("{:?}", plan.running_chunk),
            _ => format!("{:?}", plan.adapter.map(|adapter| adapter.0)),
        };
        text.push_str(&format!(
            "\n  {name:<14} recorded {}\n  {:<14} now      {}",
            of(recorded),
            "",
            of(plan)
        ));
    }
    text
}

fn ids(rows: &[u32], ids: &[u64]) -> Vec<u64> {
    rows.iter().filter_map(|&row| ids.get(row as usize).copied()).collect()
}

fn print(compared: &Compared, policy: Option<&str>) {
    println!("{} steps", compared.steps);
    if let Some(policy) = policy {
        println!(
            "{policy}: {} planned alike, {} otherwise, {} without an opinion, {} that break a rule",
            compared.same, compared.different, compared.none, compared.invalid
        );
        let by: Vec<String> =
            compared.different_by.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if !by.is_empty() {
            println!("differs by: {}", by.join(", "));
        }
    }
    compared.shown.iter().for_each(|text| println!("{text}"));
    match &compared.fit {
        Some(Fit { costs, steps, error_p50, error_p95 }) => println!(
            "costs: {:.0} + {:.0} a row + {:.0} an output us, from {steps} steps; half are within {:.1}% of that, all but a twentieth within {:.1}%",
            costs.fixed_us,
            costs.row_us,
            costs.output_us,
            100.0 * error_p50,
            100.0 * error_p95
        ),
        None => println!("no step tells what it cost"),
    }
    compared.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    compared.rest.iter().for_each(|rest| println!("not all was read: {rest}"));
}
