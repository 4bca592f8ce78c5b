//! Drives real servers on real sockets that stream well, die mid-stream, stall, or send garbage: each must be
//! counted by its kind, and the run must end. The servers write raw bytes, to decide every cut themselves. Where
//! one of them waits, it plays a slow server, and only lower bounds are asserted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Barrier, LazyLock, Mutex};
use std::time::Duration;

use quern_bench::output::NoSink;
use quern_bench::run::run;
use quern_bench::workload::Workload;

use crate::server::{
    CLOSED, EVENT_STREAM, IMPATIENT, Request, chunk, delta, nobody, outcome, plan, plan_of, run_of,
    send_json, serve, stream_well, workload,
};

fn die_mid_stream(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    Ok(false)
}

/// A well-formed HTTP response that ends before the stream said that it was done.
fn end_without_done(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

/// One token, then nothing: the thread waits until the client hangs up.
fn stall(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, delta("a").as_bytes())?;
    let _ = stream.read(&mut [0]);
    Ok(false)
}

/// Accepts, and never says a word.
fn stay_silent(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    let _ = stream.read(&mut [0]);
    Ok(false)
}

fn send_html(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"<html>\n<body>it works</body>\n")?;
    Ok(false)
}

fn speak_no_http(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"220 mail.example ESMTP ready\r\n\r\n")?;
    Ok(false)
}

fn send_a_broken_chunk(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    stream.write_all(b"many bytes\r\ndata: 1\n\n")?;
    Ok(false)
}

fn send_broken_json(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"data: {\"choices\": [\n\n")?;
    Ok(false)
}

fn report_an_error(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    chunk(stream, b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n")?;
    Ok(false)
}

pub fn refuse(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull")?;
    Ok(true)
}

/// What shows a fault of this kind.
fn load_for(kind: &str) -> &'static str {
    if kind == "stall" { IMPATIENT } else { CLOSED }
}

/// Every second request fails, so that one run holds good and bad.
pub fn die_now_and_then(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    if request.number.is_multiple_of(2) {
        stream_well(request, stream)
    } else {
        die_mid_stream(request, stream)
    }
}

/// A label for each text, the last one null, and a wrong one for the text `c`.
fn classify(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    let asked: serde_json::Value = serde_json::from_str(&request.body)?;
    let texts = asked["input"].as_array().unwrap();
    let label = |text: &serde_json::Value| match text.as_str() {
        Some("a") => serde_json::json!("first"),
        Some("b") => serde_json::json!("second"),
        _ => serde_json::Value::Null,
    };
    let data: Vec<serde_json::Value> =
        texts.iter().map(|text| serde_json::json!({"label": label(text)})).collect();
    send_json(stream, &serde_json::json!({"data": data, "usage": {"prompt_tokens": 7}}).to_string())
}

#[test]
fn labels_are_compared_one_by_one() {
    let text = "name = \"probe\"\napi = \"classify\"\ntexts = 3\nmax_tokens = 1\n[prompts]\ninline = [\"a\", \"b\", \"c\"]\n\
                expected = [\"first\", \"second\", \"third\"]\n[load]\n";
    let text = format!("{text}{CLOSED}\n[check]\nexpected = \"report\"\n");
    let workload = Workload::parse("probe.toml", &text, None).unwrap();
    let (outcome, _) = run_of(plan_of(workload, &[serve(classify)]));
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
    let cases: [(&str, String); 11] = [
        ("broken HTTP", serve(speak_no_http)),
        ("broken HTTP", serve(send_a_broken_chunk)),
        ("connect", nobody()),
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
        let (outcome, is_passed) = outcome(load_for(kind), "", &[url]);
        let phase = &outcome.phases[0];
        assert_eq!((phase.num_ok, phase.failures.get(kind)), (0, Some(&6)), "{kind}: {:?}", phase.failures);
        assert!(!is_passed, "{kind}: a run whose requests failed has not passed");
    }
}

