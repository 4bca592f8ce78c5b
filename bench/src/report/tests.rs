use super::*;
use crate::experiment::section::{CSV_FILE, tests as experiment_tests, write as write_experiment};
use crate::machine::Machine;
use crate::output::{FolderSink, PLOT_FILE, RESULTS_FILE, RunHeader, TABLE_FILE, write_summary};
use crate::results::FORMAT;
use crate::run::{RunOutcome, Sink as _};
use crate::stats::PhaseSummary;

const SVG: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\"><text>plot</text></svg>\n";

fn machine() -> Machine {
    Machine {
        cpu: "A CPU".to_owned(),
        num_cores: 2,
        memory_mib: 1024,
        kernel: "6".to_owned(),
        load_before: "0.10".to_owned(),
    }
}

/// Leaves an experiment as experiments do, but for its plot.
fn leave_experiment(root: &Path, title: &'static str) {
    let heading = experiment_tests::heading();
    let heading = experiment::section::Heading { machine: machine(), title, ..heading };
    let place = write_experiment(root, &heading, &experiment_tests::findings()).unwrap();
    std::fs::write(place.join(PLOT_FILE), SVG).unwrap();
}

/// Leaves a run as runs do, but for its plot.
fn leave_run(folder: &Path, name: &str) {
    let header = RunHeader {
        name: name.to_owned(),
        workload: "chat".to_owned(),
        about: "What does it ask?".to_owned(),
        date: "2026-01-31T00:00:00Z".to_owned(),
        command_line: "quern-bench run chat".to_owned(),
        bench_version: "1".to_owned(),
        format: FORMAT,
        servers: vec![("quern".to_owned(), "model `m` at a place".to_owned())],
        seed: 7,
        machine: machine(),
        notes: vec!["quern 1".to_owned()],
    };
    let (server, level) = ("quern".to_owned(), "1 client".to_owned());
    let phase = PhaseSummary { server, level, num_ok: 3, tokens_per_s: 20.0, ..PhaseSummary::default() };
    let outcome = RunOutcome { phases: vec![phase], ..RunOutcome::default() };
    let mut sink = FolderSink::create(folder, &header).unwrap();
    sink.take(&outcome.phases[0], &[]).unwrap();
    drop(sink);
    write_summary(folder, &header, &outcome).unwrap();
    std::fs::write(folder.join(PLOT_FILE), SVG).unwrap();
}

fn args(folder: &Path) -> ReportArgs {
    ReportArgs { folder: folder.to_owned(), title: Some("A title".to_owned()) }
}

/// Both files of a folder's report.
fn reported(folder: &Path) -> [String; 2] {
    write_report(&args(folder)).unwrap().map(|path| std::fs::read_to_string(path).unwrap())
}

fn refused(folder: &Path) -> String {
    let error = write_report(&args(folder)).unwrap_err().to_string();
    assert!(
        !folder.join(MARKDOWN_FILE).exists() && !folder.join(PAGE_FILE).exists(),
        "something was written"
    );
    error
}

