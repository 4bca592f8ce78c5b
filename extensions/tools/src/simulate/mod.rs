//! `policy simulate`: policies judged before they serve.
//!
//! A trace of arrivals (`trace.rs`) is served by a node in simulated time
//! (`node.rs`) with each policy in turn (`contender.rs`); what became of the
//! requests (`served.rs`) is a table and a picture (`plot.rs`).

mod contender;
mod node;
mod plot;
mod served;
mod timeline;
mod trace;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::costs::Costs;
use crate::opened::{self, OpenArgs};
use crate::stats::quantile;
use crate::{Outcome, Usage, print_json};

use contender::Contender;
use node::NodeConfig;
use trace::Trace;

pub(crate) use contender::BUILTIN;
pub use served::{Fallbacks, Summary, TenantSummary};
pub use trace::Synthetic;

/// `quern policy simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Policies' files, or `builtin`.
    #[arg(default_values_t = [BUILTIN.to_owned()])]
    pub policies: Vec<String>,
    /// A trace as CSV: `at_ms,prompt,cached,max_new,tenant,priority,deadline_ms,adapter`.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// A trace that is made up, without --trace.
    #[command(flatten)]
    pub synthetic: Synthetic,
    /// What steps cost.
    #[command(flatten)]
    pub costs: CostArgs,
    /// Rows in a step.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub token_budget: u32,
    /// Sequences that may run at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_running: u32,
    /// Requests that may be queued.
    #[arg(long, default_value_t = 256)]
    pub max_queued: usize,
    /// Tokens of key-value state.
    #[arg(long, default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(2..))]
    pub kv_capacity: u32,
    /// How long a step should take at most while sequences decode; 0 is no limit.
    #[arg(long, default_value_t = 400)]
    pub target_step_ms: u32,
    /// One step may mix adapters.
    #[arg(long)]
    pub mixes_adapters: bool,
    /// A tenant that sends too much: compare the others' first tokens with what
    /// they have without it.
    #[arg(long, value_name = "TENANT")]
    pub flooder: Option<String>,
    /// Draw the comparison.
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    /// Draw what batchers and admission policies decided over time.
    #[arg(long, value_name = "FILE.svg")]
    pub over_time: Option<PathBuf>,
    /// Record the steps; wants one policy only.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How policies are loaded.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What steps cost. Without anything, about what they do for a 0.5B model in
/// four bits on two cores of a server.
#[derive(Debug, Clone, Args)]
pub struct CostArgs {
    /// Costs from a file that `quern policy replay --costs-out` wrote; flags go before it.
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
    /// Of a step, however small.
    #[arg(long)]
    pub fixed_us: Option<f64>,
    /// Of each row.
    #[arg(long)]
    pub row_us: Option<f64>,
    /// Of each output, beyond its row's.
    #[arg(long)]
    pub output_us: Option<f64>,
}

/// Used where nothing is given.
const DEFAULT_COSTS: Costs = Costs { fixed_us: 10_000.0, row_us: 4_000.0, output_us: 3_000.0 };

impl CostArgs {
    /// The costs, and where they come from.
    fn resolve(&self) -> anyhow::Result<(Costs, &'static str)> {
        let (mut costs, mut from) = match &self.costs {
            Some(path) => (Costs::read(path)?, "from a file"),
            None => (DEFAULT_COSTS, "by default"),
        };
        for (flag, cost) in [
            (self.fixed_us, &mut costs.fixed_us),
            (self.row_us, &mut costs.row_us),
            (self.output_us, &mut costs.output_us),
        ] {
            if let Some(value) = flag {
                (*cost, from) = (value, "by flags");
            }
        }
        let costs = costs.checked().map_err(|error| Usage(format!("{error}")))?;
        Ok((costs, from))
    }
}

/// The comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Trace, node and costs in a line.
    pub title: String,
    /// What steps cost.
    pub costs: Costs,
    /// Where that comes from.
    pub costs_from: &'static str,
    /// In the order in which they were given.
    pub policies: Vec<Summary>,
    /// What a flood does to the others, in the same order; empty if not asked for.
    pub alone: Vec<Alone>,
    /// What failed in policies' calls, with the policy's name.
    pub faults: Vec<String>,
    #[serde(skip)]
    over_time: Vec<timeline::Timeline>,
}

