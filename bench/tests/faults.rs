//! Drives real servers on real sockets that stream well, die mid-stream, stall, or send garbage: each must be
//! counted by its kind, and the run must end. The servers write raw bytes, to decide every cut themselves. Where
//! one of them waits, it plays a slow server, and only lower bounds are asserted.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, LazyLock, Mutex};
use std::time::Duration;

use quern_bench::client::Server;
use quern_bench::output::{FolderSink, NoSink, RunHeader, table, write_summary};
use quern_bench::run::{RunOutcome, RunPlan, run};
use quern_bench::workload::{Load, Workload};

const EVENT_STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// What the server does with a request: its number, its body, and the connection to answer on.
/// False closes the connection.
type Behaviour = fn(usize, &str, &mut TcpStream) -> std::io::Result<bool>;

/// A server on a free port; it lives as long as the test program.
fn serve(behaviour: Behaviour) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count) = (stream.unwrap(), Arc::clone(&count));
            std::thread::spawn(move || {
                // A client that hangs up ends its connection's thread, as it should.
                while let Some(body) = read_request(&mut stream) {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    if !matches!(behaviour(number, &body, &mut stream), Ok(true)) {
                        return;
                    }
                }
            });
        }
    });
    url
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?.to_lowercase();
    let length = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

/// Sends bytes as one chunk of the chunked encoding.
fn chunk(stream: &mut TcpStream, data: &[u8]) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n", data.len())?;
    stream.write_all(data)?;
    stream.write_all(b"\r\n")
}

