//! `policy bench`: what a step's plan costs with a policy.
//!
//! Timed is what a step pays: filling the snapshot's columns, the call into the
//! guest, and checking the plan. Instructions are counted in a run of their own,
//! for counting them makes guests slower.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use quern_engine::AdapterId;
use quern_extensions::{Hook, PolicyEngine, Verdict};
use quern_scheduler::plan::{self, NO_DEADLINE, Planner as _, Snapshot};
use serde::Serialize;

use crate::opened::{OpenArgs, engine, open};
use crate::stats::quantile;
use crate::{Outcome, print_json};

/// Calls whose instructions are counted.
const COUNTED: u32 = 1000;

/// `quern policy bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// A scheduler policy.
    pub file: PathBuf,
    /// Rows that wait, and as many that run; can be given several times.
    #[arg(long, value_name = "N", default_values_t = [64, 256], value_delimiter = ',', value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub rows: Vec<u32>,
    /// Calls that are timed, after a tenth as many to warm up.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub calls: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How it is loaded.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What was measured for one number of rows.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Rows that waited, and as many that ran.
    pub rows: u32,
    /// Calls that were timed.
    pub calls: u32,
    /// Half of the calls took at most this: snapshot, call and check.
    pub p50_us: f64,
    /// All but a hundredth took at most this.
    pub p99_us: f64,
    /// Half of the calls into the guest alone took at most this.
    pub call_p50_us: f64,
    /// On average.
    pub instructions_per_call: u64,
    /// The most memory that the instance had.
    pub memory_bytes: u64,
    /// How often each verdict but `used` and `none`.
    pub faults: u64,
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<Outcome> {
    let measured = bench(args)?;
    if args.json {
        print_json(&measured)?;
    } else {
        println!(
            "{:>13} {:>9} {:>9} {:>9} {:>13} {:>10}",
            "rows", "p50 us", "p99 us", "call p50", "instructions", "memory KiB"
        );
        for one in &measured {
            let Measured { rows, p50_us, p99_us, call_p50_us, instructions_per_call, memory_bytes, .. } = one;
            let kib = memory_bytes >> 10;
            println!(
                "{rows:>5} + {rows:>5} {p50_us:>9.2} {p99_us:>9.2} {call_p50_us:>9.2} {instructions_per_call:>13} {kib:>10}"
            );
        }
    }
    let num_faults: u64 = measured.iter().map(|measured| measured.faults).sum();
    if num_faults > 0 {
        eprintln!("{num_faults} calls failed: see `quern policy check`");
    }
    Ok(if num_faults == 0 { Outcome::Well } else { Outcome::Wrong })
}

/// Measures a policy.
///
/// # Errors
/// When it is no scheduler policy.
pub fn bench(args: &BenchArgs) -> anyhow::Result<Vec<Measured>> {
    let (timing, counting) = (engine(false)?, engine(true)?);
    args.rows.iter().map(|&rows| measure(args, rows, &timing, &counting)).collect()
}

fn measure(
    args: &BenchArgs,
    rows: u32,
    timing: &PolicyEngine,
    counting: &PolicyEngine,
) -> anyhow::Result<Measured> {
    let opened = open(timing, &args.file, &args.open)?;
    if !opened.slot.serves(Hook::Scheduler) {
        bail!("{} has no scheduler hook", args.file.display());
    }
    let mut planner = opened.slot.planner();
    let mut snapshot = Snapshot::default();
    let (mut whole, mut inner) = (Vec::new(), Vec::new());
    for call in 0..args.calls + args.calls / 10 {
        let began = Instant::now();
        fill(&mut snapshot, rows as usize, u64::from(call));
        let asked = Instant::now();
        let plan = planner.plan(&snapshot);
        let answered = asked.elapsed();
        if let Some(plan) = plan {
            planner.judged(plan::check(&snapshot, &plan));
            black_box(plan);
        }
        if call >= args.calls / 10 {
            whole.push(began.elapsed().as_nanos() as f64 / 1000.0);
            inner.push(answered.as_nanos() as f64 / 1000.0);
        }
    }
    let status = opened.status()?;
    let calls = status.hook(Hook::Scheduler).context("the policy plans no steps")?;
    let faults = [Verdict::Error, Verdict::Trapped, Verdict::Late, Verdict::Invalid];
    Ok(Measured {
        rows,
        calls: args.calls,
        p50_us: quantile(&mut whole, 0.5),
        p99_us: quantile(&mut whole, 0.99),
        call_p50_us: quantile(&mut inner, 0.5),
        instructions_per_call: instructions(args, rows, counting)?,
        memory_bytes: status.memory_peak_bytes,
        faults: faults.map(|verdict| calls.count(verdict)).iter().sum(),
    })
}

