//! Hostile guests in a node under load: each comes while clients stream, and every
//! answer stays what it is without a policy.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use quern_extensions::{Quarantine, Settings, Trial};

use crate::guests::evil::{loadable, refused};
use crate::guests::{NO_OPINION, good_plan, guest, plan_of};
use crate::load::{Load, node};
use crate::setting::{load_bytes, status, unload};
use crate::support::soon;

/// Answers that each has to get beside every guest.
const ANSWERS: usize = 2;

/// No guest may cost this: what is promised is that none costs a second.
const STALL: Duration = Duration::from_secs(1);

/// Default deadlines, and nobody is ever sent away.
fn forgiving() -> Settings {
    Settings {
        trial: Trial { calls: 0, forgiven: 0 },
        quarantine: Quarantine { max_faults: u32::MAX, ..Quarantine::default() },
        ..Settings::named("main")
    }
}

/// Lets every guest do its worst for a while; gives all kinds of verdicts.
async fn run(settings: Settings) -> BTreeSet<String> {
    let server = node(settings, None, false).await;
    let load = Load::begin(&server);
    load.go_on(1).await;
    let mut seen = BTreeSet::new();
    for (what, evil) in loadable() {
        let reply = load_bytes(&server, evil.module()).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.body);
        load.go_on(ANSWERS).await;
        let calls = status(&server).await["serving"]["calls"].clone();
        for hook in calls.as_array().unwrap_or(&Vec::new()) {
            let verdicts = hook["verdicts"].as_object().unwrap();
            seen.extend(
                verdicts.iter().filter(|(_, count)| **count != 0).map(|(verdict, _)| verdict.clone()),
            );
        }
    }
    // Whoever serves stays when files come that must not load.
    load_bytes(&server, guest().with(quern_extensions::Hook::Scheduler, NO_OPINION).module()).await.ok();
    for (what, bytes) in refused() {
        let reply = load_bytes(&server, bytes).await;
        assert_eq!(reply.status, 422, "{what}: {}", reply.body);
        load.go_on(1).await;
        assert_eq!(status(&server).await["serving"]["name"], "guest", "{what}");
    }
    unload(&server).await;
    load.go_on(1).await;
    let longest = load.end().await;
    assert!(longest < STALL, "a client waited for {longest:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_that_are_asked_for_ever_cost_no_request() {
    let seen = run(forgiving()).await;
    for verdict in ["used", "none", "error", "trapped", "late", "invalid"] {
        assert!(seen.contains(verdict), "no call was {verdict}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_are_rolled_back_and_shut_out_and_cost_no_request() {
    let seen = run(Settings::named("main")).await;
    assert!(seen.contains("none"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_half_way_costs_no_request() {
    let hook = quern_extensions::Hook::Scheduler;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.wasm");
    let first = guest().named("first").with(hook, NO_OPINION).component();
    let second = guest().named("second").with(hook, plan_of(&good_plan())).component();
    std::fs::write(&path, &first).unwrap();
    let server = node(forgiving(), Some(&path), true).await;
    let load = Load::begin(&server);
    load.go_on(1).await;
    // A writer that stops half-way: the file is looked at, at rest, and refused.
    std::fs::write(&path, &second[..second.len() / 2]).unwrap();
    let looked = Instant::now();
    while looked.elapsed() < 3 * quern_extensions::watch::PERIOD {
        load.go_on(1).await;
        assert_eq!(status(&server).await["serving"]["name"], "first");
    }
    std::fs::write(&path, &second).unwrap();
    soon(async {
        while status(&server).await["serving"]["name"] != "second" {
            load.go_on(1).await;
        }
    })
    .await;
    load.go_on(ANSWERS).await;
    let longest = load.end().await;
    assert!(longest < STALL, "a client waited for {longest:?}");
}
