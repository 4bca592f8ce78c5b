//! What a run leaves on disk, and what reads it again.

use quern_bench::output::{FolderSink, RunHeader, table, write_summary};
use quern_bench::report::{ReportArgs, write_report};
use quern_bench::results::{self, FORMAT};
use quern_bench::run::run;

use crate::faults::die_now_and_then;
use crate::server::{CLOSED, plan_of, serve, stream_well, workload};

#[test]
fn a_run_leaves_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let header = RunHeader {
        name: "Probe".to_owned(),
        workload: "probe".to_owned(),
        about: "What it asks: nothing.".to_owned(),
        date: quern_bench::machine::now_utc(),
        command_line: "quern-bench run probe".to_owned(),
        bench_version: "0".to_owned(),
        format: FORMAT,
        servers: vec![("s0".to_owned(), "model `m`".to_owned())],
        seed: 1,
        machine: quern_bench::machine::Machine::read(),
        notes: vec!["threads 2".to_owned()],
    };
    let sink = FolderSink::create(folder.path(), &header).unwrap();
    let urls = [serve(stream_well), serve(die_now_and_then)];
    let top = "[objective]\ne2e_ms = 60000\n[[tenants]]\nname = \"acme\"";
    let outcome = run(plan_of(workload(top, CLOSED, ""), &urls), Box::new(sink)).unwrap();
    write_summary(folder.path(), &header, &outcome).unwrap();

    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let results = read("results.jsonl");
    let lines: Vec<serde_json::Value> =
        results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_type = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of_type("run"), of_type("request"), of_type("phase")), (1, 12, 2));
    assert!(of_type("ratio") > 5);
    assert_eq!(csv::Reader::from_reader(read("phases.csv").as_bytes()).records().count(), 2);
    let markdown = read("table.md");
    assert_eq!(markdown, table(&header, &outcome));
    for part in [
        "What it asks: nothing.",
        "threads 2",
        "## 2 clients",
        "## s0 over the others",
        "3 × closed mid-stream",
        "Objective: end to end ≤ 60000 ms, for 95 % of the requests",
        "| kept the objective % | 100 | 50.0 |",
        "| acme | s1 | 1 | 3 / 3 |",
        "| client CPU µs a request |",
    ] {
        assert!(markdown.contains(part), "{part} is missing in\n{markdown}");
    }
    let svg = read("plot.svg");
    assert!(svg.starts_with("<svg") && svg.contains("goodput requests/s") && svg.contains("s1"));

    let again = results::read(&folder.path().join("results.jsonl")).unwrap();
    let phases = again.run.unwrap().phases;
    assert_eq!((phases.len(), phases[1].num_failed, again.converted), (2, 3, None));
    assert_eq!(phases[1].objective, outcome.phases[1].objective);
}

#[test]
fn a_report_says_what_was_converted_and_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("a/results.jsonl");
    std::fs::create_dir(folder.path().join("a")).unwrap();
    std::fs::write(folder.path().join("a/table.md"), "# Run a\n").unwrap();
    std::fs::write(&results, "{\"ready_s\":1.0}\n").unwrap();
    let args = ReportArgs { folder: folder.path().to_owned(), title: None };
    for path in write_report(&args).unwrap() {
        let report = std::fs::read_to_string(path).unwrap();
        assert!(report.contains("converted from format 1"), "{report}");
    }
    std::fs::write(&results, "{\"type\":\"run\",\"format\":99,\"bench_version\":\"9.9.9\"}\n").unwrap();
    let error = write_report(&args).unwrap_err().to_string();
    assert!(error.contains("9.9.9 in format 99") && error.contains("a/results.jsonl"), "{error}");
}
