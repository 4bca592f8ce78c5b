//! What one step's plan costs with a policy, by rows: filling the snapshot's
//! columns, the call into the guest, and checking the plan.
//!
//! `cargo run --release -p quern-extensions --example call_cost -- POLICY.wasm [CALLS]`

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quern_engine::AdapterId;
use quern_extensions::{
    Cache, Deadlines, EngineSettings, Hook, PolicyEngine, Quarantine, Settings, Slot, Source, Trial, Verdict,
};
use quern_scheduler::plan::{self, NO_DEADLINE, Planner as _, Snapshot};

const ROWS: [usize; 5] = [0, 16, 64, 256, 1024];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("which policy? give its file")?);
    let calls: usize = args.next().map_or(Ok(20_000), |calls| calls.parse())?;

    let engine = PolicyEngine::new(&EngineSettings { cache: Cache::Off, ..EngineSettings::default() })?;
    let settings = Settings {
        trial: Trial { calls: 0, forgiven: 0 },
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        deadlines: Deadlines { scheduler: Duration::from_millis(20), ..Deadlines::default() },
        ..Settings::named("call_cost")
    };
    let slot = Slot::new(&engine, settings);
    let began = Instant::now();
    let loaded = slot.load(&Source::File(path))?;
    println!("{} {}: loaded in {:?}, {} calls each", loaded.name, loaded.version, began.elapsed(), calls);
    println!("{:>13} {:>9} {:>9} {:>9}  {:>9}", "rows", "p50 us", "p99 us", "p99.9 us", "of it p50 call");

    let mut planner = slot.planner();
    for rows in ROWS {
        let mut snapshot = Snapshot::default();
        let mut whole = Vec::with_capacity(calls);
        let mut inner = Vec::with_capacity(calls);
        for call in 0..calls + calls / 10 {
            let began = Instant::now();
            fill(&mut snapshot, rows, call as u64);
            let asked = Instant::now();
            let plan = planner.plan(&snapshot);
            let answered = asked.elapsed();
            if let Some(plan) = plan {
                let judgement = plan::check(&snapshot, &plan);
                planner.judged(judgement);
                black_box(plan);
            }
            // The first tenth warms up.
            if call >= calls / 10 {
                whole.push(began.elapsed());
                inner.push(answered);
            }
        }
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&mut whole, share));
        let call = quantile(&mut inner, 0.5);
        println!("{rows:>5} + {rows:>5} {p50:>9.2} {p99:>9.2} {p999:>9.2}  {call:>9.2}");
    }
    let status = slot.status().serving.ok_or("the policy was unloaded")?;
    let calls = status.hook(Hook::Scheduler).ok_or("the policy plans no steps")?;
    for verdict in Verdict::ALL {
        println!("{:>8}: {}", verdict.name(), calls.count(verdict));
    }
    println!("memory: {} KiB at most", status.memory_peak_bytes >> 10);
    Ok(())
}

fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let index = (times.len() as f64 * share) as usize;
    times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_nanos() as f64 / 1000.0)
}

/// As the step loop does: all columns anew, in buffers that are kept.
fn fill(snapshot: &mut Snapshot, rows: usize, call: u64) {
    fn refill<T>(column: &mut Vec<T>, rows: usize, value: impl Fn(u64) -> T) {
        column.clear();
        column.extend((0..rows as u64).map(value));
    }
    let step = &mut snapshot.step;
    (step.seq, step.now_us) = (call, call * 2000);
    (step.token_budget, step.max_running, step.kv_free, step.kv_page) = (512, 2048, 100_000, 1);
    (step.last_step_us, step.target_step_us, step.mixes_adapters) = (2000, 50_000, true);
    // Some disorder, the same in every run.
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
