//! A version's life: it comes with what the one before saved, proves itself or
//! is rolled back, is quarantined and comes back, and leaves a trace.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use common::{ENDLESS, NO_OPINION, Node, THIRD, answer, good_plan, guest, lenient, plan_of, snapshot};
use quern_extensions::{
    AdmissionRequest, Cache, Completed, Decision, EngineSettings, Hook, NodeLoad, Outcome, PolicyEngine,
    Quarantine, Reason, Replicas, Settings, Slot, SlotError, StepLimits, Trial, Verdict, Window,
};
use quern_scheduler::plan::Plan;

const GET: &str = "(import \"quern:policy/config@0.1.0\" \"get\" (func $get (param i32 i32 i32)))";
const NOW: &str = "(import \"quern:policy/clock@0.1.0\" \"now-us\" (func $now (result i64)))";
const KV_GET: &str = "(import \"quern:policy/kv@0.1.0\" \"get\" (func $kv_get (param i32 i32 i32)))";
const KV_SET: &str = "(import \"quern:policy/kv@0.1.0\" \"set\" (func $kv_set (param i32 i32 i32 i32 i32)))";

/// Tells a counter by `hold-steps`, and hands it over.
fn counting(name: &str, by: u32) -> common::Guest {
    let plan = plan_of(&Plan { hold_steps: 1, ..good_plan() });
    let told = plan.replace(
        "(i32.store (i32.const 2096) (i32.const 1))",
        "(i32.store (i32.const 2096) (global.get $calls))",
    );
    assert_ne!(plan, told);
    guest()
        .named(name)
        .init("(if (local.get $some) (then (global.set $calls (i32.load (local.get $ptr)))))")
        .save(
            "(i32.store (i32.const 8192) (global.get $calls))
             (i32.store (i32.const 1536) (i32.const 8192))
             (i32.store (i32.const 1540) (i32.const 4))",
        )
        .with(
            Hook::Scheduler,
            format!("(global.set $calls (i32.add (global.get $calls) (i32.const {by}))) {told}"),
        )
}

fn counted(node: &mut Node) -> u32 {
    node.step(&snapshot(1, 1)).unwrap().hold_steps
}

#[test]
fn a_swap_hands_the_state_over_and_every_step_is_served() {
    let mut node = Node::new(lenient("swap"));
    node.slot.load(&counting("one", 1).source()).unwrap();
    let mut total = 0;
    for round in 1..=20 {
        for _ in 0..3 {
            total += round;
            assert_eq!(counted(&mut node), total);
        }
        node.slot.load(&counting("next", round + 1).source()).unwrap();
    }
    let status = node.slot.status();
    assert_eq!(status.history.len(), 16);
    assert!(status.history.iter().all(|past| past.why == "replaced"));
    assert!(status.history.windows(2).all(|pair| pair[0].number == pair[1].number + 1), "newest first");
    assert_eq!(status.serving.unwrap().who.number, 21);
    assert_eq!(status.kept.len(), 4);
}

#[test]
fn a_policy_that_fails_its_trial_gives_way_to_the_one_before() {
    let mut node = Node::new(Settings { trial: Trial { calls: 10, forgiven: 1 }, ..lenient("trial") });
    node.slot.load(&counting("good", 1).source()).unwrap();
    (1..=12).for_each(|count| assert_eq!(counted(&mut node), count));
    node.engine.settle();
    assert_eq!(node.slot.status().serving.unwrap().state, "serving");

    let loaded = node.slot.load(&guest().named("bad").with(Hook::Scheduler, THIRD).source()).unwrap();
    assert_eq!(node.slot.status().serving.unwrap().state, "trial");
    for _ in 0..6 {
        assert_eq!(node.step(&snapshot(1, 1)), None);
        node.engine.settle();
    }
    // The instance that was kept goes on where it stopped.
    assert_eq!(counted(&mut node), 13);
    let status = node.slot.status();
    let serving = status.serving.unwrap();
    assert_eq!((serving.who.name.as_str(), serving.state), ("good", "serving"));
    assert_eq!(status.history[0].number, loaded.number);
    assert_eq!(status.history[0].why, "faults in its trial");
    assert!(status.kept.is_empty());
}

