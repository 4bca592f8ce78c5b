//! `policy check`: what a policy is and wants, and whether it holds up.
//!
//! Every hook that it has is called over seeded inputs, the scheduler's over
//! steps of all sorts. A second, fresh instance must plan the same from the same
//! steps, or recordings would not replay.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use quern_extensions::inspect::{self, Kind};
use quern_extensions::status::Loaded;
use quern_extensions::{
    AdmissionRequest, Completed, Deadlines, Hook, NodeLoad, Outcome as Ended, Replicas, Slot, Verdict, Window,
};
use quern_scheduler::plan::{self, Plan, Planner as _};
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::fuzz::Fuzz;
use crate::opened::{OpenArgs, Opened, engine, open};
use crate::{Outcome, print_json};

/// `quern policy check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// A component, or a core module built against the contract.
    pub file: PathBuf,
    /// Calls of each hook.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub calls: u32,
    /// Another seed gives other inputs.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How it is loaded.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What `check` found.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// `component` or `module`.
    pub kind: &'static str,
    /// Of the file.
    pub size_bytes: u64,
    /// Of the file, in hexadecimal: what an operator may pin.
    pub sha256: String,
    /// As it calls itself, its hooks, its imports.
    pub policy: Loaded,
    /// How often each verdict, by hook.
    pub verdicts: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Of all calls, by hook; the node's default deadline stands beside it.
    pub p99_us: BTreeMap<&'static str, (f64, f64)>,
    /// The most memory that an instance had.
    pub memory_peak_bytes: u64,
    /// What is wrong; nothing if all is well.
    pub wrong: Vec<String>,
    /// What is not wrong but may surprise.
    pub warnings: Vec<String>,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let checked = check(args)?;
    if args.json {
        print_json(&checked)?;
    } else {
        print(&checked);
    }
    Ok(if checked.wrong.is_empty() { Outcome::Well } else { Outcome::Wrong })
}

/// Loads the file and calls all its hooks.
///
/// # Errors
/// When it cannot be read or is no policy at all.
pub fn check(args: &CheckArgs) -> anyhow::Result<Checked> {
    let bytes =
        std::fs::read(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let kind = match inspect::kind(&bytes)? {
        Kind::Component => "component",
        Kind::Module => "module",
    };
    let engine = engine(false)?;
    let opened = open(&engine, &args.file, &args.open)?;
    let mut wrong = Vec::new();
    let plans = call_hooks(&opened, args, &mut wrong);
    if opened.slot.serves(Hook::Scheduler) {
        let again = open(&engine, &args.file, &args.open)?;
        let others = plan_steps(&again.slot, args, &mut Vec::new());
        if let Some(step) = (0..plans.len()).find(|&step| plans[step] != others[step]) {
            wrong.push(format!("it is not deterministic: a fresh instance planned step {step} otherwise"));
        }
    }
    engine.settle();
    let status = opened.status()?;
    for fault in &status.faults {
        let hook = fault.hook.unwrap_or("start");
        wrong.push(format!("{hook} {}: {}", fault.verdict, fault.reason));
    }
    let mut warnings = Vec::new();
    let mut p99_us = BTreeMap::new();
    for calls in &status.calls {
        let faults =
            Verdict::ALL.into_iter().filter(|verdict| !matches!(verdict, Verdict::Used | Verdict::None));
        let num_faults: u64 = faults.map(|verdict| calls.count(verdict)).sum();
        if num_faults + calls.skipped > 0 {
            let all = calls.verdicts.values().sum::<u64>() + calls.skipped;
            wrong.push(format!(
                "{}: {num_faults} of {all} calls failed, {} were not made",
                calls.hook, calls.skipped
            ));
        }
        if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.name() == calls.hook) {
            let deadline_us = Deadlines::default().of(hook).as_micros() as f64;
            p99_us.insert(calls.hook, (calls.p99_us, deadline_us));
            if calls.p99_us > deadline_us {
                warnings.push(format!(
                    "{}: a hundredth of the calls took longer than {} us, and {deadline_us} are allowed by default",
                    calls.hook, calls.p99_us
                ));
            }
        }
    }
    Ok(Checked {
        kind,
        size_bytes: bytes.len() as u64,
        sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        policy: opened.loaded,
        verdicts: status.calls.iter().map(|calls| (calls.hook, calls.verdicts.clone())).collect(),
        p99_us,
        memory_peak_bytes: status.memory_peak_bytes,
        wrong,
        warnings,
    })
}

fn call_hooks(opened: &Opened, args: &CheckArgs, wrong: &mut Vec<String>) -> Vec<Option<Plan>> {
    let slot = &opened.slot;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(args.seed);
    let mut numbers = || -> u32 {
        let bits = random.random_range(0..=32);
        (random.random::<u64>() & ((1 << bits) - 1)) as u32
    };
    let plans = if slot.serves(Hook::Scheduler) { plan_steps(slot, args, wrong) } else { Vec::new() };
    // Whatever it answers counts as a verdict; the answers themselves change nothing here.
    for call in 0..args.calls {
        let load = load(u64::from(call) * 250_000, &mut numbers);
        if slot.serves(Hook::Batcher) {
            let _ = slot.tune(&load);
        }
        if slot.serves(Hook::Admission) {
            let _ = slot.decide(&request(call, &mut numbers), &load);
        }
        if slot.serves(Hook::Autoscaler) {
            let _ = slot.evaluate(&window(call as usize % 61, &mut numbers), replicas(&mut numbers));
        }
        if slot.serves(Hook::Feedback) {
            slot.observe(&completed(call as usize % 65, &mut numbers));
        }
    }
    plans
}

