//! What a policy of the slow hooks costs, above all one with a language's run time
//! inside: loading it without and with compiled code at hand, and a call.
//!
//! `cargo run --release -p quern-extensions --example slow_call -- POLICY.wasm [CALLS]`

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quern_extensions::{
    AdmissionRequest, Cache, Deadlines, EngineSettings, Hook, NodeLoad, PolicyEngine, Profile, Quarantine,
    Replicas, Settings, Slot, Source, Trial, Window,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("which policy? give its file")?);
    let calls: usize = args.next().map_or(Ok(2_000), |calls| calls.parse())?;
    let folder = tempfile::tempdir()?;
    let mut last = None;
    for what in ["compiled", "from the cache"] {
        // The first finds the folder empty, the second what the first left there.
        let cache = Cache::At(folder.path().join("policies"));
        let engine = PolicyEngine::new(&EngineSettings { cache, ..EngineSettings::default() })?;
        let slot = Slot::new(&engine, settings());
        let began = Instant::now();
        let loaded = slot.load(&Source::File(path.clone()))?;
        println!("{} {}: {what} and started in {:?}", loaded.name, loaded.version, began.elapsed());
        last = Some((engine, slot));
    }
    let (_engine, slot) = last.ok_or("nothing was loaded")?;
    let hooks = [Hook::Admission, Hook::Batcher, Hook::Autoscaler];
    let hook = hooks.into_iter().find(|&hook| slot.serves(hook)).ok_or("it has none of the slow hooks")?;
    let mut times: Vec<Duration> = (0..calls)
        .map(|call| {
            let began = Instant::now();
            ask(&slot, hook, call as u32);
            began.elapsed()
        })
        .collect();
    let first = times[0];
    times.sort_unstable();
    let at = |share: f64| times[((calls as f64 * share) as usize).min(calls - 1)];
    println!(
        "{} calls: p50 {:?}, p99 {:?}, most {:?}, the first {first:?}",
        hook.name(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let status = slot.status().serving.ok_or("it was unloaded")?;
    println!("memory: {} KiB at most", status.memory_peak_bytes >> 10);
    for calls in &status.calls {
        println!("{}: {:?}", calls.hook, calls.verdicts);
    }
    status.faults.iter().for_each(|fault| println!("FAULT: {}", fault.reason));
    Ok(())
}

fn settings() -> Settings {
    let long = Duration::from_secs(1);
    Settings {
        profile: Profile::Scripted,
        trial: Trial { calls: 0, forgiven: 0 },
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        deadlines: Deadlines {
            batcher: long,
            admission: long,
            autoscaler: long,
            init: 10 * long,
            ..Deadlines::default()
        },
        ..Settings::named("slow_call")
    }
}

fn ask(slot: &Slot, hook: Hook, call: u32) {
    let load = NodeLoad {
        waiting: call % 5,
        running: 10 + call % 50,
        max_running: 64,
        kv_free: 3000,
        kv_total: 16_384,
        ttft_p95_ms: 300,
        ..NodeLoad::default()
    };
    match hook {
        Hook::Autoscaler => {
            let column = |factor: u32| (0..12).map(|row| (row + call) % 9 * factor).collect::<Vec<u32>>();
            let window = Window {
                interval_ms: 5000,
                arrivals: column(2),
                rejected: column(0),
                waiting: column(3),
                running: column(4),
                busy_permille: column(100),
                kv_used_permille: column(90),
                ttft_p95_ms: column(50),
                tpot_p95_us: column(3000),
                power_mw: column(0),
            };
            let replicas = Replicas { ready: 1, min: 0, max: 8, ..Replicas::default() };
            std::hint::black_box(slot.evaluate(&window, replicas));
        }
        Hook::Batcher => {
            std::hint::black_box(slot.tune(&load));
        }
        _ => {
            let request = AdmissionRequest {
                id: u64::from(call),
                tenant: format!("tenant {}", call % 7),
                model: "model".to_owned(),
                prompt_tokens: 100 + call % 6000,
                max_new: 256,
                priority: 128,
                ..AdmissionRequest::default()
            };
            std::hint::black_box(slot.decide(&request, &load));
        }
    }
}