#[test]
fn a_first_policy_that_fails_its_trial_leaves_the_place_empty() {
    let mut node = Node::new(Settings { trial: Trial { calls: 10, forgiven: 0 }, ..lenient("first") });
    node.slot.load(&guest().with(Hook::Scheduler, ENDLESS).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    node.engine.settle();
    assert!(node.slot.status().serving.is_none());
    assert_eq!(node.step(&snapshot(1, 1)), None);
}

#[test]
fn invalid_plans_count_in_a_trial() {
    let mut node = Node::new(Settings { trial: Trial { calls: 10, forgiven: 0 }, ..lenient("invalid") });
    let body = plan_of(&Plan { admit: vec![7], ..good_plan() });
    node.slot.load(&guest().with(Hook::Scheduler, body).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    node.engine.settle();
    assert!(node.slot.status().serving.is_none());
}

#[test]
fn an_operator_rolls_back_unloads_and_rolls_back_again() {
    let mut node = Node::new(lenient("operator"));
    assert!(matches!(node.slot.roll_back(), Err(SlotError::NothingBefore)));
    node.slot.load(&counting("one", 1).source()).unwrap();
    assert_eq!(counted(&mut node), 1);
    node.slot.load(&counting("two", 10).source()).unwrap();
    assert_eq!(counted(&mut node), 11);
    assert_eq!(node.slot.roll_back().unwrap().name, "one");
    assert_eq!(counted(&mut node), 12);
    assert!(matches!(node.slot.roll_back(), Err(SlotError::NothingBefore)));
    assert!(node.slot.unload());
    assert!(!node.slot.unload());
    assert!(!node.slot.serves(Hook::Scheduler));
    assert_eq!(node.step(&snapshot(1, 1)), None);
    assert_eq!(node.slot.roll_back().unwrap().name, "one");
    assert_eq!(counted(&mut node), 1);
    let whys: Vec<String> = node.slot.status().history.into_iter().map(|past| past.why).collect();
    assert_eq!(whys, ["unloaded", "rolled back by the operator", "replaced"]);
}

#[test]
fn repeated_faults_quarantine_and_rehearsals_readmit() {
    let quarantine = Quarantine {
        max_faults: 3,
        back_off: Duration::ZERO,
        max_back_off: Duration::ZERO,
        rehearsals: 4,
        ..Quarantine::default()
    };
    let mut node = Node::new(Settings { quarantine, ..lenient("quarantine") });
    // Invalid as long as the step's budget is small, in order after that.
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let mut tight = snapshot(1, 1);
    tight.step.token_budget = 50;
    (0..3).for_each(|_| assert_eq!(node.step(&tight), None));
    assert_eq!(node.slot.status().serving.unwrap().state, "quarantined");
    // The back-off is over at once: a rehearsal that goes wrong begins it anew.
    assert_eq!(node.step(&tight), None);
    let serving = node.slot.status().serving.unwrap();
    assert_eq!((serving.state, serving.times_quarantined), ("quarantined", 2));
    for _ in 0..4 {
        assert_eq!(node.step(&snapshot(1, 1)), None, "a rehearsal decides nothing");
    }
    assert_eq!(node.slot.status().serving.unwrap().state, "serving");
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
    let serving = node.slot.status().serving.unwrap();
    let calls = serving.hook(Hook::Scheduler).unwrap();
    assert_eq!((calls.count(Verdict::Used), calls.count(Verdict::Invalid), calls.rehearsed), (1, 4, 4));
}

#[test]
fn in_quarantine_nobody_is_asked() {
    let mut node =
        Node::new(Settings { quarantine: Quarantine::default(), ..lenient("quarantine for long") });
    node.slot.load(&guest().with(Hook::Scheduler, ENDLESS).source()).unwrap();
    for _ in 0..20 {
        assert_eq!(node.step(&snapshot(1, 1)), None);
        node.engine.settle();
    }
    let serving = node.slot.status().serving.unwrap();
    assert_eq!(serving.state, "quarantined");
    assert!(serving.quarantine_left_ms > 0);
    let calls = serving.hook(Hook::Scheduler).unwrap();
    assert_eq!((calls.count(Verdict::Late), calls.skipped), (5, 15));
    assert_eq!(serving.faults.len(), 5);
    // Another version starts with a clean slate.
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
}

#[test]
fn a_spare_takes_over_after_a_fault() {
    let mut node = Node::new(lenient("spare"));
    let body = THIRD.replace("(i32.const 2048)", &plan_of(&good_plan()));
    node.slot.load(&guest().with(Hook::Scheduler, body).source()).unwrap();
    // Nobody waits for the next spare: the one that stood ready serves at once.
    let plans: Vec<bool> = (0..5).map(|_| node.step(&snapshot(1, 1)).is_some()).collect();
    assert_eq!(plans, [true, true, false, true, true]);
}

#[test]
fn a_new_step_loop_gets_an_instance_of_its_own() {
    let mut node = Node::new(lenient("workers"));
    node.slot.load(&counting("one", 1).source()).unwrap();
    (1..=3).for_each(|count| assert_eq!(counted(&mut node), count));
    let other = node.slot.planner();
    let mut other = Node { engine: node.engine.clone(), slot: node.slot.clone(), planner: other };
    assert_eq!(counted(&mut other), 1);
    assert_eq!(counted(&mut node), 4);
    // Each is handed what its own instance saved.
    node.slot.load(&counting("two", 1).source()).unwrap();
    assert_eq!((counted(&mut node), counted(&mut other)), (5, 2));
    drop(other);
    node.slot.load(&counting("three", 1).source()).unwrap();
    assert_eq!(counted(&mut node), 6);
}

#[test]
fn a_candidate_is_compared_and_promoted() {
    let mut node = Node::new(lenient("shadow"));
    node.slot.load(&guest().named("live").with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    assert!(matches!(node.slot.promote_shadow(), Err(SlotError::NoCandidate)));
    let other = Plan { admit_chunk: vec![50], ..good_plan() };
    node.slot.shadow(&guest().named("next").with(Hook::Scheduler, plan_of(&other)).source()).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
        let candidate = node.slot.status().candidate.unwrap();
        if candidate.different >= 20 {
            assert_eq!(candidate.same, 0);
            assert_eq!(candidate.different_by["admit_chunk"], candidate.different);
            assert_eq!(candidate.different_by["admit"], 0);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{candidate:?}");
        std::thread::yield_now();
    }
    assert_eq!(node.slot.promote_shadow().unwrap().name, "next");
    assert_eq!(node.step(&snapshot(1, 1)), Some(other));
    assert!(node.slot.status().candidate.is_none());
    assert!(!node.slot.stop_shadow());
}

#[test]
fn an_evil_candidate_costs_the_live_version_nothing() {
    let mut node = Node::new(Settings { quarantine: Quarantine::default(), ..lenient("evil shadow") });
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    node.slot.shadow(&guest().with(Hook::Scheduler, ENDLESS).source()).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while node.slot.status().candidate.unwrap().version.state != "quarantined" {
        assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(node.slot.stop_shadow());
    assert_eq!(node.count(Hook::Scheduler, Verdict::Late), 0);
}

#[test]
fn the_other_hooks_answer_in_plain_types() {
    let slow = guest()
        .with(Hook::Batcher, answer(&[0, 1, 256, 8, 2000, 50_000, 250]))
        // ok, some, reject, quota, some 1500 ms, message of 5 bytes at 512.
        .with(Hook::Admission, answer(&[0, 1, 1, 1, 1, 1500, 512, 5]))
        .with(Hook::Autoscaler, answer(&[0, 1, 3, 512, 5, 4000]));
    let node = Node::new(lenient("slow"));
    assert_eq!(node.slot.tune(&NodeLoad::default()), None);
    node.slot.load(&slow.source()).unwrap();
    let limits = StepLimits {
        token_budget: 256,
        max_running: 8,
        wait_window: Duration::from_millis(2),
        target_step: Duration::from_millis(50),
        hold: Duration::from_millis(250),
    };
    assert_eq!(node.slot.tune(&NodeLoad::default()), Some(limits));
    let request = AdmissionRequest {
        tenant: "someone".to_owned(),
        attributes: vec![("x-team".to_owned(), "blue".to_owned())],
        ..AdmissionRequest::default()
    };
    let refusal = Decision::Reject {
        reason: Reason::Quota,
        retry_after: Some(Duration::from_millis(1500)),
        message: "guest".to_owned(),
    };
    assert_eq!(node.slot.decide(&request, &NodeLoad::default()), Some(refusal));
    let target = node.slot.evaluate(&Window::default(), Replicas::default()).unwrap();
    assert_eq!((target.desired, target.reason.as_str()), (3, "guest"));
    for hook in [Hook::Batcher, Hook::Admission, Hook::Autoscaler] {
        assert_eq!(node.count(hook, Verdict::Used), 1);
    }
    assert!(!node.slot.serves(Hook::Scheduler));
}

#[test]
fn limits_that_nothing_could_run_under_are_invalid() {
    let node = Node::new(lenient("zero"));
    node.slot.load(&guest().with(Hook::Batcher, answer(&[0, 1, 0, 8])).source()).unwrap();
    assert_eq!(node.slot.tune(&NodeLoad::default()), None);
    assert_eq!(node.count(Hook::Batcher, Verdict::Invalid), 1);
}

#[test]
fn feedback_reaches_the_instance_that_decides() {
    // `observe` adds the number of rows; `plan-step` tells it by `hold-steps`.
    let observed = counting("observer", 0)
        .with(Hook::Feedback, "(global.set $calls (i32.add (global.get $calls) (local.get 1)))");
    let mut node = Node::new(lenient("feedback"));
    node.slot.load(&observed.source()).unwrap();
    let completed = Completed {
        id: vec![1, 2, 3],
        tenant: vec![0; 3],
        outcome: vec![Outcome::Finished, Outcome::Cancelled, Outcome::Expired],
        prompt_tokens: vec![5; 3],
        new_tokens: vec![5; 3],
        queue_us: vec![5; 3],
        ttft_us: vec![5; 3],
    };
    node.slot.observe(&completed);
    node.slot.observe(&completed);
    assert_eq!(counted(&mut node), 6);
    assert_eq!(node.count(Hook::Feedback, Verdict::Used), 2);
    // One that only observes is shown them as well.
    node.slot.load(&guest().with(Hook::Feedback, "").source()).unwrap();
    node.slot.observe(&completed);
    assert_eq!(node.count(Hook::Feedback, Verdict::Used), 1);
}

#[test]
fn a_guest_reads_its_settings_and_a_clock_that_stands_still() {
    // `hold-steps` is the length of the setting under the guest's own name.
    let told = plan_of(&Plan { hold_steps: 1, ..good_plan() }).replace(
        "(i32.store (i32.const 2096) (i32.const 1))",
        "(i32.store (i32.const 2096) (i32.load (i32.const 8200)))",
    );
    let body = format!(
        "(if (i64.ne (call $now) (i64.const 777)) (then unreachable))
         (if (i64.ne (call $now) (call $now)) (then unreachable))
         (call $get (i32.const 512) (i32.const 5) (i32.const 8192))
         (if (i32.ne (i32.load (i32.const 8192)) (i32.const 1)) (then unreachable))
         {told}"
    );
    let config = [("guest".to_owned(), "four and more".to_owned())].into();
    let mut node = Node::new(Settings { config, ..lenient("settings") });
    node.slot.load(&guest().import(GET).import(NOW).with(Hook::Scheduler, body).source()).unwrap();
    let mut seen = snapshot(1, 1);
    seen.step.now_us = 777;
    assert_eq!(node.step(&seen).map(|plan| plan.hold_steps), Some(13));
}

#[test]
fn the_store_outlives_an_instance() {
    // Sets once, then traps; whoever comes after finds it.
    let body = format!(
        "(call $kv_get (i32.const 512) (i32.const 5) (i32.const 8192))
         (if (i32.eqz (i32.load8_u (i32.const 8192)))
           (then
             (call $kv_set (i32.const 512) (i32.const 5) (i32.const 512) (i32.const 5) (i32.const 8300))
             (unreachable)))
         {}",
        plan_of(&good_plan())
    );
    let keeper = guest().import(KV_GET).import(KV_SET).with(Hook::Scheduler, body);
    let mut node = Node::new(lenient("store"));
    node.slot.load(&keeper.source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
    node.slot.load(&keeper.named("keeper").source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None, "another name is another key");
}

#[test]
fn compiled_code_is_kept_and_found_again() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("policies");
    let settings = EngineSettings { cache: Cache::At(folder.clone()), ..EngineSettings::default() };
    for _ in 0..2 {
        let engine = PolicyEngine::new(&settings).unwrap();
        assert!(engine.is_cached());
        let slot = Slot::new(&engine, lenient("kept"));
        slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
        let mut node = Node { planner: slot.planner(), engine, slot };
        assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}

#[test]
fn without_address_space_for_a_pool_policies_run_all_the_same() {
    let settings = EngineSettings { cache: Cache::Off, max_instances: 40_000, ..EngineSettings::default() };
    let engine = PolicyEngine::new(&settings).unwrap();
    assert!(!engine.is_pooled());
    let slot = Slot::new(&engine, lenient("on demand"));
    slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let mut node = Node { planner: slot.planner(), engine, slot };
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
}

#[test]
fn instructions_are_counted_where_tools_want_them_and_are_the_same_each_time() {
    let settings =
        EngineSettings { cache: Cache::Off, count_instructions: true, ..EngineSettings::default() };
    let engine = PolicyEngine::new(&settings).unwrap();
    let slot = Slot::new(&engine, lenient("counted"));
    slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let mut node = Node { planner: slot.planner(), engine, slot };
    let mut counts = Vec::new();
    for _ in 0..3 {
        node.step(&snapshot(1, 1)).unwrap();
        let serving = node.slot.status().serving.unwrap();
        counts.push(serving.hook(Hook::Scheduler).unwrap().instructions);
    }
    assert!(counts[0] > 50);
    assert_eq!([counts[1], counts[2]], [2 * counts[0], 3 * counts[0]]);
}

#[test]
fn status_is_json() {
    let mut node = Node::new(lenient("json"));
    let text = serde_json::to_string(&node.slot.status()).unwrap();
    assert!(text.contains("\"serving\":null"), "{text}");
    node.slot.load(&guest().with(Hook::Scheduler, NO_OPINION).source()).unwrap();
    node.step(&snapshot(1, 1));
    let status: serde_json::Value = serde_json::to_value(node.slot.status()).unwrap();
    assert_eq!(status["serving"]["hooks"][0], "scheduler");
    assert_eq!(status["serving"]["calls"][0]["verdicts"]["none"], 1);
    assert!(status["serving"]["calls"][0]["p50_us"].as_f64().unwrap() > 0.0);
    let imports = status["serving"]["imports"].as_array().unwrap();
    assert!(imports.iter().all(|name| name.as_str().unwrap().starts_with("quern:policy/")));
}