/// Plans fuzzed steps, and tells the policy what becomes of each.
fn plan_steps(slot: &Slot, args: &CheckArgs, wrong: &mut Vec<String>) -> Vec<Option<Plan>> {
    let mut planner = slot.planner();
    let mut fuzz = Fuzz::new(args.seed);
    let mut plans = Vec::with_capacity(args.calls as usize);
    for step in 0..args.calls {
        let snapshot = fuzz.next();
        let plan = planner.plan(&snapshot);
        if let Some(plan) = &plan {
            let judgement = plan::check(&snapshot, plan);
            if let Err(error) = judgement
                && wrong.is_empty()
            {
                let (waiting, running) = (snapshot.waiting.id.len(), snapshot.running.id.len());
                wrong.push(format!("step {step}, {waiting} rows waiting and {running} running: {error}"));
            }
            planner.judged(judgement);
        }
        plans.push(plan);
    }
    plans
}

fn load(now_us: u64, numbers: &mut impl FnMut() -> u32) -> NodeLoad {
    let kv_total = numbers().max(1);
    NodeLoad {
        now_us,
        waiting: numbers(),
        waiting_tokens: u64::from(numbers()),
        running: numbers(),
        kv_free: numbers().min(kv_total),
        kv_total,
        step_p50_us: numbers(),
        step_p99_us: numbers(),
        ttft_p95_ms: numbers(),
        tpot_p95_us: numbers(),
        tokens_per_second: numbers(),
        token_budget: numbers().max(1),
        max_running: numbers().max(1),
        wait_window_us: numbers(),
    }
}

fn request(call: u32, numbers: &mut impl FnMut() -> u32) -> AdmissionRequest {
    AdmissionRequest {
        id: u64::from(call) + 1,
        tenant: ["", "alpha", "beta", "\u{1f33e} two words"][call as usize % 4].to_owned(),
        model: "model".to_owned(),
        adapter: numbers().is_multiple_of(2).then(|| "adapter".to_owned()),
        prompt_tokens: numbers(),
        max_new: numbers().max(1),
        priority: numbers() as u8,
        deadline_ms: numbers().is_multiple_of(2).then(&mut *numbers),
        attributes: vec![("x-key".to_owned(), "value".repeat((numbers() % 64) as usize))],
    }
}

fn window(rows: usize, numbers: &mut impl FnMut() -> u32) -> Window {
    let mut column = |most: u32| (0..rows).map(|_| numbers().min(most)).collect::<Vec<u32>>();
    Window {
        interval_ms: 1000,
        arrivals: column(100_000),
        rejected: column(100_000),
        waiting: column(u32::MAX),
        running: column(u32::MAX),
        busy_permille: column(1000),
        kv_used_permille: column(1000),
        ttft_p95_ms: column(u32::MAX),
        tpot_p95_us: column(u32::MAX),
        power_mw: column(1_000_000),
    }
}

fn replicas(numbers: &mut impl FnMut() -> u32) -> Replicas {
    let min = numbers() % 3;
    let [ready, starting, draining] = [numbers() % 5, numbers() % 3, numbers() % 3];
    Replicas { ready, starting, draining, min, max: min + numbers() % 8, start_ms: numbers() % 60_000 }
}

fn completed(rows: usize, numbers: &mut impl FnMut() -> u32) -> Completed {
    let ends = [Ended::Finished, Ended::Cancelled, Ended::Failed, Ended::Expired];
    let mut column = || (0..rows).map(|_| numbers()).collect::<Vec<u32>>();
    Completed {
        id: (1..=rows as u64).collect(),
        tenant: column(),
        outcome: (0..rows).map(|row| ends[row % ends.len()]).collect(),
        prompt_tokens: column(),
        new_tokens: column(),
        queue_us: column(),
        ttft_us: column(),
    }
}

fn print(checked: &Checked) {
    let policy = &checked.policy;
    println!("{} {}, a {} of {} bytes", policy.name, policy.version, checked.kind, checked.size_bytes);
    println!("sha256   {}", checked.sha256);
    println!("hooks    {}", policy.hooks.join(", "));
    println!(
        "imports  {}",
        if policy.imports.is_empty() { "nothing".to_owned() } else { policy.imports.join(", ") }
    );
    println!("memory   {} KiB at most", checked.memory_peak_bytes >> 10);
    for (hook, verdicts) in &checked.verdicts {
        let counts = verdicts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<String> = counts.map(|(verdict, count)| format!("{count} {verdict}")).collect();
        let (p99_us, deadline_us) = checked.p99_us.get(hook).copied().unwrap_or_default();
        println!("{hook:<12} {}; p99 {p99_us:.1} us of {deadline_us} us", counts.join(", "));
    }
    checked.warnings.iter().for_each(|warning| println!("warning: {warning}"));
    checked.wrong.iter().for_each(|wrong| println!("WRONG: {wrong}"));
    println!("{}", if checked.wrong.is_empty() { "all is well" } else { "not fit to serve" });
}
