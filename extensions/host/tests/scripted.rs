//! The policies in JavaScript and Python, in this host. They are built by
//! `extensions/build-scripted-guests`, which wants npm and pip; where nobody ran it,
//! these tests say so and end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::lenient;
use quern_extensions::{
    AdmissionRequest, Cache, Deadlines, Decision, EngineSettings, Hook, LoadError, NodeLoad, PolicyEngine,
    Profile, Reason, Replicas, Settings, Slot, Source, Window,
};
use tempfile::TempDir;

fn built(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().unwrap();
    // target/release/deps/THIS
    let beside = || exe.ancestors().nth(3).unwrap().join("guests");
    let folder = std::env::var_os("GUESTS_DIR").map_or_else(beside, PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there; extensions/build-scripted-guests builds it", path.display());
        return None;
    }
    Some(path)
}

/// With a cache of its own, for compiling a run time takes its time.
fn engine() -> (PolicyEngine, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::At(folder.path().join("policies"));
    (PolicyEngine::new(&EngineSettings { cache, ..EngineSettings::default() }).unwrap(), folder)
}

/// As an operator would set a place up for a script, with time for a slow machine.
fn scripted(config: &[(&str, &str)]) -> Settings {
    let long = Duration::from_secs(5);
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Settings {
        profile: Profile::Scripted,
        deadlines: Deadlines {
            admission: long,
            autoscaler: long,
            save: long,
            init: 10 * long,
            ..Deadlines::default()
        },
        config: config.collect(),
        ..lenient("scripted")
    }
}

#[test]
fn admission_in_javascript_refuses_and_limits_in_a_crowded_node() {
    let Some(path) = built("javascript-admission") else { return };
    let (engine, _folder) = engine();
    let slot = Slot::new(&engine, scripted(&[("long-tokens", "1000"), ("spare-tokens", "100")]));
    let loaded = slot.load(&Source::File(path.clone())).unwrap();
    assert_eq!((loaded.name.as_str(), &loaded.hooks[..]), ("javascript-admission", &["admission"][..]));
    let calm = NodeLoad { running: 1, max_running: 10, kv_total: 100, kv_free: 90, ..NodeLoad::default() };
    let crowded = NodeLoad { running: 10, waiting: 3, ttft_p95_ms: 2000, ..calm };
    let long = AdmissionRequest {
        tenant: "täglich".to_owned(),
        prompt_tokens: 900,
        max_new: 500,
        priority: 9,
        deadline_ms: Some(5),
        attributes: vec![("x-team".to_owned(), "blue".to_owned())],
        ..AdmissionRequest::default()
    };
    let accept = |max_new| Some(Decision::Accept { priority: 9, max_new, adapter: None });
    assert_eq!(slot.decide(&long, &calm), accept(500));
    let Some(Decision::Reject { reason, retry_after, message }) = slot.decide(&long, &crowded) else {
        panic!("{:?}", slot.status().serving)
    };
    assert_eq!((reason, retry_after), (Reason::Overloaded, Some(Duration::from_secs(6))));
    assert!(message.contains("requests of 1400 tokens"), "{message}");
    let short = AdmissionRequest { prompt_tokens: 9, ..long };
    assert_eq!(slot.decide(&short, &crowded), accept(100));

    // What is wrong in the settings is told as the script tells it.
    let slot = Slot::new(&engine, scripted(&[("long-tokens", "many")]));
    let refused = slot.load(&Source::File(path)).unwrap_err();
    assert!(
        matches!(&refused, LoadError::Start(fault) if fault.reason.contains("'many' is no number")),
        "{refused:?}"
    );
}

#[test]
fn an_autoscaler_in_python_wants_workers_for_sequences() {
    let Some(path) = built("python-autoscaler") else { return };
    let (engine, _folder) = engine();
    let slot = Slot::new(&engine, scripted(&[("target-sequences", "4")]));
    let loaded = slot.load(&Source::File(path)).unwrap();
    assert_eq!((loaded.name.as_str(), &loaded.hooks[..]), ("python-autoscaler", &["autoscaler"][..]));
    let replicas = Replicas { ready: 1, min: 0, max: 8, ..Replicas::default() };
    let window = |running: &[u32]| Window {
        interval_ms: 5000,
        arrivals: running.to_vec(),
        waiting: vec![0; running.len()],
        running: running.to_vec(),
        ..Window::default()
    };
    let desired = |running: &[u32]| {
        let target = slot.evaluate(&window(running), replicas);
        let target = target.unwrap_or_else(|| panic!("{:?}", slot.status().serving.unwrap().faults));
        (target.desired, target.reason)
    };
    assert_eq!(desired(&[2, 11, 11]).0, 3);
    assert_eq!(desired(&[0, 0, 0]), (0, "nothing to do in the whole window".to_owned()));
    assert_eq!(desired(&[400, 400, 400]).0, 8);
    // An answer is no opinion where there is nothing to go by.
    assert_eq!(slot.evaluate(&window(&[]), replicas), None);
    assert!(slot.serves(Hook::Autoscaler) && !slot.serves(Hook::Scheduler));
    // A script that is loaded again takes over from itself.
    let again = built("python-autoscaler").unwrap();
    slot.load(&Source::File(again)).unwrap();
    assert_eq!(slot.evaluate(&window(&[2, 11, 11]), replicas).unwrap().desired, 3);
    engine.settle();
}
