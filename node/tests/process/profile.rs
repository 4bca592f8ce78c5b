//! `quern profile` on a tiny model.

use std::path::Path;

use serde_json::Value as Json;

use crate::node::{file, quern, tiny_model, told};

/// Matrices of a layer.
const PARTS: [&str; 7] = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"];
const PHASES: [&str; 2] = ["prefill", "decode"];

#[track_caller]
fn profiled(args: &[&str]) -> String {
    let (code, out, err) =
        told(&quern(&[&["profile", "--threads", "1", "--threads-prefill", "1"], args].concat()));
    assert_eq!(code, 0, "{out}{err}");
    out
}

#[track_caller]
fn refused(args: &[&str], code: i32, part: &str) {
    let (found, out, err) = told(&quern(&[&["profile"], args].concat()));
    assert_eq!(found, code, "{out}{err}");
    assert!(err.contains(part), "{part} is not in\n{err}");
}

fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Begin and end of a slice.
fn times(event: &Json) -> (f64, f64) {
    (number(&event["ts"]), number(&event["ts"]) + number(&event["dur"]))
}

/// Names of a folder's entries.
fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Slices of a category on a track.
fn slices<'a>(events: &'a [Json], track: usize, category: &'a str) -> Vec<&'a Json> {
    events.iter().filter(|event| event["tid"] == track && event["cat"] == category).collect()
}

#[test]
fn a_trace_has_every_matrix_of_every_layer_in_both_phases() {
    let (dir, model) = tiny_model();
    let out = dir.path().join("trace.json");
    let args = ["--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let more = ["--prefill-tokens", "40", "--decode-steps", "3", "--token-budget", "32", "--json"];
    let summary: Json = serde_json::from_str(&profiled(&[&args[..], &more].concat())).unwrap();
    let trace: Json = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for (idx, (phase, step_rows)) in PHASES.into_iter().zip([&[32, 8][..], &[1, 1, 1]]).enumerate() {
        let track = idx + 1;
        let is_name = |event: &&Json| event["name"] == "thread_name" && event["tid"] == track;
        assert_eq!(events.iter().find(is_name).unwrap()["args"]["name"], phase);
        let steps = slices(events, track, "step");
        assert_eq!(
            steps.iter().map(|step| step["args"]["rows"].as_i64().unwrap()).collect::<Vec<_>>(),
            step_rows
        );

        let operations = slices(events, track, "operation");
        assert!(operations.is_sorted_by(|a, b| times(a).1 <= times(b).0 + 1e-3), "one at a time");
        for operation in &operations {
            let (began, ended) = times(operation);
            let holds = |step: &&&Json| times(step).0 <= began + 1e-3 && ended <= times(step).1 + 1e-3;
            assert_eq!(steps.iter().filter(holds).count(), 1, "{operation} lies in one step");
        }
        let has = |name: &str, layer: Json| {
            operations.iter().any(|event| event["name"] == name && event["args"]["layer"] == layer)
        };
        for (layer, part) in (0..2).flat_map(|layer| PARTS.map(|part| (layer, part))) {
            assert!(has(&format!("MUL_MAT {part}"), layer.into()), "no {part} of layer {layer} in {phase}");
        }
        assert!(has("MUL_MAT head", Json::Null), "no head in {phase}");

        let told = &summary["phases"][idx];
        assert_eq!((&told["phase"], &told["num_operations"]), (&phase.into(), &operations.len().into()));
        assert_eq!(
            (&told["num_steps"], &told["num_rows"]),
            (&steps.len().into(), &step_rows.iter().sum::<i64>().into())
        );
        assert!(number(&told["operations_ms"]) <= number(&told["timed_ms"]) * (1.0 + 1e-6), "{told}");
        assert!(told["untimed_ms"].as_array().unwrap().iter().all(|ms| number(ms) > 0.0), "{told}");
        let kinds = told["kinds"].as_array().unwrap();
        assert!((kinds.iter().map(|kind| number(&kind["share"])).sum::<f64>() - 1.0).abs() < 1e-6, "{told}");
        let up = kinds.iter().find(|kind| kind["part"] == "ffn_up").unwrap();
        // In a step without an output, the last layer ends with its attention.
        let num_without_output = if phase == "prefill" { steps.len() - 1 } else { 0 };
        assert_eq!(up["count"], 2 * steps.len() - num_without_output);
        assert_eq!(up["weight_types"], serde_json::json!(["f32"]));
        assert!(number(&up["gflop_per_s"]) > 0.0 && number(&up["weight_gb_per_s"]) > 0.0, "{up}");
    }
    assert_eq!((&summary["layout"], &summary["model"]), (&1.into(), &"tiny".into()));
    assert_eq!(entries(dir.path()), ["tiny.gguf", "trace.json"], "nothing else stays");
}

#[test]
fn settings_are_a_nodes_and_people_get_a_table() {
    let (dir, model) = tiny_model();
    let out = dir.path().join("trace.json");
    let model = model.to_str().unwrap().replace('\\', "/");
    let config = file(
        dir.path(),
        "node.toml",
        &format!("[model]\nname = \"{model}\"\n[engine.llama]\nflash_attention = \"off\"\n"),
    );
    let args =
        ["--config", &config, "--out", out.to_str().unwrap(), "--prefill-tokens", "8", "--decode-steps", "1"];
    let table = profiled(&args);
    for part in ["prefill: 8 tokens in 1 steps", "decode: 1 tokens", "MUL_MAT kqv", "SOFT_MAX", "GFLOP/s"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    assert!(!table.contains("FLASH_ATTN_EXT"), "{table}");
}

#[test]
fn mistakes_are_said_and_leave_nothing() {
    let (dir, model) = tiny_model();
    let (model, out) = (model.to_str().unwrap(), dir.path().join("trace.json"));
    let out = out.to_str().unwrap();
    let good = ["--model", model, "--out", out];
    let with = |more: &[&'static str]| [&good[..], more].concat();
    refused(&["--model", model], 64, "--out <FILE>");
    refused(&with(&["--prefill-tokens", "0"]), 64, "--prefill-tokens");
    refused(&with(&["--decode-steps", "0"]), 64, "--decode-steps");
    refused(&with(&["--decode-steps", "many"]), 64, "--decode-steps");
    refused(&with(&["--nonsense"]), 64, "--nonsense");
    refused(&with(&["--engine", "fake"]), 64, "only the operations of llama.cpp can be timed");
    refused(&with(&["--kv-type", "f31"]), 64, "engine.llama.kv_type");
    refused(&with(&["--prefill-tokens", "5000"]), 64, "5008 tokens; a sequence has 4096 at most");
    refused(&["--model", "no/such.gguf", "--out", out], 64, "model.name: no such file: no/such.gguf");
    refused(
        &["--model", model, "--out", "no/such/folder/trace.json"],
        1,
        "--out no/such/folder/trace.json: ",
    );
    let folder = dir.path().to_str().unwrap();
    refused(&["--model", model, "--out", folder], 1, "it exists and is no plain file");
    let damaged = file(dir.path(), "damaged.gguf", "no model");
    refused(&["--model", &damaged, "--out", out], 1, "damaged.gguf");
    assert_eq!(entries(dir.path()), ["damaged.gguf", "tiny.gguf"]);
}
