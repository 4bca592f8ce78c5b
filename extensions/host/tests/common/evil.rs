//! Guests that mean harm: to the host alone in `hostile.rs`, and to a node under
//! load in the node's own tests.

use quern_extensions::Hook;
use quern_scheduler::plan::Plan;

use super::{DEEP, ENDLESS, GREEDY, Guest, NO_OPINION, THIRD, answer, error_of, good_plan, guest, plan_of};

/// The import of a line to the log.
pub const LOG: &str = "(import \"quern:policy/log@0.1.0\" \"write\" (func $log (param i32 i32 i32)))";
/// The import of a new series.
pub const DEFINE: &str =
    "(import \"quern:policy/metrics@0.1.0\" \"define\" (func $define (param i32 i32 i32 i32)))";
/// The import of a number for a series.
pub const UPDATE: &str = "(import \"quern:policy/metrics@0.1.0\" \"update\" (func $update (param i32 f64)))";
/// An import of WASI.
pub const WASI: &str =
    "(import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32)))";

/// A body that answers with a list of 2^31 entries.
pub const HUGE_LIST: &str = "
    (i32.store (i32.const 2052) (i32.const 1))
    (i32.store (i32.const 2056) (i32.const 4096))
    (i32.store (i32.const 2060) (i32.const 0x80000000))
    (i32.const 2048)";
/// A body that gives the log 900,000 bytes as one message: more than a call may hand over.
pub const HUGE_LINE: &str = "(call $log (i32.const 2) (i32.const 0) (i32.const 900000)) (i32.const 2048)";
/// A body that gives the log a message beyond the end of memory.
pub const LINE_OUT_OF_MEMORY: &str =
    "(call $log (i32.const 2) (i32.const 0x10) (i32.const 0x7fffffff)) (i32.const 2048)";
/// A body that writes 50 lines.
pub const FIFTY_LINES: &str = "(local $n i32)
    (loop $l
      (call $log (i32.const 2) (i32.const 512) (i32.const 5))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $n) (i32.const 50))))
    (i32.const 2048)";
/// A body that writes lines without end.
pub const LINES: &str =
    "(loop $l (call $log (i32.const 2) (i32.const 512) (i32.const 5)) (br $l)) (unreachable)";
/// A body that updates a series without end; needs [`DEFINE_ONE`] in `init`.
pub const UPDATES: &str = "(loop $l (call $update (i32.const 0) (f64.const 1)) (br $l)) (unreachable)";
/// Defines a series.
pub const DEFINE_ONE: &str = "(call $define (i32.const 512) (i32.const 5) (i32.const 0) (i32.const 8192))";
/// Defines 600 series in `init`, and traps unless the last was refused.
pub const MANY_SERIES: &str = "(local $n i32)
    (loop $l
      (i32.store8 (i32.const 516) (i32.add (i32.const 97) (i32.rem_u (local.get $n) (i32.const 26))))
      (i32.store8 (i32.const 515) (i32.add (i32.const 97) (i32.div_u (local.get $n) (i32.const 26))))
      (call $define (i32.const 512) (i32.const 5) (i32.const 0) (i32.const 8192))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $n) (i32.const 600))))
    (if (i32.ne (i32.load8_u (i32.const 8192)) (i32.const 1)) (then unreachable))
    (global.set $heap (i32.const 16384))";
/// Saves 1000 bytes of no meaning.
pub const SAVE_GARBAGE: &str =
    "(i32.store (i32.const 1536) (i32.const 4096)) (i32.store (i32.const 1540) (i32.const 1000))";
/// What `save` may do worse: never end, trap, name 2^31 bytes.
pub const EVIL_SAVES: [&str; 3] = [
    "(loop $l (br $l))",
    "unreachable",
    "(i32.store (i32.const 1536) (i32.const 4096)) (i32.store (i32.const 1540) (i32.const 0x80000000))",
];
/// Traps in `init` when it is handed any state.
pub const PICKY_INIT: &str = "(if (local.get $some) (then unreachable))";
/// Bodies of `init` that never let it serve.
pub const EVIL_INITS: [&str; 4] = [
    "(loop $l (br $l))",
    "(loop $l (drop (memory.grow (i32.const 16))) (br $l))",
    "(drop (call $deep (i32.const 0)))",
    "unreachable",
];