fn instructions(args: &BenchArgs, rows: u32, counting: &PolicyEngine) -> anyhow::Result<u64> {
    let opened = open(counting, &args.file, &args.open)?;
    let mut planner = opened.slot.planner();
    let mut snapshot = Snapshot::default();
    let num_calls = args.calls.min(COUNTED);
    for call in 0..num_calls {
        fill(&mut snapshot, rows as usize, u64::from(call));
        if let Some(plan) = planner.plan(&snapshot) {
            planner.judged(plan::check(&snapshot, &plan));
        }
    }
    let status = opened.status()?;
    Ok(status.hook(Hook::Scheduler).map_or(0, |calls| calls.instructions) / u64::from(num_calls))
}

/// As the step loop does: all columns anew, in buffers that are kept, in some
/// disorder that is the same in every run.
fn fill(snapshot: &mut Snapshot, rows: usize, call: u64) {
    fn refill<T>(column: &mut Vec<T>, rows: usize, value: impl Fn(u64) -> T) {
        column.clear();
        column.extend((0..rows as u64).map(value));
    }
    let step = &mut snapshot.step;
    (step.seq, step.now_us) = (call, call * 2000);
    (step.token_budget, step.max_running, step.kv_free, step.kv_page) = (512, 131_072, 1_000_000, 1);
    (step.fixed_us, step.row_us, step.output_us, step.row_tile) = (16_000, 6_500, 6_000, 1);
    (step.last_step_us, step.target_step_us, step.mixes_adapters) = (2000, 400_000, true);
    let mixed = |row: u64| (row + call).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;

    let table = &mut snapshot.waiting;
    refill(&mut table.id, rows, |row| row + 1);
    refill(&mut table.age_us, rows, |row| (mixed(row) % 1_000_000) as u32);
    refill(&mut table.prompt_left, rows, |row| 16 + (mixed(row) % 500) as u32);
    refill(&mut table.cached, rows, |_| 0);
    refill(&mut table.pending, rows, |_| 0);
    refill(&mut table.kv_need, rows, |row| 16 + (mixed(row) % 500) as u32);
    refill(&mut table.max_new, rows, |_| 256);
    refill(&mut table.slack_us, rows, |row| (mixed(row) % 5_000_000) as i32);
    refill(&mut table.priority, rows, |_| 128);
    refill(&mut table.tenant, rows, |row| (row % 8) as u32);
    refill(&mut table.adapter, rows, |_| AdapterId::BASE);
    refill(&mut table.adapter_tier, rows, |_| 2);

    let table = &mut snapshot.running;
    refill(&mut table.id, rows, |row| row + 100_001);
    refill(&mut table.prompt_left, rows, |_| 1);
    refill(&mut table.generated, rows, |row| (mixed(row) % 200) as u32);
    refill(&mut table.max_new, rows, |_| 256);
    refill(&mut table.kv, rows, |row| 100 + (mixed(row) % 200) as u32);
    refill(&mut table.slack_us, rows, |row| if row % 2 == 0 { NO_DEADLINE } else { 1_000_000 });
    refill(&mut table.priority, rows, |_| 128);
    refill(&mut table.tenant, rows, |row| (row % 8) as u32);
    refill(&mut table.adapter, rows, |_| AdapterId::BASE);
}
