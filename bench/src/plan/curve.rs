//! How a machine's p95 grows with the rate that it serves: as an open loop measured it, or by a queueing model on what
//! a closed loop measured.

use std::path::Path;

use anyhow::Context as _;

use super::queue::Queue;
use super::{PlanArgs, What};
use crate::experiment::reading::{self, Cited};
use crate::experiment::section::CSV_FILE;
use crate::found;
use crate::output::RESULTS_FILE;
use crate::results::{self, RunResults};
use crate::stats::{PhaseSummary, rounds, servers};

/// The part of the requests that must keep the target.
pub(super) const PART: f64 = 0.95;
/// The experiment that measures machines.
const HARDWARE: &str = "hardware";

/// A way to run a machine, with its curve.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The setting, or the server of a run.
    pub name: String,
    pub curve: Curve,
}

/// How p95 grows with the rate.
#[derive(Debug)]
pub(super) enum Curve {
    /// Rates that were driven in open loop, from the lowest.
    Measured { source: String, levels: Vec<Level> },
    /// The queueing model with as many places as a closed loop had clients.
    Modelled { levels: Vec<Served> },
}

/// What an open loop found at a rate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Level {
    pub rate: f64,
    /// Of the slowest round.
    pub p95_ms: f64,
    /// Why the rate does not count as served, if it does not.
    pub trouble: Option<String>,
}

/// What a closed loop found with a number of clients.
#[derive(Debug)]
pub(super) struct Served {
    pub queue: Queue,
    pub throughput: Cited,
    pub p95_ms: Option<Cited>,
}

/// The most that one machine carries within the target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Most {
    /// Requests per second.
    pub rate: f64,
    /// What it rests on, with file and lines.
    pub evidence: String,
    /// How p95 was found.
    pub method: &'static str,
    queue: Option<(Queue, f64)>,
}

/// What can run a machine, from its folder: open loops if it has any, else the `hardware` experiment.
pub(super) fn read(folder: &Path, args: &PlanArgs) -> anyhow::Result<Vec<Candidate>> {
    let found = found::below(folder).with_context(|| folder.display().to_string())?;
    let mut runs = Vec::new();
    let mut modelled = Vec::new();
    for place in &found {
        let (lines, csv) = (place.path.join(RESULTS_FILE), place.path.join(CSV_FILE));
        if lines.is_file() {
            runs.extend(results::read(&lines)?.run.map(|run| (lines.display().to_string(), run)));
        }
        if csv.is_file() {
            let measured = reading::read(&csv)?;
            if measured.head.name == HARDWARE {
                modelled.extend(modelled_of(&measured, args.what));
            }
        }
    }
    let measured = measured_of(&runs, args)?;
    let candidates = if measured.is_empty() && args.workload.is_none() { modelled } else { measured };
    if candidates.is_empty() {
        let wanted = match &args.workload {
            Some(workload) => format!("no open-loop run of workload {workload:?}"),
            None => format!("neither open-loop runs nor figures of the experiment `{HARDWARE}`"),
        };
        anyhow::bail!("{}: no results to plan by: {wanted} for {}", folder.display(), args.what.words());
    }
    Ok(candidates)
}

fn modelled_of(measured: &reading::Measured, what: What) -> Vec<Candidate> {
    let (throughput, p95) = what.columns();
    let served = |setting: &str, level: f64| {
        let throughput = measured.figure(setting, level, throughput).filter(|cited| cited.median() > 0.0)?;
        // Little's law: with as many clients as are under way, each one's mean time is clients over throughput.
        let queue = Queue { num_places: level as u32, service_s: level / throughput.median() };
        Some(Served { queue, throughput, p95_ms: measured.figure(setting, level, p95) })
    };
    let of_setting = |setting: &str| {
        let levels = measured.levels(setting, throughput).into_iter().filter(|level| *level >= 1.0);
        let levels: Vec<Served> = levels.filter_map(|level| served(setting, level)).collect();
        (!levels.is_empty())
            .then(|| Candidate { name: setting.to_owned(), curve: Curve::Modelled { levels } })
    };
    measured.settings().into_iter().filter_map(of_setting).collect()
}

fn measured_of(runs: &[(String, RunResults)], args: &PlanArgs) -> anyhow::Result<Vec<Candidate>> {
    let is_wanted = |run: &RunResults| {
        let is_named = args.workload.as_ref().is_none_or(|workload| *workload == run.header.workload);
        is_named && run.phases.iter().any(|phase| is_open(phase, args.what))
    };
    let wanted: Vec<_> = runs.iter().filter(|(_, run)| is_wanted(run)).collect();
    let mut workloads: Vec<&str> = wanted.iter().map(|(_, run)| run.header.workload.as_str()).collect();
    workloads.sort_unstable();
    workloads.dedup();
    anyhow::ensure!(
        workloads.len() < 2,
        "open-loop runs of several workloads ({}): say which with --workload",
        workloads.join(", ")
    );
    let mut candidates = Vec::new();
    for (source, run) in wanted {
        for server in servers(&run.phases) {
            let levels = levels_of(&run.phases, server, args.what);
            let source = format!("workload {}, server {server} ({source})", run.header.workload);
            if !levels.is_empty() {
                candidates
                    .push(Candidate { name: server.to_owned(), curve: Curve::Measured { source, levels } });
            }
        }
    }
    Ok(candidates)
}