fn delta(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// Three tokens, usage, the end. Events are cut in the middle.
fn stream_well(_: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    let last = if body.contains("\"odd\"") { "!" } else { "." };
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";
    let whole =
        [delta("Gr"), delta("üße").replace("\n\n", "\r\n\r\n"), delta(last), usage.to_owned()].concat();
    for part in whole.as_bytes().chunks(13) {
        chunk(stream, part)?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

fn die_mid_stream(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    Ok(false)
}

/// A well-formed HTTP response that ends before the stream said that it was done.
fn end_without_done(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

/// One token, then nothing: the thread waits until the client hangs up.
fn stall(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    let _ = stream.read(&mut [0]);
    Ok(false)
}

/// Accepts, and never says a word.
fn stay_silent(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    let _ = stream.read(&mut [0]);
    Ok(false)
}

fn send_html(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"<html>\n<body>it works</body>\n")?;
    Ok(false)
}

fn send_broken_json(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"data: {\"choices\": [\n\n")?;
    Ok(false)
}

fn report_an_error(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n")?;
    Ok(false)
}

fn refuse(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull")?;
    Ok(true)
}

/// Every second request fails, so that one run holds good and bad.
fn die_now_and_then(number: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    if number.is_multiple_of(2) {
        stream_well(number, body, stream)
    } else {
        die_mid_stream(number, body, stream)
    }
}

const CLOSED: &str = "mode = \"closed\"\nclients = [2]\nrequests = 6\nstall_timeout_s = 0.3";

fn plan(load: &str, check: &str, urls: &[String]) -> RunPlan {
    let text = format!(
        "name = \"probe\"\nmax_tokens = 8\n[prompts]\ninline = [\"a\"]\n[load]\n{load}\n[check]\n{check}\n"
    );
    let workload = Workload::parse("probe.toml", &text, None).unwrap();
    let prompts = workload.read_prompts(&workload.prompts).unwrap();
    let long_prompts = match &workload.load {
        Load::LongPrompt { prompts, .. } => Some(workload.read_prompts(prompts).unwrap()),
        _ => None,
    };
    let server = |(idx, url): (usize, &String)| Server {
        name: format!("s{idx}"),
        url: url.clone(),
        model: if idx == 0 { "m" } else { "odd" }.to_owned(),
        ..Server::default()
    };
    let servers = urls.iter().enumerate().map(server).collect();
    RunPlan { workload, prompts, long_prompts, servers, rounds: 1, seed: 1 }
}

fn outcome(load: &str, check: &str, urls: &[String]) -> (RunOutcome, bool) {
    let plan = plan(load, check, urls);
    let workload = plan.workload.clone();
    let outcome = run(plan, Box::new(NoSink)).unwrap();
    let is_passed = outcome.is_passed(&workload);
    (outcome, is_passed)
}

/// A label for each text, the last one null, and a wrong one for the text `c`.
fn classify(_: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
    let request: serde_json::Value = serde_json::from_str(body)?;
    let texts = request["input"].as_array().unwrap();
    let label = |text: &serde_json::Value| match text.as_str() {
        Some("a") => serde_json::json!("first"),
        Some("b") => serde_json::json!("second"),
        _ => serde_json::Value::Null,
    };
    let data: Vec<serde_json::Value> =
        texts.iter().map(|text| serde_json::json!({"label": label(text)})).collect();
    let answer = serde_json::json!({"data": data, "usage": {"prompt_tokens": 7}}).to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    write!(stream, "{head}{}\r\n\r\n{answer}", answer.len())?;
    Ok(true)
}

#[test]
fn labels_are_compared_one_by_one() {
    let mut plan = plan(CLOSED, "expected = \"report\"", &[serve(classify)]);
    let text = "name = \"probe\"\napi = \"classify\"\ntexts = 3\nmax_tokens = 1\n[prompts]\ninline = [\"a\", \"b\", \"c\"]\n\
                expected = [\"first\", \"second\", \"third\"]\n[load]\n";
    let text = format!("{text}{CLOSED}\n[check]\nexpected = \"report\"\n");
    plan.workload = Workload::parse("probe.toml", &text, None).unwrap();
    plan.prompts = plan.workload.read_prompts(&plan.workload.prompts).unwrap();
    let outcome = run(plan, Box::new(NoSink)).unwrap();
    let phase = &outcome.phases[0];
    assert_eq!((phase.num_ok, phase.num_with_expected, phase.num_as_expected), (6, 18, 12));
    assert_eq!((phase.prompt_tokens, phase.tokens), (42, 0));
}

#[test]
fn a_server_is_prepared_before_each_of_its_phases() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let url = serve(stream_well);
    let mut plan = plan(CLOSED, "non_empty = true", &[url.clone(), url]);
    for server in &mut plan.servers {
        server.prepare = Some(format!("echo {} >> {}", server.name, log.display()));
    }
    (plan.rounds, plan.servers[1].model) = (2, "m".to_owned());
    let outcome = run(plan, Box::new(NoSink)).unwrap();
    assert_eq!((outcome.num_failed, outcome.num_wrong), (0, 0));
    assert_eq!(std::fs::read_to_string(log).unwrap(), "s0\ns1\ns0\ns1\n");
}

#[test]
fn a_run_ends_where_a_server_cannot_be_prepared() {
    let mut plan = plan(CLOSED, "non_empty = true", &[serve(stream_well)]);
    plan.servers[0].prepare = Some("echo no such policy >&2; exit 3".to_owned());
    let error = run(plan, Box::new(NoSink)).unwrap_err().to_string();
    assert!(error.contains("no such policy"), "{error}");
}

#[test]
fn a_good_stream_is_measured() {
    let (outcome, is_passed) = outcome(CLOSED, "non_empty = true", &[serve(stream_well)]);
    let phase = &outcome.phases[0];
    assert!(is_passed, "{:?}", outcome.examples);
    assert_eq!(
        (phase.num_ok, phase.tokens, phase.prompt_tokens),
        (6, 30, 42),
        "the server's counts are taken"
    );
    assert!(phase.is_counted_by_server);
    let [ttft, tbt, tpot, gap, e2e] =
        [phase.ttft, phase.tbt, phase.tpot, phase.longest_gap, phase.e2e].map(|times| times.unwrap());
    assert_eq!([ttft.count, tbt.count, tpot.count, gap.count, e2e.count], [6, 12, 6, 6, 6]);
    assert!(ttft.max_ms <= e2e.max_ms * 1.01);
}

#[test]
fn each_fault_is_counted_by_its_kind() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases: [(&str, String); 9] = [
        ("connect", format!("http://{nobody}")),
        ("status 429", serve(refuse)),
        ("closed mid-stream", serve(die_mid_stream)),
        ("closed mid-stream", serve(end_without_done)),
        ("stall", serve(stall)),
        ("stall", serve(stay_silent)),
        ("broken SSE", serve(send_html)),
        ("broken SSE", serve(send_broken_json)),
        ("error in stream", serve(report_an_error)),
    ];
    for (kind, url) in cases {
        let (outcome, is_passed) = outcome(CLOSED, "", &[url]);
        let phase = &outcome.phases[0];
        assert_eq!((phase.num_ok, phase.failures.get(kind)), (0, Some(&6)), "{kind}: {:?}", phase.failures);
        assert!(!is_passed, "{kind}: a run whose requests failed has not passed");
    }
}

