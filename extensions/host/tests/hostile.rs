//! Guests that mean harm. Each gets its verdict, and the next step is served:
//! by the spare, or by the built-in policy.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::evil::{
    DEFINE, DEFINE_ONE, EVIL_INITS, EVIL_SAVES, FIFTY_LINES, HUGE_LINE, HUGE_LIST, LINE_OUT_OF_MEMORY, LINES,
    LOG, MANY_SERIES, PICKY_INIT, SAVE_GARBAGE, UPDATE, UPDATES, broken_plans,
};
use common::{
    DEEP, ENDLESS, GREEDY, Guest, NO_OPINION, Node, THIRD, error_of, good_plan, guest, lenient, plan_of,
    snapshot,
};
use quern_engine::AdapterId;
use quern_extensions::{
    AdmissionRequest, Completed, Hook, LoadError, NodeLoad, Outcome, Replicas, Source, Verdict, Window,
};
use quern_scheduler::plan::Plan;

/// Four steps: every one is answered in some way, with the same verdict each
/// time, and then a good version takes over.
fn check_every_step(evil: Guest, verdict: Verdict) -> Node {
    let mut node = Node::new(lenient("evil"));
    node.slot.load(&evil.source()).unwrap();
    let seen = snapshot(1, 1);
    for round in 1..=4 {
        assert_eq!(node.step(&seen), None);
        assert_eq!(node.count(Hook::Scheduler, verdict), round, "{:?}", node.slot.status().serving);
        // The next spare is built beside the steps.
        node.engine.settle();
    }
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    assert_eq!(node.step(&seen), Some(good_plan()));
    node
}

#[test]
fn an_endless_loop_is_late() {
    check_every_step(guest().with(Hook::Scheduler, ENDLESS), Verdict::Late);
}

