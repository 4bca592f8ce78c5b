//! Output of `quern profile` as it is, as it may be, and as it must not be.

use serde_json::json;

use super::*;
use crate::experiment::section::{self, tests::heading};
use crate::experiment::sheet::Sheet;

fn kind(op: &str, part: Option<&str>, share: f64) -> Value {
    let rate = part.map(|_| 12.5);
    let types = if part.is_some() { vec!["q4_K"] } else { Vec::new() };
    json!({
        "op": op, "part": part, "weight_types": types, "count": 2, "total_ms": share * 8.0, "share": share,
        "gflop_per_s": rate, "weight_gb_per_s": rate,
    })
}

fn phase(name: &str, kinds: &[Value]) -> Value {
    json!({
        "phase": name, "num_steps": 1, "num_rows": 256, "untimed_ms": [9.0, 9.5], "timed_ms": 10.0, "overhead": 0.1,
        "num_operations": 4, "operations_ms": 8.0, "kinds": kinds,
    })
}

/// As the program prints it, and something that a later version might add.
fn summary() -> Value {
    let prefill = [kind("MUL_MAT", Some("ffn_up"), 0.75), kind("ROPE", None, 0.25)];
    let decode = [kind("MUL_MAT", Some("head"), 0.9), kind("MUL_MAT", Some("ffn_up"), 0.1)];
    json!({
        "layout": 1, "model": "tiny", "description": "qwen2", "llama_cpp_version": "b1", "threads": 1,
        "threads_prefill": 1, "prefill_tokens": 256, "decode_steps": 16, "weather": "fair",
        "phases": [phase("prefill", &prefill), phase("decode", &decode)],
    })
}

fn trace() -> Value {
    json!({"displayTimeUnit": "ms", "traceEvents": [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "prefill"}},
        {"name": "ROPE", "ph": "X", "pid": 1, "tid": 1, "ts": 1.5, "dur": 2.0, "args": {"layer": 3}},
    ]})
}

fn taken(summary: &str, trace: &str) -> Result<Operations, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("operations.json");
    std::fs::write(&file, trace).unwrap();
    take(summary, &file).map_err(|error| format!("{error:#}"))
}

fn good() -> Operations {
    taken(&summary().to_string(), &trace().to_string()).unwrap()
}