#[test]
fn a_request_that_trickles_for_ever_ends_at_its_limit() {
    fn trickle(_: usize, _: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        stream.write_all(EVENT_STREAM.as_bytes())?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        loop {
            chunk(stream, b": still here\n\n")?;
            if matches!(stream.read(&mut [0]), Ok(0)) {
                return Ok(false);
            }
        }
    }
    let load = format!("{CLOSED}\nrequest_timeout_s = 0.5");
    let (outcome, _) = outcome(&load, "", &[serve(trickle)]);
    assert_eq!(outcome.phases[0].failures.get("too long"), Some(&6));
}

#[test]
fn good_and_bad_requests_of_one_run_are_told_apart() {
    let url = serve(die_now_and_then);
    let (outcome, is_passed) = outcome(CLOSED, "max_error_share = 0.6", &[url]);
    let phase = &outcome.phases[0];
    assert_eq!((phase.num_ok, phase.num_failed), (3, 3));
    assert!(is_passed, "the workload allows this share of failures");
    assert_eq!(phase.ttft.unwrap().count, 3, "a failed request has no latency");
}

#[test]
fn wrong_answers_fail_the_run() {
    let url = serve(stream_well);
    for check in ["min_tokens = 6", "json = true", "one_of = [\"no\"]"] {
        let (outcome, is_passed) = outcome(CLOSED, check, std::slice::from_ref(&url));
        assert_eq!((outcome.phases[0].num_wrong, is_passed), (6, false), "{check}");
    }
    // The second server's answers end otherwise: it is the one to be wrong.
    let urls = [url.clone(), url];
    let (required, is_passed) = outcome(CLOSED, "equal_across_servers = \"require\"", &urls);
    let wrong: Vec<u64> = required.phases.iter().map(|phase| phase.num_wrong).collect();
    assert_eq!((wrong, is_passed), (vec![0, 6], false));
    let (reported, is_passed) = outcome(CLOSED, "equal_across_servers = \"report\"", &urls);
    assert_eq!((reported.num_different, is_passed), (6, true));
}

#[test]
fn each_response_is_read_to_its_end() {
    type Channel = (Sender<bool>, Mutex<Receiver<bool>>);
    static CLEAN_ENDS: LazyLock<Channel> = LazyLock::new(|| {
        let (sender, receiver) = channel();
        (sender, Mutex::new(receiver))
    });
    fn note_end(number: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        stream_well(number, body, stream)?;
        // A client that left bytes unread resets the connection; one that read them all ends it.
        CLEAN_ENDS.0.send(matches!(stream.read(&mut [0]), Ok(0))).unwrap();
        Ok(false)
    }
    let load = "mode = \"closed\"\nclients = [1]\nrequests = 20";
    let (outcome, _) = outcome(load, "", &[serve(note_end)]);
    assert_eq!(outcome.phases[0].num_ok, 20);
    let ends = CLEAN_ENDS.1.lock().unwrap();
    for _ in 0..20 {
        assert_eq!(ends.recv_timeout(Duration::from_secs(10)), Ok(true));
    }
}