#[test]
fn allocation_without_end_is_stopped_at_the_cap() {
    let mut node = Node::new(lenient("greedy"));
    node.slot.load(&guest().with(Hook::Scheduler, GREEDY).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    assert_eq!(node.count(Hook::Scheduler, Verdict::Trapped), 1);
    let peak = node.slot.status().serving.unwrap().memory_peak_bytes;
    assert!(peak > 1 << 20 && peak <= 8 << 20, "{peak} bytes");
    check_every_step(guest().with(Hook::Scheduler, GREEDY), Verdict::Trapped);
}

#[test]
fn deep_recursion_traps() {
    check_every_step(guest().with(Hook::Scheduler, DEEP), Verdict::Trapped);
    let mut node = Node::new(lenient("deep"));
    node.slot.load(&guest().with(Hook::Scheduler, DEEP).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    // Operators see what broke, and where.
    let reason = node.last_fault();
    assert!(reason.contains("call stack exhausted < deep"), "{reason}");
}

#[test]
fn a_trap_on_every_third_call_costs_those_calls_only() {
    let mut node = Node::new(lenient("third"));
    let body = THIRD.replace("(i32.const 2048)", &plan_of(&good_plan()));
    node.slot.load(&guest().with(Hook::Scheduler, body).source()).unwrap();
    let seen = snapshot(1, 1);
    for _ in 0..5 {
        assert_eq!(node.step(&seen), Some(good_plan()));
        assert_eq!(node.step(&seen), Some(good_plan()));
        assert_eq!(node.step(&seen), None);
        node.engine.settle();
    }
    assert_eq!(node.count(Hook::Scheduler, Verdict::Used), 10);
    assert_eq!(node.count(Hook::Scheduler, Verdict::Trapped), 5);
    assert!(node.last_fault().contains("unreachable"), "{}", node.last_fault());
}

#[test]
fn an_error_of_its_own_is_no_opinion_and_keeps_the_instance() {
    let node = check_every_step(guest().with(Hook::Scheduler, error_of("not today")), Verdict::Error);
    drop(node);
    let mut node = Node::new(lenient("error"));
    node.slot.load(&guest().with(Hook::Scheduler, error_of("not today")).source()).unwrap();
    assert_eq!(node.step(&snapshot(0, 1)), None);
    assert_eq!(node.last_fault(), "not today");
}

#[test]
fn a_list_of_two_to_the_31_is_not_read() {
    check_every_step(guest().with(Hook::Scheduler, HUGE_LIST), Verdict::Trapped);
}

#[test]
fn an_answer_out_of_memory_or_out_of_line_is_not_read() {
    check_every_step(guest().with(Hook::Scheduler, "(i32.const 0x7fffffff)"), Verdict::Trapped);
    check_every_step(guest().with(Hook::Scheduler, "(i32.const 2049)"), Verdict::Trapped);
    // The result is neither ok nor an error.
    let neither = "(i32.store8 (i32.const 2048) (i32.const 7)) (i32.const 2048)";
    check_every_step(guest().with(Hook::Scheduler, neither), Verdict::Trapped);
    // An error that is no text.
    let no_text = "
        (i32.store (i32.const 2048) (i32.const 1))
        (i32.store (i32.const 4096) (i32.const 0xffffffff))
        (i32.store (i32.const 2052) (i32.const 4096))
        (i32.store (i32.const 2056) (i32.const 4))
        (i32.const 2048)";
    check_every_step(guest().with(Hook::Scheduler, no_text), Verdict::Trapped);
}

#[test]
fn plans_that_break_a_rule_are_invalid() {
    let mut node = Node::new(lenient("invalid"));
    let seen = snapshot(1, 1);
    for (what, plan) in broken_plans() {
        node.slot.load(&guest().with(Hook::Scheduler, plan_of(&plan)).source()).unwrap();
        assert_eq!(node.step(&seen), None, "{what}");
        assert_eq!(node.count(Hook::Scheduler, Verdict::Invalid), 1, "{what}");
        assert_eq!(node.count(Hook::Scheduler, Verdict::Used), 0, "{what}");
    }
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    assert_eq!(node.step(&seen), Some(good_plan()));
}

#[test]
fn more_sequences_or_state_than_there_is_room_for_are_invalid() {
    let mut node = Node::new(lenient("room"));
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let mut full = snapshot(1, 1);
    full.step.max_running = 1;
    assert_eq!(node.step(&full), None);
    let mut short = snapshot(1, 1);
    short.step.kv_free = 50;
    assert_eq!(node.step(&short), None);
    assert_eq!(node.count(Hook::Scheduler, Verdict::Invalid), 2);
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
}

#[test]
fn rows_of_two_adapters_in_a_step_that_cannot_mix_them_are_invalid() {
    let mut node = Node::new(lenient("mixed"));
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let mut seen = snapshot(1, 1);
    seen.running.adapter[0] = AdapterId(1);
    assert_eq!(node.step(&seen), Some(good_plan()));
    seen.step.mixes_adapters = false;
    assert_eq!(node.step(&seen), None);
    assert_eq!(node.count(Hook::Scheduler, Verdict::Invalid), 1);
    let one = Plan { adapter: Some(AdapterId(1)), admit_chunk: vec![0], ..good_plan() };
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&one)).source()).unwrap();
    assert_eq!(node.step(&seen), Some(one));
}

#[test]
fn a_huge_string_to_the_log_traps_the_guest_and_nobody_else() {
    for body in [HUGE_LINE, LINE_OUT_OF_MEMORY] {
        check_every_step(guest().import(LOG).with(Hook::Scheduler, body), Verdict::Trapped);
    }
}

