//! Check, build and bench on guests good and bad.
#![allow(clippy::unwrap_used, reason = "a test; what builds guests is shared and no test by itself")]

#[path = "../../host/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use clap::Parser;
use common::{DEEP, Guest, NO_OPINION, THIRD, guest, plan_of};
use quern_extensions::Hook;
use quern_policy_tools::{BenchArgs, BuildArgs, CheckArgs, Checked, PolicyCommand};
use quern_scheduler::plan::Plan;
use tempfile::TempDir;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: PolicyCommand,
}

fn command(line: &[&str]) -> PolicyCommand {
    Cli::parse_from([&["quern"], line].concat()).command
}

/// Exit codes have no values to compare, but they can be shown.
fn exit_code(line: &[&str]) -> String {
    format!("{:?}", quern_policy_tools::run(command(line)))
}

fn code(code: u8) -> String {
    format!("{:?}", std::process::ExitCode::from(code))
}

fn file_of(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.wasm");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn check_args(path: &Path) -> CheckArgs {
    match command(&["check", path.to_str().unwrap(), "--calls", "60"]) {
        PolicyCommand::Check(args) => args,
        other => panic!("{other:?}"),
    }
}

fn checked(guest: &Guest) -> Checked {
    let (_folder, path) = file_of(&guest.module());
    quern_policy_tools::check(&check_args(&path)).unwrap()
}

#[test]
fn a_good_policy_is_found_well() {
    let good = guest().with(Hook::Scheduler, NO_OPINION).with(Hook::Batcher, NO_OPINION).named("good");
    let found = checked(&good);
    assert_eq!(found.wrong, Vec::<String>::new());
    assert_eq!((found.policy.name.as_str(), found.kind), ("good", "module"));
    assert_eq!(found.policy.hooks, ["scheduler", "batcher"]);
    assert_eq!(found.verdicts["scheduler"]["none"], 60);
    assert_eq!(found.verdicts["batcher"]["none"], 60);
    assert_eq!(found.sha256.len(), 64);
}

#[test]
fn plans_that_break_a_rule_are_found() {
    let plan = Plan { admit: vec![0, 0], admit_chunk: vec![1, 1], ..Plan::default() };
    let found = checked(&guest().with(Hook::Scheduler, plan_of(&plan)));
    assert!(
        found.wrong.iter().any(|wrong| wrong.contains("does not exist") || wrong.contains("twice")),
        "{found:?}"
    );
    assert_eq!(found.verdicts["scheduler"]["invalid"], 60);
}

#[test]
fn traps_are_found_in_every_hook() {
    for (hook, body) in [(Hook::Scheduler, THIRD), (Hook::Admission, DEEP), (Hook::Autoscaler, DEEP)] {
        let found = checked(&guest().with(hook, body));
        assert!(found.verdicts[hook.name()]["trapped"] > 0, "{found:?}");
        assert!(!found.wrong.is_empty());
    }
}

#[test]
fn a_policy_that_keeps_count_in_its_plans_is_the_same_in_a_fresh_instance() {
    // It counts its calls, and so does the fresh one.
    let body = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (i32.store (i32.const 2052) (i32.const 1))
        (i32.store (i32.const 2096) (global.get $calls))";
    let found = checked(&guest().with(Hook::Scheduler, format!("{body} (i32.const 2048)")));
    assert!(!found.wrong.iter().any(|wrong| wrong.contains("deterministic")), "{found:?}");
}

#[test]
fn exit_codes_tell_well_from_wrong_and_from_nonsense() {
    let (_folder, good) = file_of(&guest().with(Hook::Scheduler, NO_OPINION).component());
    let (_folder, bad) = file_of(&guest().with(Hook::Scheduler, THIRD).component());
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    assert_eq!(exit_code(&["check", good, "--calls", "9", "--json"]), code(0));
    assert_eq!(exit_code(&["check", bad, "--calls", "9"]), code(1));
    assert_eq!(exit_code(&["check", "no-such-file"]), code(1));
    assert_eq!(exit_code(&["build", good]), code(64));
    assert_eq!(exit_code(&["simulate", "--prompt", "0"]), code(64));
    assert_eq!(exit_code(&["simulate", good, "--seconds", "20"]), code(0));
    assert_eq!(exit_code(&["simulate", bad, "--seconds", "20"]), code(1));
}

#[test]
fn a_core_module_becomes_a_component_that_is_well() {
    let (folder, module) = file_of(&guest().with(Hook::Scheduler, NO_OPINION).module());
    let PolicyCommand::Build(args) = command(&["build", module.to_str().unwrap()]) else { panic!() };
    let BuildArgs { module, output } = args;
    assert_eq!(output, None);
    let component = folder.path().join("out.wasm");
    let size = quern_policy_tools::build(&module, &component).unwrap();
    assert_eq!(std::fs::metadata(&component).unwrap().len(), size as u64);
    let found = quern_policy_tools::check(&check_args(&component)).unwrap();
    assert_eq!((found.kind, found.wrong.len()), ("component", 0));
    assert!(quern_policy_tools::build(&component, &module).is_err());
}

#[test]
fn costs_of_calls_are_counted() {
    let (_folder, path) = file_of(&guest().with(Hook::Scheduler, NO_OPINION).module());
    let PolicyCommand::Bench(args) =
        command(&["bench", path.to_str().unwrap(), "--rows", "0,256", "--calls", "50"])
    else {
        panic!()
    };
    let BenchArgs { rows, calls, .. } = &args;
    assert_eq!((&rows[..], *calls), (&[0, 256][..], 50));
    let measured = quern_policy_tools::measure(&args).unwrap();
    assert_eq!(measured.len(), 2);
    for one in &measured {
        assert!(one.p50_us > 0.0 && one.p99_us >= one.p50_us && one.p50_us >= one.call_p50_us, "{one:?}");
        assert!(one.instructions_per_call > 0 && one.memory_bytes > 0 && one.faults == 0, "{one:?}");
    }
    assert!(measured[1].instructions_per_call >= measured[0].instructions_per_call);
}