#[test]
fn a_request_that_trickles_for_ever_ends_at_its_limit() {
    fn trickle(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
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
    let schema = "json_schema = { type = \"object\" }";
    for check in ["min_tokens = 6", "json = true", "one_of = [\"no\"]", "regex = \"^no$\"", schema] {
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
    fn note_end(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        stream_well(request, stream)?;
        // A client that left bytes unread resets the connection; one that read them all ends it.
        CLEAN_ENDS.0.send(matches!(stream.read(&mut [0]), Ok(0))).unwrap();
        Ok(false)
    }
    // On a connection that is kept, the next request would come in place of an end.
    let load = "mode = \"closed\"\nclients = [1]\nrequests = 20\nkeep_connections = false";
    let (outcome, _) = outcome(load, "", &[serve(note_end)]);
    assert_eq!(outcome.phases[0].num_ok, 20);
    let ends = CLEAN_ENDS.1.lock().unwrap();
    for _ in 0..20 {
        assert_eq!(ends.recv_timeout(Duration::from_secs(10)), Ok(true));
    }
}

/// Streams stand still while the long prompt is under way: it is the third connection's request, and ends only
/// when both streams wait for it.
#[test]
fn a_long_prompt_shows_how_long_streams_stood_still() {
    static STREAMS_STAND_STILL: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(3));
    fn behave(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        if request.body.contains("LONG") {
            STREAMS_STAND_STILL.wait();
            std::thread::sleep(Duration::from_millis(100));
            stream_well(request, stream)?;
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
    let load = "mode = \"long_prompt\"\nstreams = [2]\nlong = { inline = [\"LONG\"] }";
    let (outcome, is_passed) = outcome(load, "", &[serve(die_mid_stream)]);
    assert_eq!(outcome.phases[0].failures.get("closed mid-stream"), Some(&1));
    assert!(!is_passed);
}

#[test]
fn a_run_ends_where_nobody_answers_any_more() {
    let load = |amount: &str| format!("mode = \"closed\"\nclients = [2]\n{amount}\nstall_timeout_s = 0.2");
    for (kind, url) in [("connect", nobody()), ("stall", serve(stall)), ("stall", serve(stay_silent))] {
        // 100,000 requests of these would take hours.
        let (outcome, is_passed) = outcome(&load("requests = 100000"), "max_error_share = 1.0", &[url]);
        let phase = &outcome.phases[0];
        assert!((6..=8).contains(&phase.num_failed), "{kind}: {}", phase.num_failed);
        assert_eq!(phase.failures.get(kind), Some(&phase.num_failed));
        let gave_up = phase.gave_up.as_ref().unwrap();
        assert!(gave_up.contains("requests in a row without an answer"), "{gave_up}");
        assert!(!is_passed, "however many failures are allowed, nobody was measured");
    }
}

#[test]
fn a_server_that_refuses_is_driven_to_the_end() {
    let load = "mode = \"closed\"\nclients = [8]\nrequests = 40";
    let (outcome, is_passed) = outcome(load, "max_error_share = 1.0", &[serve(refuse)]);
    assert_eq!((outcome.phases[0].num_failed, outcome.phases[0].gave_up.as_ref()), (40, None));
    assert!(is_passed);
}

#[test]
fn answers_that_come_whole_are_measured_to_their_end() {
    fn answer(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        assert!(request.body.contains("\"stream\":false") && !request.body.contains("stream_options"));
        let choice = r#"{"message": {"content": "Grüße"}, "finish_reason": "stop"}"#;
        send_json(
            stream,
            &format!(r#"{{"choices": [{choice}], "usage": {{"prompt_tokens": 7, "completion_tokens": 5}}}}"#),
        )
    }
    let workload = workload("stream = false", CLOSED, "one_of = [\"grüße\"]");
    let (outcome, is_passed) = run_of(plan_of(workload, &[serve(answer)]));
    let phase = &outcome.phases[0];
    assert!(is_passed, "{:?}", outcome.examples);
    assert_eq!((phase.num_ok, phase.tokens, phase.prompt_tokens), (6, 30, 42));
    assert_eq!(phase.e2e.unwrap().count, 6);
    assert_eq!((phase.ttft, phase.tbt), (None, None), "nobody told when the first token was there");
}

#[test]
fn faults_of_whole_answers_are_counted_by_their_kind() {
    fn send_text(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        send_json(stream, "<html>it works</html>")
    }
    fn send_no_choice(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        send_json(stream, "{\"choices\": []}")
    }
    fn send_error(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        send_json(stream, "{\"error\": {\"message\": \"out of memory\"}}")
    }
    fn die_mid_body(_: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"choices\"")?;
        Ok(false)
    }
    let cases = [
        ("broken JSON", serve(send_text)),
        ("broken JSON", serve(send_no_choice)),
        ("error in stream", serve(send_error)),
        ("closed mid-stream", serve(die_mid_body)),
        ("stall", serve(stay_silent)),
        ("status 429", serve(refuse)),
    ];
    for (kind, url) in cases {
        let (outcome, is_passed) = run_of(plan_of(workload("stream = false", load_for(kind), ""), &[url]));
        assert_eq!(
            outcome.phases[0].failures.get(kind),
            Some(&6),
            "{kind}: {:?}",
            outcome.phases[0].failures
        );
        assert!(!is_passed);
    }
}