#[test]
fn open_loop_latency_counts_the_time_spent_waiting_here() {
    fn slow(number: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        std::thread::sleep(Duration::from_millis(50));
        stream_well(number, body, stream)
    }
    // Ten requests meant to arrive within 10 ms, but one at a time under way: the last waits for the nine others.
    let load = "mode = \"open\"\narrivals = \"constant\"\nrates = [1000.0]\nrequests = 10\nmax_in_flight = 1";
    let (outcome, _) = outcome(load, "", &[serve(slow)]);
    let phase = &outcome.phases[0];
    assert_eq!(phase.num_ok, 10);
    assert!(phase.e2e.unwrap().max_ms >= 10.0 * 50.0 - 10.0, "{:?}", phase.e2e);
    assert!(phase.send_lateness.unwrap().max_ms >= 9.0 * 50.0 - 10.0, "{:?}", phase.send_lateness);
    assert!(phase.client_trouble().is_some());
}

/// Streams stand still while the long prompt is under way: it is the third connection's request, and ends only
/// when both streams wait for it.
#[test]
fn a_long_prompt_shows_how_long_streams_stood_still() {
    static STREAMS_STAND_STILL: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(3));
    fn behave(number: usize, body: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        if body.contains("LONG") {
            STREAMS_STAND_STILL.wait();
            std::thread::sleep(Duration::from_millis(100));
            stream_well(number, body, stream)?;
            STREAMS_STAND_STILL.wait();
            return Ok(true);
        }
        stream.write_all(EVENT_STREAM.as_bytes())?;
        for _ in 0..4 {
            chunk(stream, delta("a").as_bytes())?;
        }
        STREAMS_STAND_STILL.wait();
        STREAMS_STAND_STILL.wait();
        loop {
            chunk(stream, delta("b").as_bytes())?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let load = "mode = \"long_prompt\"\nstreams = [2]\nsettle_tokens = 4\ntrials = 1\nlong = { inline = [\"LONG\"] }";
    let (outcome, is_passed) = outcome(load, "non_empty = true", &[serve(behave)]);
    let phase = &outcome.phases[0];
    assert!(is_passed, "{:?}", outcome.examples);
    assert_eq!((phase.num_ok, phase.longest_gap.unwrap().count), (1, 1));
    // Each stream has the gap from its fourth token to its fifth, which no token of the long prompt shortens. On a
    // busy machine later tokens may be read before the long prompt's first one, and add short gaps.
    assert!(phase.tbt.unwrap().count >= 2);
    assert!(phase.longest_gap.unwrap().max_ms >= 95.0, "{:?}", phase.longest_gap);
    assert!(phase.ttft.unwrap().max_ms >= 95.0);
}

#[test]
fn a_stream_that_dies_fails_the_long_prompt_trial() {
    let load = "mode = \"long_prompt\"\nstreams = [2]\nlong = { inline = [\"LONG\"] }\nstall_timeout_s = 0.5";
    let (outcome, is_passed) = outcome(load, "", &[serve(die_mid_stream)]);
    assert_eq!(outcome.phases[0].failures.get("closed mid-stream"), Some(&1));
    assert!(!is_passed);
}

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
        servers: vec![("s0".to_owned(), "model `m`".to_owned())],
        seed: 1,
        machine: quern_bench::machine::Machine::read(),
        notes: vec!["threads 2".to_owned()],
    };
    let sink = FolderSink::create(folder.path(), &header).unwrap();
    let urls = [serve(stream_well), serve(die_now_and_then)];
    let outcome = run(plan(CLOSED, "", &urls), Box::new(sink)).unwrap();
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
    ] {
        assert!(markdown.contains(part), "{part} is missing in\n{markdown}");
    }
    let svg = read("plot.svg");
    assert!(svg.starts_with("<svg") && svg.contains("TTFT p95 ms") && svg.contains("s1"));
}