/// The 95th percentile of the time to first token of all but a flooding tenant.
#[derive(Debug, Clone, Serialize)]
pub struct Alone {
    /// The policy.
    pub policy: String,
    /// Without the flooding tenant.
    pub alone_ms: f64,
    /// Beside it.
    pub beside_ms: f64,
}

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<Outcome> {
    let report = simulate(args)?;
    if let Some(path) = &args.svg {
        plot::draw(path, &report).with_context(|| format!("{} cannot be drawn", path.display()))?;
    }
    if let Some(path) = &args.over_time {
        timeline::draw(path, &report.title, &report.over_time)
            .with_context(|| format!("{} cannot be drawn", path.display()))?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    Ok(if report.faults.is_empty() { Outcome::Well } else { Outcome::Wrong })
}

/// Serves the trace with each policy.
///
/// # Errors
/// When the trace or the costs make no sense, or a policy cannot be loaded.
pub fn simulate(args: &SimulateArgs) -> anyhow::Result<Report> {
    if args.record.is_some() && args.policies.len() != 1 {
        return Err(Usage("--record wants one policy".to_owned()).into());
    }
    let (costs, costs_from) = args.costs.resolve()?;
    let config = NodeConfig {
        token_budget: args.token_budget,
        max_running: args.max_running,
        max_queued: args.max_queued,
        kv_capacity: args.kv_capacity,
        target_step_us: args.target_step_ms.saturating_mul(1000),
        mixes_adapters: args.mixes_adapters,
        costs,
    };
    let trace = match &args.trace {
        Some(path) => Trace::read(path)?,
        None => args.synthetic.trace(&costs, args.max_running)?,
    };
    let flooder = args.flooder.as_ref().map(|name| {
        let place = trace.tenants.iter().position(|tenant| tenant == name);
        place.ok_or_else(|| Usage(format!("the trace has no tenant {name}")))
    });
    let flooder = flooder.transpose()?;
    let mut report = Report {
        title: title(&trace, &config, costs_from),
        costs,
        costs_from,
        policies: Vec::new(),
        alone: Vec::new(),
        faults: Vec::new(),
        over_time: Vec::new(),
    };
    let engine = opened::engine(false)?;
    let progress = ProgressBar::new(args.policies.len() as u64).with_message("simulating");
    for named in &args.policies {
        let mut contender = Contender::new(&engine, named, &args.open)?;
        if let Some(path) = &args.record {
            contender.record_to(path)?;
        }
        let served = node::serve(config, &trace, &mut contender)?;
        if let Some(status) = contender.status() {
            let faults = status
                .faults
                .iter()
                .map(|fault| format!("{}: {} {}", contender.name, fault.verdict, fault.reason));
            report.faults.extend(faults);
        }
        report.policies.push(Summary::new(&contender.name, &trace, &served));
        report.over_time.push(timeline::Timeline::new(&contender.name, &trace, &served, &config));
        if let Some(flooder) = flooder {
            // A fresh instance: what it learned from the flood is not to help it.
            let mut contender = Contender::new(&engine, named, &args.open)?;
            let others = trace.without(flooder);
            let alone = node::serve(config, &others, &mut contender)?;
            let p95 = |trace, served| {
                quantile(&mut served::ttft_ms(trace, served, |tenant| tenant != flooder), 0.95)
            };
            report.alone.push(Alone {
                policy: contender.name,
                alone_ms: p95(&others, &alone),
                beside_ms: p95(&trace, &served),
            });
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(report)
}

fn title(trace: &Trace, config: &NodeConfig, costs_from: &str) -> String {
    let Costs { fixed_us, row_us, output_us } = config.costs;
    let seconds = trace.arrivals.last().map_or(0, |arrival| arrival.at_us) as f64 / 1e6;
    format!(
        "{} requests of {} tenants in {seconds:.0} s; {} places, {} tokens of state; a step costs {fixed_us:.0} + {row_us:.0} a row + {output_us:.0} an output us ({costs_from})",
        trace.arrivals.len(),
        trace.tenants.len(),
        config.max_running,
        config.kv_capacity,
    )
}

fn print(report: &Report) {
    println!("{}\n", report.title);
    println!(
        "{:<18} {:>6} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8} {:>10} {:>6} {:>6} {:>7} {:>6} {:>9}",
        "policy",
        "done",
        "expired",
        "refused",
        "ttft p50",
        "ttft p95",
        "tbt p50",
        "tbt p95",
        "deadlines",
        "Jain",
        "worst",
        "tok/s",
        "paused",
        "fallbacks"
    );
    for one in &report.policies {
        let deadlines = match one.with_deadline {
            0 => "-".to_owned(),
            all => format!("{:.1}% {}", 100.0 * one.attainment(), if all == one.requests { "" } else { "*" }),
        };
        let fallbacks = one.fallbacks.none + one.fallbacks.invalid + one.fallbacks.stalled;
        println!(
            "{:<18} {:>6} {:>7} {:>7} {:>9.1} {:>9.1} {:>8.1} {:>8.1} {deadlines:>10} {:>6.3} {:>6.3} {:>7.1} {:>6} {fallbacks:>9}",
            one.policy,
            one.finished,
            one.expired,
            one.refused,
            one.ttft_p50_ms,
            one.ttft_p95_ms,
            one.tbt_p50_ms,
            one.tbt_p95_ms,
            one.fairness,
            one.worst_share,
            one.tokens_per_second,
            one.pauses
        );
    }
    println!("\nTimes in ms. Jain and worst: tokens of each tenant as a part of its max-min fair share.");
    if report.policies.iter().any(|one| one.tenants.len() > 1) {
        println!("\nTime to first token by tenant, p95 in ms:");
        for one in &report.policies {
            let tenants = one.tenants.iter().take(12);
            let tenants: Vec<String> =
                tenants.map(|it| format!("{} {:.1} ({})", it.tenant, it.ttft_p95_ms, it.requests)).collect();
            println!("{:<18} {}", one.policy, tenants.join(", "));
        }
    }
    for one in &report.alone {
        let ratio = one.beside_ms / one.alone_ms.max(f64::MIN_POSITIVE);
        println!(
            "{:<18} the others' p95: {:.1} ms alone, {:.1} ms beside the flood: {ratio:.2} times",
            one.policy, one.alone_ms, one.beside_ms
        );
    }
    report.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
}

#[cfg(test)]
mod tests;
