use std::path::Path;

use clap::Parser;

use super::*;
use crate::stats::PhaseSummary;
use crate::times::Quantiles;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: PlanArgs,
}

const PRICES: &str =
    "[[machine]]\nname = \"small\"\nusd_per_hour = 0.1\n[[machine]]\nname = \"large\"\nusd_per_hour = 0.5\n";

/// What a closed loop measured: 1 client in 10 ms each, 8 clients in 20 ms each. Labels take as long.
const HARDWARE: &str = "# t: q\n# quern-bench experiment hardware, layout 2, 2026-01-31T00:00:00Z\n\
    setting,clients,round,requests_per_s,texts_per_s,answer_p95_ms,text_p95_ms,failed\n\
    defaults,1,0,100,100,12,12,\ndefaults,8,0,400,400,25,25,\n";

/// Prices, and a folder for each machine.
fn market() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("prices.toml"), PRICES).unwrap();
    root
}

fn leave_hardware(root: &Path, machine: &str, csv: &str) {
    let folder = root.join(machine).join("hardware");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("results.csv"), csv).unwrap();
}

/// Leaves a run in open loop: rates, p95, failures.
fn leave_run(root: &Path, machine: &str, workload: &str, levels: &[(f64, f64, u64)]) {
    let folder = root.join(machine).join(workload);
    std::fs::create_dir_all(&folder).unwrap();
    let mut text = format!(
        "{{\"type\":\"run\",\"format\":2,\"name\":\"r\",\"workload\":\"{workload}\",\"about\":\"\",\"date\":\"\",\
         \"command_line\":\"\",\"bench_version\":\"1\",\"servers\":[],\"seed\":1,\"notes\":[],\"machine\":{{\"cpu\":\"\",\
         \"num_cores\":2,\"memory_mib\":1,\"kernel\":\"\",\"load_before\":\"\"}}}}\n"
    );
    for (rate, p95_ms, num_failed) in levels {
        let phase = PhaseSummary {
            server: "quern".to_owned(),
            level: format!("{rate} requests/s"),
            level_value: *rate,
            tokens: 10,
            num_failed: *num_failed,
            e2e: Some(Quantiles {
                count: 1,
                mean_ms: 1.0,
                p50_ms: 1.0,
                p95_ms: *p95_ms,
                p99_ms: *p95_ms,
                max_ms: *p95_ms,
            }),
            ..Default::default()
        };
        let mut line = serde_json::to_value(&phase).unwrap();
        line["type"] = "phase".into();
        text.push_str(&format!("{line}\n"));
    }
    std::fs::write(folder.join("results.jsonl"), text).unwrap();
}