#[test]
fn the_section_has_shares_of_both_phases() {
    let mut findings = Findings::new(Sheet::new(None, &[]), Vec::new());
    good().tell(&mut findings);
    let text = section::markdown(&heading(), &findings);
    for part in [
        "## Operations",
        "| operation | weights | prefill, % | prefill, GFLOP/s | decode, % | decode, GB/s |\n|---|---|---:|---:|---:|---:|\n",
        "| MUL_MAT head | q4_K | – | – | 90.0 | 12.5 |\n| MUL_MAT ffn_up | q4_K | 75.0 | 12.5 | 10.0 | 12.5 |\n\
         | ROPE |  | 25.0 | – | – | – |\n",
        "one prefill of 256 tokens and 16 decode steps",
        "- prefill, 4 operations one at a time: 10.0 ms, of which 8.00 ms in operations; without timing them 9.00 ms",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let [(name, csv)] = &findings.files[..] else { panic!("one file: {:?}", findings.files) };
    assert_eq!(*name, "operations.csv");
    assert!(csv.contains("prefill,MUL_MAT,ffn_up,q4_K,2,6.000000,0.750000,12.500000,12.500000\n"), "{csv}");
    assert!(csv.contains("prefill,ROPE,,,2,2.000000,0.250000,,\n"), "{csv}");
    let [Panel::Pairs(_, of, pairs)] = &findings.panels[..] else { panic!("one panel") };
    assert_eq!(*of, ["prefill", "decode"]);
    assert_eq!(pairs[1], Pair { name: "MUL_MAT ffn_up".to_owned(), values: [75.0, 10.0] });
}

#[test]
fn a_machine_with_other_work_is_told() {
    let told = |untimed: Value| {
        let mut summary = summary();
        summary["phases"][1]["untimed_ms"] = untimed;
        let mut findings = Findings::new(Sheet::new(None, &[]), Vec::new());
        taken(&summary.to_string(), &trace().to_string()).unwrap().tell(&mut findings);
        findings.told.iter().map(|line| line.contains("had other work")).collect::<Vec<_>>()
    };
    assert_eq!(told(json!([9.0, 9.5])), [false, false]);
    assert_eq!(told(json!([9.0, 19.5])), [false, true]);
    assert_eq!(told(json!([19.5, 9.0])), [false, true]);
}

#[test]
fn small_shares_have_one_bar_together() {
    let mut summary = summary();
    let kinds: Vec<Value> = (0..16).map(|idx| kind(&format!("OP_{idx}"), None, 1.0 / 16.0)).collect();
    summary["phases"][0]["kinds"] = kinds.into();
    let Panel::Pairs(_, _, pairs) = taken(&summary.to_string(), &trace().to_string()).unwrap().panel() else {
        panic!("it has pairs")
    };
    let last = pairs.last().unwrap();
    assert_eq!((pairs.len(), last.name.as_str()), (10, "9 others"));
    let sums = [0, 1].map(|idx| pairs.iter().map(|pair| pair.values[idx]).sum::<f64>());
    assert!(sums.iter().all(|sum| (sum - 100.0).abs() < 1e-9), "{sums:?}");
}

#[test]
fn events_become_those_of_a_process_of_their_own() {
    let events = good().events;
    assert!(events.iter().all(|event| event["pid"] == OPERATIONS_PROCESS));
    assert_eq!((&events[1]["args"]["layer"], &events[1]["ts"]), (&3.into(), &1.5.into()));
}

#[test]
fn names_from_elsewhere_cannot_break_the_table() {
    let mut summary = summary();
    summary["phases"][0]["kinds"][1]["op"] = "A|B\n# C".into();
    let mut findings = Findings::new(Sheet::new(None, &[]), Vec::new());
    taken(&summary.to_string(), &trace().to_string()).unwrap().tell(&mut findings);
    let text = section::markdown(&heading(), &findings);
    assert!(text.contains("| A\\|B # C |  | 25.0 |"), "{text}");
}

#[test]
fn summaries_that_cannot_be_believed_are_refused() {
    let refused = |change: &dyn Fn(&mut Value), part: &str| {
        let mut summary = summary();
        change(&mut summary);
        let error = taken(&summary.to_string(), &trace().to_string()).unwrap_err();
        assert!(
            error.contains("printed no summary that this version knows") && error.contains(part),
            "{error}"
        );
    };
    refused(&|summary| *summary = json!("no summary"), "expected struct");
    refused(&|summary| *summary = json!({"layout": 2}), "layout 2, and known is 1");
    refused(&|summary| *summary = json!({"layout": 1}), "missing field");
    refused(&|summary| *summary = json!({"models": []}), "missing field `layout`");
    refused(&|summary| summary["phases"] = json!([]), "0 times of prefill");
    refused(&|summary| summary["phases"][1]["phase"] = "prefill".into(), "2 times of prefill");
    refused(&|summary| summary["phases"][0]["timed_ms"] = (-1.0).into(), "in prefill: a time is none");
    refused(&|summary| summary["phases"][0]["untimed_ms"] = json!([1.0]), "invalid length");
    refused(&|summary| summary["phases"][1]["kinds"] = json!([]), "in decode: 0 kinds");
    refused(
        &|summary| summary["phases"][0]["kinds"][0]["share"] = 1.5.into(),
        "MUL_MAT ffn_up: a figure is none",
    );
    refused(&|summary| summary["phases"][0]["kinds"][0]["gflop_per_s"] = (-2).into(), "a figure is none");
    refused(&|summary| summary["phases"][0]["kinds"][0]["share"] = 0.1.into(), "shares add up to 0.35");
    refused(&|summary| summary["phases"][0]["kinds"][0]["count"] = "many".into(), "invalid type");
    let many: Vec<Value> = (0..1001).map(|idx| kind(&idx.to_string(), None, 0.0)).collect();
    refused(&|summary| summary["phases"][0]["kinds"] = many.clone().into(), "1001 kinds");
    let text = taken("error: unrecognized subcommand", &trace().to_string()).unwrap_err();
    assert!(text.contains("printed no summary"), "{text}");
}

#[test]
fn traces_that_cannot_be_shown_are_refused() {
    let refused = |trace: &Value, part: &str| {
        let error = taken(&summary().to_string(), &trace.to_string()).unwrap_err();
        assert!(error.contains("wrote no trace that this version knows") && error.contains(part), "{error}");
    };
    refused(&json!([]), "no traceEvents");
    refused(&json!({"traceEvents": {}}), "no traceEvents");
    refused(&json!({"traceEvents": []}), "0 events");
    refused(&json!({"traceEvents": [7]}), "event 0 is none");
    let broken: [(&str, Value); 6] = [
        ("name", Value::Null),
        ("ph", "Y".into()),
        ("tid", (-1).into()),
        ("ts", "soon".into()),
        ("dur", (-2.0).into()),
        ("dur", Value::Null),
    ];
    for (field, value) in broken {
        let mut trace = trace();
        trace["traceEvents"][1][field] = value;
        refused(&trace, "event 1 is none");
    }
    assert!(taken(&summary().to_string(), "{").unwrap_err().contains("EOF"));
    assert!(take(&summary().to_string(), Path::new("/no/such/file")).unwrap_err().chain().count() > 1);
}