#[test]
fn files_have_the_shape_of_the_golden_ones() {
    let root = tempfile::tempdir().unwrap();
    leave_experiment(root.path(), "A probe");
    leave_run(&root.path().join("chat"), "Chat");
    let mut report = read(&args(root.path()), "2026-02-01T00:00:00Z".to_owned()).unwrap();
    report.version = "1.2.3".to_owned();
    let texts = [(MARKDOWN_FILE, markdown::text(&report)), (PAGE_FILE, page::text(&report).unwrap())];
    for (name, text) in texts {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("QUERN_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(text, golden, "{name} has another shape: QUERN_UPDATE_GOLDEN=1 writes it anew");
    }
}

#[test]
fn what_tables_say_of_themselves_is_in_the_overview() {
    let root = tempfile::tempdir().unwrap();
    leave_experiment(root.path(), "A probe");
    leave_run(&root.path().join("runs/chat"), "Chat");
    let report = read(&args(root.path()), String::new()).unwrap();
    let [probe, chat] = &report.sections[..] else { panic!("{:?}", report.sections) };
    assert_eq!((probe.title.as_str(), probe.experiment.as_deref()), ("A probe", Some("probe")));
    assert_eq!((probe.date.as_str(), &probe.machine), ("2026-01-31T00:00:00Z", &machine().to_string()));
    assert_eq!(probe.versions, ["quern 1; quern-bench 2", "cut short"]);
    assert_eq!(
        (probe.command.as_str(), probe.not_measured.as_slice()),
        ("quern-bench experiment probe", &["the weather".to_owned()][..])
    );
    assert_eq!((chat.place.as_str(), chat.experiment.as_deref()), ("runs/chat", None));
    assert_eq!((chat.date.as_str(), &chat.machine), ("2026-01-31T00:00:00Z", &machine().to_string()));
    assert_eq!(
        (chat.versions.join(","), chat.command.as_str()),
        ("quern-bench 1,quern 1".to_owned(), "quern-bench run chat")
    );
    assert!(probe.remarks.is_empty() && chat.remarks.is_empty(), "{report:?}");
    assert_eq!(report.absent, experiment::NAMES, "no experiment of the program is called probe");
}

#[test]
fn the_page_needs_nothing_beside_it() {
    let root = tempfile::tempdir().unwrap();
    leave_experiment(root.path(), "A probe");
    let [markdown, page] = reported(root.path());
    assert!(page.contains("src=\"data:image/svg+xml;base64,"));
    assert!(page.contains("default-src 'none'"));
    for part in ["http://", "https://", "<script", "<link", "url(", "@import"] {
        assert!(!page.contains(part), "{part} is in the page");
    }
    assert!(markdown.contains("![A probe](<probe/plot.svg>)"), "{markdown}");
}

#[test]
fn hostile_results_stay_text() {
    let root = tempfile::tempdir().unwrap();
    let hostile = "</title><script>alert(1)</script>";
    leave_run(&root.path().join("chat"), hostile);
    let bad = root.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    let table = format!(
        "# \"><img src=x onerror=alert(2)>\n\nMachine: {hostile}.  \nVersions: {hostile}.  \nNote: {hostile}.  \n\
         Command: `{hostile}`\n\n## Not measured\n\n- {hostile} | [a](javascript:alert(3))\n"
    );
    std::fs::write(bad.join(TABLE_FILE), table).unwrap();
    std::fs::write(bad.join(PLOT_FILE), "<svg onload=\"alert(4)\"><script>alert(5)</script></svg>").unwrap();
    let [markdown, page] = reported(root.path());
    for part in ["<script", "<img src=x", "onload=\"", "<svg", "href=\"javascript"] {
        assert!(!page.contains(part), "{part} is in the page");
    }
    assert_eq!(page.matches("</title>").count(), 1);
    assert!(page.contains("&lt;script&gt;alert(1)"), "the text itself is shown");
    let overview = markdown.lines().find(|line| line.contains("bad/table.md")).unwrap();
    assert!(!overview.contains('<') || overview.contains("(<bad/table.md>)"), "{overview}");
    assert!(!overview.contains("<script") && !overview.contains("<img"), "{overview}");
}

#[test]
fn folders_without_results_are_refused() {
    let root = tempfile::tempdir().unwrap();
    assert!(refused(root.path()).contains("no results here or up to three folders below"));
    let nowhere = root.path().join("nowhere");
    assert!(refused(&nowhere).starts_with(&nowhere.display().to_string()));
}

#[test]
fn results_of_later_versions_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    leave_experiment(root.path(), "A probe");
    let csv = root.path().join("probe").join(CSV_FILE);
    let text = std::fs::read_to_string(&csv).unwrap();
    std::fs::write(&csv, text.replace("layout 2", "layout 9")).unwrap();
    let error = refused(root.path());
    assert!(error.contains("results.csv: in layout 9"), "{error}");
    let run = tempfile::tempdir().unwrap();
    leave_run(run.path(), "Chat");
    let lines = run.path().join(RESULTS_FILE);
    let text = std::fs::read_to_string(&lines).unwrap();
    std::fs::write(&lines, text.replace("\"format\":2", "\"format\":9")).unwrap();
    let error = refused(run.path());
    assert!(error.contains("results.jsonl: written by quern-bench 1 in format 9"), "{error}");
}

#[test]
fn what_is_converted_or_missing_is_remarked_upon() {
    let root = tempfile::tempdir().unwrap();
    leave_experiment(root.path(), "A probe");
    let probe = root.path().join("probe");
    let text = std::fs::read_to_string(probe.join(CSV_FILE)).unwrap();
    std::fs::write(probe.join(CSV_FILE), text.replace("layout 2", "layout 1")).unwrap();
    std::fs::remove_file(probe.join(PLOT_FILE)).unwrap();
    let [markdown, page] = reported(root.path());
    for text in [&markdown, &page] {
        assert!(text.contains("converted from layout 1 to 2"), "{text}");
        assert!(text.contains("there is no plot"), "{text}");
        assert!(!text.contains("plot.svg)") && !text.contains("<img"), "{text}");
    }
    std::fs::remove_file(probe.join(TABLE_FILE)).unwrap();
    let [markdown, page] = reported(root.path());
    for text in [&markdown, &page] {
        assert!(text.contains("table.md is missing"), "{text}");
    }
    assert!(page.contains("<h2>probe</h2>") && markdown.contains("\n## probe\n"));
    leave_run(&root.path().join("chat"), "Chat");
    std::fs::remove_file(root.path().join("chat").join(RESULTS_FILE)).unwrap();
    let [markdown, _] = reported(root.path());
    assert!(
        markdown.contains("results.jsonl is not beside this table; phases.csv has the figures"),
        "{markdown}"
    );
}