/// Plans that break a rule when one row waits and one runs; the first few do
/// whatever the step.
pub fn broken_plans() -> Vec<(&'static str, Plan)> {
    let good = good_plan();
    vec![
        ("the largest row", Plan { admit: vec![u32::MAX], ..good.clone() }),
        ("a row named twice", Plan { admit: vec![0, 0], admit_chunk: vec![1, 1], ..good.clone() }),
        ("more than the budget", Plan { admit_chunk: vec![512], ..good.clone() }),
        (
            "chunks that overflow",
            Plan { admit_chunk: vec![u32::MAX], running_chunk: vec![u32::MAX], ..good.clone() },
        ),
        ("a row both run and paused", Plan { preempt: vec![0], ..good.clone() }),
        ("a row out of range", Plan { admit: vec![1], ..good.clone() }),
        ("a row to pause out of range", Plan { preempt: vec![1], ..good.clone() }),
        ("a column too short", Plan { running_chunk: vec![1, 1], ..good }),
    ]
}

/// Does this in each hook that has an answer.
fn in_all_hooks(evil: Guest, body: &str) -> Guest {
    let hooks = [Hook::Scheduler, Hook::Batcher, Hook::Admission, Hook::Autoscaler];
    hooks.into_iter().fold(evil, |evil, hook| evil.with(hook, body))
}

/// Guests that load, and what is evil about them.
pub fn loadable() -> Vec<(&'static str, Guest)> {
    let all = in_all_hooks;
    let alone = |body: String| guest().with(Hook::Scheduler, body);
    let mut evil = vec![
        ("an endless loop", all(guest(), ENDLESS).with(Hook::Feedback, "(loop $l (br $l))")),
        ("allocation without end", all(guest(), GREEDY)),
        ("deep recursion", all(guest(), DEEP).with(Hook::Feedback, "(drop (call $deep (i32.const 0)))")),
        ("a trap on every third call", all(guest(), THIRD)),
        ("a list of 2^31", all(guest(), HUGE_LIST)),
        ("an answer out of memory", all(guest(), "(i32.const 0x7fffffff)")),
        ("an answer out of line", all(guest(), "(i32.const 2049)")),
        ("an error of its own", all(guest(), &error_of("not today"))),
        ("a huge line", all(guest().import(LOG), HUGE_LINE)),
        ("a line out of memory", all(guest().import(LOG), LINE_OUT_OF_MEMORY)),
        ("a flood of lines", all(guest().import(LOG), LINES)),
        ("a flood of numbers", all(guest().import(DEFINE).import(UPDATE).init(DEFINE_ONE), UPDATES)),
        ("600 series", all(guest().import(DEFINE).init(MANY_SERIES), NO_OPINION)),
        ("garbage to its successor", all(guest().save(SAVE_GARBAGE), NO_OPINION)),
        ("a horror of garbage", all(guest().init(PICKY_INIT), NO_OPINION)),
        // ok, some: no rows in a step, nothing may run.
        ("limits of zero", guest().with(Hook::Batcher, answer(&[0, 1, 0, 0]))),
        ("nobody runs, for ever", alone(plan_of(&Plan { hold_steps: u32::MAX, ..Plan::default() }))),
    ];
    evil.extend(broken_plans().into_iter().map(|(what, plan)| (what, alone(plan_of(&plan)))));
    evil.extend(EVIL_SAVES.map(|save| ("an evil save", all(guest().save(save), NO_OPINION))));
    evil
}

/// Files that must not load, and why.
pub fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let whole = guest().with(Hook::Scheduler, plan_of(&good_plan())).component();
    let mut refused = vec![
        ("another version", guest().package("0.2.0").with(Hook::Scheduler, NO_OPINION).module()),
        ("WASI", guest().import(WASI).with(Hook::Scheduler, NO_OPINION).module()),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("cut off at the end", whole[..whole.len() - 1].to_vec()),
        ("nothing", Vec::new()),
    ];
    let inits = EVIL_INITS.map(|init| guest().init(init).with(Hook::Scheduler, NO_OPINION).module());
    refused.extend(inits.map(|module| ("an evil init", module)));
    refused
}