/// Whether a phase had arrivals at a rate, of the kind that is planned for: what is classified has no answer tokens.
fn is_open(phase: &PhaseSummary, what: What) -> bool {
    phase.level.ends_with("requests/s") && (phase.tokens == 0) == (what == What::Texts)
}

fn levels_of(phases: &[PhaseSummary], server: &str, what: What) -> Vec<Level> {
    let mut names: Vec<(&str, f64)> = Vec::new();
    for phase in phases.iter().filter(|phase| phase.server == server && is_open(phase, what)) {
        if names.iter().all(|(name, _)| *name != phase.level) {
            names.push((phase.level.as_str(), phase.level_value));
        }
    }
    names.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let level = |(name, rate): (&str, f64)| {
        let all = || rounds(phases, server, name);
        let p95_ms = all().filter_map(|phase| phase.e2e.map(|q| q.p95_ms)).reduce(f64::max);
        let trouble = all().find_map(|phase| match phase {
            PhaseSummary { num_failed: num_failed @ 1.., .. } => {
                Some(format!("{num_failed} requests failed"))
            }
            PhaseSummary { gave_up: Some(why), .. } => Some(why.clone()),
            _ => phase.client_trouble(),
        });
        let trouble = trouble.or(p95_ms.is_none().then(|| "no request ended".to_owned()));
        Level { rate, p95_ms: p95_ms.unwrap_or(f64::INFINITY), trouble }
    };
    names.into_iter().map(level).collect()
}

impl Curve {
    /// The highest rate of one machine within the target, or why there is none.
    pub fn most(&self, target_ms: f64) -> Result<Most, String> {
        match self {
            Self::Measured { source, levels } => most_measured(source, levels, target_ms),
            Self::Modelled { levels } => most_modelled(levels, target_ms),
        }
    }

    /// The p95 of one machine in milliseconds at a rate within its most. What was measured tells it of the next higher
    /// rate that was driven.
    pub fn p95_ms(&self, most: &Most, rate: f64) -> f64 {
        match (self, most.queue) {
            (Self::Measured { levels, .. }, _) => {
                levels.iter().find(|level| level.rate >= rate).map_or(f64::INFINITY, |level| level.p95_ms)
            }
            (Self::Modelled { .. }, Some((queue, floor_ms))) => {
                (queue.quantile_s(rate, PART) * 1e3).max(floor_ms)
            }
            (Self::Modelled { .. }, None) => f64::INFINITY,
        }
    }
}

/// The highest rate that was driven and held, with all below it. Nothing is guessed between rates or beyond them.
fn most_measured(source: &str, levels: &[Level], target_ms: f64) -> Result<Most, String> {
    let holds = |level: &&Level| level.trouble.is_none() && level.p95_ms <= target_ms;
    let Some(best) = levels.iter().take_while(holds).last() else {
        let first = levels.first().ok_or("no rate was driven")?;
        let why = first.trouble.clone().unwrap_or(format!("p95 was {:.1} ms", first.p95_ms));
        return Err(format!("at the lowest rate that was driven, {} a second, {why}: {source}", first.rate));
    };
    let evidence = format!("p95 {:.1} ms at {} a second in open loop: {source}", best.p95_ms, best.rate);
    Ok(Most { rate: best.rate, evidence, method: "measured in open loop", queue: None })
}

fn most_modelled(levels: &[Served], target_ms: f64) -> Result<Most, String> {
    let most = |served: &Served| {
        let floor_ms = served.p95_ms.as_ref().map_or(0.0, Cited::median);
        let rate = served.queue.highest_rate(PART, target_ms / 1e3).filter(|_| floor_ms <= target_ms)?;
        let p95 = served.p95_ms.as_ref().map_or("no p95 measured".to_owned(), Cited::to_string);
        let places = served.queue.num_places;
        let evidence = format!("{places} clients in closed loop: {}; {p95}", served.throughput);
        Some(Most { rate, evidence, method: "M/M/c", queue: Some((served.queue, floor_ms)) })
    };
    let best = levels.iter().filter_map(most).max_by(|a, b| a.rate.total_cmp(&b.rate));
    best.ok_or_else(|| {
        let quickest = levels.iter().min_by(|a, b| a.queue.service_s.total_cmp(&b.queue.service_s));
        quickest.map_or("nothing was measured".to_owned(), |served| {
            let alone_ms = served.queue.quantile_s(0.0, PART) * 1e3;
            let measured = served.p95_ms.as_ref().map(|cited| format!("; {cited}")).unwrap_or_default();
            format!(
                "even without a queue, p95 is {alone_ms:.1} ms by the model, from {}{measured}",
                served.throughput
            )
        })
    })
}
