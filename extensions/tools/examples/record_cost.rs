//! What recording costs a step, by rows: the built-in policy alone, behind a tap
//! that records nothing, and behind one that records.
//!
//! `cargo run --release -p quern-policy-tools --example record_cost`

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use quern_engine::AdapterId;
use quern_policy_tools::record::{Limits, Tap};
use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::{self, NO_DEADLINE, Planner, Snapshot};

const CALLS: usize = 20_000;

/// Between two calls, as a step would take; else the queue is all that is measured.
const STEP: Duration = Duration::from_micros(200);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("quern-record-cost-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    println!(
        "{:>8} {:>22} {:>22} {:>22} {:>12}",
        "running", "alone p50/p99 us", "tap p50/p99 us", "recording p50/p99 us", "bytes a step"
    );
    for rows in [0, 8, 64, 256] {
        let snapshot = snapshot(rows);
        let tap = Tap::default();
        let alone = measure(&mut BuiltinPlanner::default(), &snapshot);
        let mut tapped = tap.planner(BuiltinPlanner::default());
        let idle = measure(&mut tapped, &snapshot);
        let recording = tap.start(
            &folder.join(format!("{rows}.rec")),
            None,
            Limits { max_bytes: 1 << 30, ..Limits::default() },
        )?;
        let busy = measure(&mut tapped, &snapshot);
        tap.stop();
        while !recording.counts.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let bytes = recording.counts.num_bytes() / recording.counts.written().max(1);
        let [alone, idle, busy] = [alone, idle, busy].map(|(p50, p99)| format!("{p50:.2} / {p99:.2}"));
        println!(
            "{rows:>8} {alone:>22} {idle:>22} {busy:>22} {bytes:>12}   missed {}",
            recording.counts.missed()
        );
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn measure(planner: &mut dyn Planner, snapshot: &Snapshot) -> (f64, f64) {
    let mut snapshot = snapshot.clone();
    let mut times: Vec<f64> = (0..CALLS as u64)
        .map(|seq| {
            snapshot.step.seq = seq;
            let began = Instant::now();
            let plan = planner.plan(&snapshot);
            if let Some(plan) = &plan {
                planner.judged(plan::check(&snapshot, plan));
            }
            let took = began.elapsed();
            black_box(plan);
            while began.elapsed() < STEP {
                std::hint::spin_loop();
            }
            took.as_nanos() as f64 / 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[CALLS / 2], times[CALLS * 99 / 100])
}

fn snapshot(rows: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let step = &mut snapshot.step;
    (step.token_budget, step.max_running, step.kv_free, step.kv_page) = (512, 512, 100_000, 1);
    (step.fixed_us, step.row_us, step.output_us, step.mixes_adapters) = (5000, 500, 800, true);
    let table = &mut snapshot.running;
    table.id = (1..=rows as u64).collect();
    table.prompt_left = vec![1; rows];
    table.generated = vec![20; rows];
    table.max_new = vec![256; rows];
    table.kv = vec![120; rows];
    table.slack_us = vec![NO_DEADLINE; rows];
    table.priority = vec![128; rows];
    table.tenant = vec![1; rows];
    table.adapter = vec![AdapterId::BASE; rows];
    snapshot
}