fn args(root: &Path, machines: &[&str], more: &[&str]) -> PlanArgs {
    let mut words =
        vec!["plan".to_owned(), "--prices".to_owned(), root.join("prices.toml").display().to_string()];
    for machine in machines {
        words.extend(["--results".to_owned(), format!("{machine}={}", root.join(machine).display())]);
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    Line::try_parse_from(words).unwrap().args
}

fn planned(root: &Path, machines: &[&str], more: &[&str]) -> Result<String, PlanError> {
    plan(&args(root, machines, more), "quern-bench plan")
}

fn ways(root: &Path, machines: &[&str], more: &[&str]) -> Vec<Way> {
    let args = args(root, machines, more);
    let machines = machines_of(&args).unwrap();
    make(&args, machines).unwrap().ways
}

#[test]
fn a_closed_loop_is_planned_by_the_model() {
    let root = market();
    leave_hardware(root.path(), "small", HARDWARE);
    let target = ["--target-p95-ms", "100", "--rate", "1000", "--headroom", "0.5"];
    let [way] = &ways(root.path(), &["small"], &target)[..] else { panic!() };
    let queue = queue::Queue { num_places: 8, service_s: 0.02 };
    let most = queue.highest_rate(0.95, 0.1).unwrap();
    assert!((way.most - most).abs() < 1e-9 && way.most < 400.0, "{way:?}");
    assert!((way.planned - most / 2.0).abs() < 1e-9);
    assert_eq!(way.count, (1000.0 / way.planned).ceil() as u32);
    assert!((way.usd_per_month - f64::from(way.count) * 73.0).abs() < 1e-6);
    assert!(way.p95_ms <= 100.0 && way.evidence.contains("results.csv, line 5"), "{way:?}");
    assert_eq!(way.method, "M/M/c");
}

#[test]
fn the_measured_tail_of_the_closed_loop_is_a_floor() {
    let root = market();
    // By the model a client alone has a p95 of 30 ms, but 45 ms were measured.
    leave_hardware(
        root.path(),
        "small",
        &HARDWARE.replace(",12,12,", ",45,45,").replace(",25,25,", ",99,99,"),
    );
    let within = |ms: &str| ways(root.path(), &["small"], &["--target-p95-ms", ms, "--rate", "1"]);
    assert!(within("44").is_empty());
    let [way] = &within("46")[..] else { panic!() };
    assert!((way.p95_ms - 45.0).abs() < 1e-9, "{way:?}");
}

#[test]
fn open_loops_are_preferred_and_nothing_is_guessed_between_rates() {
    let root = market();
    leave_hardware(root.path(), "small", HARDWARE);
    leave_run(
        root.path(),
        "small",
        "ramp",
        &[(10.0, 20.0, 0), (20.0, 40.0, 0), (40.0, 90.0, 0), (80.0, 30.0, 0)],
    );
    let target = ["--target-p95-ms", "50", "--rate", "100", "--headroom", "0", "--spare", "2"];
    let [way] = &ways(root.path(), &["small"], &target)[..] else { panic!() };
    assert_eq!((way.most, way.needed, way.count, way.p95_ms), (20.0, 5, 7, 40.0));
    assert!(way.method.contains("open loop") && way.evidence.contains("workload ramp"), "{way:?}");
    let markdown = planned(root.path(), &["small"], &target).unwrap();
    assert!(markdown.contains("**7 × small**") && markdown.contains("**511 USD a month**"), "{markdown}");
    assert!(!markdown.contains("Erlang"), "the model was not used");
}

#[test]
fn rates_at_which_requests_failed_do_not_count() {
    let root = market();
    leave_run(root.path(), "small", "ramp", &[(10.0, 20.0, 0), (20.0, 20.0, 3), (40.0, 20.0, 0)]);
    let target = ["--target-p95-ms", "50", "--rate", "10"];
    assert!((ways(root.path(), &["small"], &target)[0].most - 10.0).abs() < 1e-9);
    leave_run(root.path(), "small", "ramp", &[(10.0, 20.0, 3)]);
    let PlanError::Impossible(why) = planned(root.path(), &["small"], &target).unwrap_err() else { panic!() };
    assert!(why.contains("3 requests failed"), "{why}");
}

#[test]
fn the_cheapest_way_comes_first_and_files_are_left() {
    let root = market();
    leave_hardware(root.path(), "small", HARDWARE);
    leave_hardware(
        root.path(),
        "large",
        &HARDWARE.replace(",400,400,", ",4000,4000,").replace(",25,25,", ",3,3,"),
    );
    let out = root.path().join("plans/one");
    let words =
        ["--target-p95-ms", "50", "--rate", "500", "--what", "texts", "--out", &out.display().to_string()];
    let markdown = planned(root.path(), &["small", "large"], &words).unwrap();
    assert!(markdown.starts_with("# 500 classified texts a second, 95 of 100 within 50 ms\n"), "{markdown}");
    assert!(markdown.contains("**1 × large**") && markdown.contains("**365 USD a month**"), "{markdown}");
    assert!(markdown.contains("× small |") && markdown.contains("Erlang"), "{markdown}");
    assert_eq!(std::fs::read_to_string(out.join(PLAN_FILE)).unwrap(), markdown);
    let svg = std::fs::read_to_string(out.join(CURVE_FILE)).unwrap();
    for text in ["USD a month", "wanted", "1 × large, defaults", "× small, defaults"] {
        assert!(svg.contains(text), "{text} is missing");
    }
}

#[test]
fn what_no_machine_can_do_is_said_with_the_reason() {
    let root = market();
    leave_hardware(root.path(), "small", HARDWARE);
    let error = planned(root.path(), &["small"], &["--target-p95-ms", "20", "--rate", "1"]).unwrap_err();
    assert!(matches!(error, PlanError::Impossible(_)));
    let error = error.to_string();
    assert!(error.contains("small, defaults: even without a queue, p95 is 30.0 ms"), "{error}");
    assert!(error.contains("requests_per_s 100 (") && error.contains("line 4"), "{error}");
}

#[test]
fn bad_questions_are_refused() {
    let root = market();
    leave_hardware(root.path(), "small", HARDWARE);
    let good = ["--target-p95-ms", "50", "--rate", "10"];
    let usage = |machines: &[&str], more: &[&str]| match planned(root.path(), machines, more) {
        Err(PlanError::Usage(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(usage(&["small"], &["--target-p95-ms", "0", "--rate", "10"]).contains("--target-p95-ms 0"));
    assert!(usage(&["small"], &["--target-p95-ms", "50", "--rate", "NaN"]).contains("--rate NaN"));
    let full = [&good[..], &["--headroom", "1"]].concat();
    assert!(usage(&["small"], &full).contains("--headroom 1"));
    assert!(usage(&["small", "small"], &good).contains("given twice"));
    assert!(usage(&["unpriced"], &good).contains("no price for machine \"unpriced\""));
    let folder = root.path().display().to_string();
    assert!(usage(&[], &[&good[..], &["--results", &folder]].concat()).contains("write NAME=FOLDER"));
    assert!(Line::try_parse_from(["plan", "--rate", "1", "--target-p95-ms", "1", "--prices", "p"]).is_err());
}

#[test]
fn results_that_are_missing_or_ambiguous_are_named() {
    let root = market();
    let good = ["--target-p95-ms", "50", "--rate", "10"];
    let failed = |more: &[&str]| match planned(root.path(), &["small"], &[&good[..], more].concat()) {
        Err(PlanError::Failed(error)) => format!("{error:#}"),
        other => panic!("{other:?}"),
    };
    assert!(failed(&[]).contains("small"), "no folder");
    std::fs::create_dir(root.path().join("small")).unwrap();
    assert!(
        failed(&[]).contains("neither open-loop runs nor figures of the experiment `hardware` for answers")
    );
    leave_hardware(root.path(), "small", &HARDWARE.replace("requests_per_s", "something_else"));
    assert!(failed(&[]).contains("no results to plan by"), "no such column");
    leave_hardware(root.path(), "small", &HARDWARE.replace("layout 2", "layout 7"));
    assert!(failed(&[]).contains("in layout 7"));
    leave_hardware(root.path(), "small", HARDWARE);
    assert!(failed(&["--workload", "ramp"]).contains("no open-loop run of workload \"ramp\""));
    leave_run(root.path(), "small", "ramp", &[(10.0, 20.0, 0)]);
    leave_run(root.path(), "small", "replay", &[(10.0, 20.0, 0)]);
    assert!(failed(&[]).contains("several workloads (ramp, replay): say which with --workload"));
    assert!(planned(root.path(), &["small"], &[&good[..], &["--workload", "ramp"]].concat()).is_ok());
}