#[test]
fn a_long_message_is_cut_and_a_flood_is_rationed() {
    let mut node = Node::new(lenient("talker"));
    node.slot.load(&guest().import(LOG).with(Hook::Scheduler, FIFTY_LINES).source()).unwrap();
    for _ in 0..4 {
        assert_eq!(node.step(&snapshot(1, 1)), None);
    }
    // 200 lines, of which some tens are kept; none of it is the guest's fault.
    let calls = node.count(Hook::Scheduler, Verdict::None) + node.count(Hook::Scheduler, Verdict::Late);
    assert_eq!(calls, 4);
    // Whichever comes first: the deadline, or all bytes that a call may hand over.
    node.slot.load(&guest().import(LOG).with(Hook::Scheduler, LINES).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    let faults = node.count(Hook::Scheduler, Verdict::Late) + node.count(Hook::Scheduler, Verdict::Trapped);
    assert_eq!(faults, 1);
    assert!(node.slot.status().log_lines_dropped > 0);
}

#[test]
fn a_flood_of_metrics_is_harmless() {
    let evil = guest().import(DEFINE).import(UPDATE).init(DEFINE_ONE).with(Hook::Scheduler, UPDATES);
    let node = check_every_step(evil, Verdict::Late);
    assert!(node.slot.status().metric_updates_dropped > 0);
    // Series without end, with new names as far as they go.
    let mut node = Node::new(lenient("series"));
    // The guest itself traps unless its last definition was refused.
    node.slot
        .load(&guest().import(DEFINE).init(MANY_SERIES).with(Hook::Scheduler, NO_OPINION).source())
        .unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    assert_eq!(node.count(Hook::Scheduler, Verdict::None), 1);
}

#[test]
fn an_evil_init_does_not_take_over() {
    let mut node = Node::new(lenient("init"));
    node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
    let verdicts = [Verdict::Late, Verdict::Trapped, Verdict::Trapped, Verdict::Trapped];
    for (init, verdict) in EVIL_INITS.into_iter().zip(verdicts) {
        let evil = guest().init(init).with(Hook::Scheduler, NO_OPINION);
        match node.slot.load(&evil.source()) {
            Err(LoadError::Start(fault)) => assert_eq!(fault.verdict, verdict, "{init}"),
            other => panic!("{init}: {other:?}"),
        }
        assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
    }
}

#[test]
fn state_that_is_garbage_is_not_needed() {
    // The first version saves bytes that the second one cannot stand.
    let mut node = Node::new(lenient("saved"));
    node.slot.load(&guest().save(SAVE_GARBAGE).with(Hook::Scheduler, NO_OPINION).source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), None);
    let picky = guest().init(PICKY_INIT).with(Hook::Scheduler, plan_of(&good_plan()));
    node.slot.load(&picky.source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
    // And a spare of it starts as well.
    node.slot.load(&picky.with(Hook::Feedback, "").source()).unwrap();
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
}

#[test]
fn an_evil_save_does_not_stop_the_next_version() {
    for save in EVIL_SAVES {
        let mut node = Node::new(lenient("save"));
        node.slot.load(&guest().save(save).with(Hook::Scheduler, NO_OPINION).source()).unwrap();
        node.slot.load(&guest().with(Hook::Scheduler, plan_of(&good_plan())).source()).unwrap();
        assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()), "{save}");
    }
}

#[test]
fn a_loop_in_any_hook_is_late_and_the_next_call_is_made() {
    let evil = [Hook::Batcher, Hook::Admission, Hook::Autoscaler, Hook::Feedback].into_iter().fold(
        guest().with(Hook::Scheduler, NO_OPINION),
        |guest, hook| {
            let ends = if hook == Hook::Feedback { "" } else { "(unreachable)" };
            guest.with(hook, format!("(loop $l (br $l)) {ends}"))
        },
    );
    let mut node = Node::new(lenient("loops"));
    node.slot.load(&evil.source()).unwrap();
    let completed = Completed {
        id: vec![1],
        tenant: vec![0],
        outcome: vec![Outcome::Finished],
        prompt_tokens: vec![5],
        new_tokens: vec![5],
        queue_us: vec![5],
        ttft_us: vec![5],
    };
    for round in 1..=2 {
        assert_eq!(node.slot.tune(&NodeLoad::default()), None);
        assert_eq!(node.slot.decide(&AdmissionRequest::default(), &NodeLoad::default()), None);
        assert_eq!(node.slot.evaluate(&Window::default(), Replicas::default()), None);
        node.slot.observe(&completed);
        node.engine.settle();
        for hook in [Hook::Batcher, Hook::Admission, Hook::Autoscaler] {
            assert_eq!(node.count(hook, Verdict::Late), round, "{hook:?}");
        }
        assert_eq!(node.step(&snapshot(1, 1)), None);
        assert_eq!(node.count(Hook::Scheduler, Verdict::None), round);
    }
    assert!(node.count(Hook::Feedback, Verdict::Late) >= 2);
}

#[test]
fn truncated_files_are_refused_wherever_they_are_cut() {
    let whole = guest().with(Hook::Scheduler, plan_of(&good_plan())).component();
    let mut node = Node::new(lenient("cut"));
    node.slot.load(&Source::Bytes { wasm: whole.clone(), signature: None }).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 40) {
        let wasm = whole[..cut].to_vec();
        let refused = node.slot.load(&Source::Bytes { wasm, signature: None });
        assert!(
            matches!(refused, Err(LoadError::NotAPolicy(_) | LoadError::Compile(_))),
            "{cut}: {refused:?}"
        );
    }
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));
}
