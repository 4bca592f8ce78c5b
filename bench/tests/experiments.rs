//! Experiments from the command line to their files: on a program that fails, and, where `QUERN_TEST_PROGRAM` names a
//! built node, on nodes of a tiny random model.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Parser;
use quern_bench::experiment::{ExperimentArgs, ExperimentError, Left, run};
use quern_gguf::tiny::{self, Arch, TinySpec};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ExperimentArgs,
}

struct Bench {
    folder: tempfile::TempDir,
    quern: PathBuf,
}

impl Bench {
    /// A tiny model, and the program that serves it.
    fn new(quern: Option<PathBuf>, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = TinySpec::new(Arch::Qwen2, 1);
        spec.context = 32_768;
        tiny::write(&folder.path().join("tiny.gguf"), &spec).unwrap();
        let quern = quern.unwrap_or_else(|| {
            let program = folder.path().join("quern");
            std::fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            program
        });
        Self { folder, quern }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn make(&self, words: &[&str]) -> Result<Left, ExperimentError> {
        let path = |path: &Path| path.display().to_string();
        let common = [
            ["--quern".to_owned(), path(&self.quern)],
            ["--model".to_owned(), path(&self.folder.path().join("tiny.gguf"))],
            ["--out".to_owned(), path(&self.out())],
        ];
        let given = words.iter().map(|word| (*word).to_owned());
        let line = ["experiment".to_owned()].into_iter().chain(given).chain(common.into_iter().flatten());
        run(Line::try_parse_from(line).unwrap().args, "quern-bench experiment".to_owned())
    }

    /// Names in the folder of results.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.out()).map(|entries| entries.map(|entry| entry.unwrap()));
        entries
            .map(|all| all.map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default()
    }
}

/// The built node, if there is one to test on.
fn built() -> Option<PathBuf> {
    let Some(program) = std::env::var_os("QUERN_TEST_PROGRAM").map(PathBuf::from) else {
        eprintln!("SKIPPED: set QUERN_TEST_PROGRAM to a built quern to test experiments on nodes");
        return None;
    };
    if !program.is_file() {
        eprintln!("SKIPPED: no program at {}, which QUERN_TEST_PROGRAM names", program.display());
        return None;
    }
    Some(program)
}

const FAILS: &str = "[ \"$1\" != --version ] || { echo quern 0; exit 0; }\necho no luck today >&2\nexit 3\n";

#[test]
fn settings_that_fail_are_told_and_do_not_stop_the_others() {
    let bench = Bench::new(None, FAILS);
    let left = bench.make(&["attention", "--rounds", "2", "--quick"]).unwrap();
    assert!(left.failed.len() >= 2, "{:?}", left.failed);
    assert!(left.failed.iter().all(|failed| failed.contains("no luck today")), "{:?}", left.failed);
    assert!(left.failed[0].starts_with("CPU, flash attention off: "));
    let csv = std::fs::read_to_string(left.folder.join("results.csv")).unwrap();
    assert!(csv.contains("no luck today"), "{csv}");
    assert_eq!(bench.left(), ["attention"], "scratch files are gone");
}

#[test]
fn an_experiment_that_cannot_begin_leaves_nothing() {
    let bench = Bench::new(None, FAILS);
    let Err(ExperimentError::Failed(error)) = bench.make(&["batching", "--quick"]) else {
        panic!("it was made")
    };
    assert!(format!("{error:#}").contains("no luck today"));
    assert_eq!(bench.left(), Vec::<String>::new());
    let usage = bench.make(&["attention", "--set", "nonsense"]);
    assert!(matches!(usage, Err(ExperimentError::Usage(message)) if message.contains("KEY=VALUE")));
}

/// Makes an experiment on nodes of the tiny model, and checks that its files have what they must.
fn check(words: &[&str], settings: &[&str], figures: &[&str]) {
    if let Some(program) = built() {
        checked(Bench::new(Some(program), ""), words, settings, figures);
    }
}

/// The same with this program; gives what was left for more checks.
fn checked(bench: Bench, words: &[&str], settings: &[&str], figures: &[&str]) -> (Bench, Left) {
    let mut all = words.to_vec();
    all.extend(["--quick", "--rounds", "2"]);
    let left = bench.make(&all).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(left.failed, Vec::<String>::new(), "{}", left.markdown);
    let text = std::fs::read_to_string(left.folder.join("results.csv")).unwrap();
    let mut csv = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
    let header = csv.headers().unwrap().clone();
    let records: Vec<_> = csv.records().map(Result::unwrap).collect();
    for setting in settings {
        assert!(records.iter().any(|record| &record[0] == *setting), "no {setting} in\n{text}");
    }
    for figure in figures {
        let idx = header.iter().position(|name| name == *figure).unwrap();
        let has_value =
            records.iter().any(|record| record[idx].parse::<f64>().is_ok_and(|value| value > 0.0));
        assert!(has_value, "no {figure} in\n{text}");
    }
    assert!(std::fs::read_to_string(left.folder.join("plot.svg")).unwrap().contains("<svg"));
    assert!(left.markdown.contains("Machine: ") && left.markdown.contains("## Figures"));
    let name = words[0];
    assert_eq!(bench.left(), [name], "scratch files are gone");
    (bench, left)
}

#[test]
fn batching_on_nodes() {
    let words = ["batching", "--requests", "8", "--load", "0.5", "--batch-size", "4", "--window-ms", "20"];
    let settings = ["continuous", "static, 4", "dynamic, 4 or 20 ms"];
    check(&words, &settings, &["short_p50_ms", "long_p50_ms", "requests_per_s"]);
}

#[test]
fn quantization_on_nodes() {
    let words = ["quantization", "--formats", "F16,Q8_0"];
    check(&words, &["as given", "F16", "Q8_0"], &["file_mib", "prefill_tok_per_s", "perplexity", "num_rows"]);
}

#[test]
fn pruning_on_nodes() {
    check(
        &["pruning", "--fractions", "0.5"],
        &["as given", "50 % by global"],
        &["perplexity", "anonymous_mib"],
    );
}

#[test]
fn key_value_caches_on_nodes() {
    let settings = ["f16", "no cache", "f16, nothing shared"];
    check(
        &["kv-cache", "--lengths", "64,128"],
        &settings,
        &["decode_tok_per_s", "kv_mib", "kv_computed_mib"],
    );
}

#[test]
fn speculation_on_nodes() {
    check(&["speculative"], &["off", "lookup"], &["edit_tok_per_s", "compared_answers"]);
}

#[test]
fn attention_on_nodes() {
    check(
        &["attention", "--lengths", "64"],
        &["CPU, flash attention on"],
        &["prefill_tok_per_s", "compute_mib"],
    );
}

/// Makes a profile with this program; gives the section, and the categories and processes of the trace's slices.
fn profiled(bench: Bench) -> (String, Vec<(Option<String>, i64)>) {
    let words = ["profile", "--lengths", "64", "--batches", "1,2"];
    let settings = ["prefill, by tokens", "decode, by sequences"];
    let (_bench, left) = checked(bench, &words, &settings, &["flop_share_percent", "num_rows"]);
    let trace = std::fs::read_to_string(left.folder.join("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    let slices = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
    let kind = |event: &serde_json::Value| {
        (event["cat"].as_str().map(str::to_owned), event["pid"].as_i64().unwrap())
    };
    let mut kinds: Vec<_> = slices.map(kind).collect();
    kinds.sort();
    kinds.dedup();
    (left.markdown, kinds)
}

#[test]
fn a_profile_of_nodes() {
    let Some(program) = built() else { return };
    let (section, kinds) = profiled(Bench::new(Some(program), ""));
    let expected = [(None, 1), (Some("operation".to_owned()), 2), (Some("step".to_owned()), 2)];
    assert_eq!(kinds, expected, "the node's steps, and operations in steps of another process");
    for part in ["## Operations", "| MUL_MAT ffn_down |", "| MUL_MAT head |", "`operations.csv`"] {
        assert!(section.contains(part), "{part} is not in\n{section}");
    }
    assert!(!section.contains("Single operations inside a step"), "{section}");
}

#[test]
fn a_profile_of_nodes_that_time_no_operations() {
    let Some(program) = built() else { return };
    let told = "[ \"$1\" != profile ] || { echo no such command >&2; exit 64; }";
    let script = format!("{told}\nexec '{}' \"$@\"\n", program.display());
    let (section, kinds) = profiled(Bench::new(None, &script));
    assert_eq!(kinds, [(None, 1)]);
    assert!(!section.contains("## Operations"), "{section}");
    let (_, gaps) = section.split_once("## Not measured").unwrap();
    assert!(gaps.contains("- Single operations inside a step: quern profile: "), "{gaps}");
    assert!(gaps.contains("no such command"), "{gaps}");
}

#[test]
fn policies_on_nodes() {
    check(&["policies", "--requests", "8"], &["builtin, real", "builtin, simulated"], &["ttft_p50_ms"]);
}

#[test]
fn hardware_of_nodes() {
    check(&["hardware", "--clients", "2"], &["defaults"], &["tokens_per_s", "texts_per_s"]);
}
