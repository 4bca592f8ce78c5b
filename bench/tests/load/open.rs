//! Open loops: arrivals at a rate, from a trace, and in a ramp, and the objective that they are judged by.

use std::net::TcpStream;
use std::time::Duration;

use quern_bench::run::RunPlan;
use quern_bench::workload::Workload;

use crate::faults::{die_now_and_then, refuse};
use crate::server::{
    Request, nobody, outcome, plan_of, run_of, serve, serve_and_record, stream_well, workload,
};

/// A workload whose prompts are cut from a text, with a trace beside it.
fn traced(top: &str, prompts: &str, trace: &str) -> Result<Workload, String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.keep();
    std::fs::write(folder.join("words.txt"), "one two three four five six").unwrap();
    std::fs::write(folder.join("trace.csv"), trace).unwrap();
    let text = format!(
        "name = \"probe\"\nmax_tokens = 8\n{top}\n[prompts]\n{prompts}\n[load]\nmode = \"trace\"\ntrace = \"trace.csv\"\n"
    );
    Workload::parse("probe.toml", &text, Some(folder)).map_err(|error| error.to_string())
}

#[test]
fn open_loop_latency_counts_the_time_spent_waiting_here() {
    fn slow(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
        std::thread::sleep(Duration::from_millis(50));
        stream_well(request, stream)
    }
    // Ten requests meant to arrive within 10 ms, but one at a time under way: the last waits for the nine others.
    let load = "mode = \"open\"\narrivals = \"constant\"\nrates = [1000.0]\nrequests = 10\nmax_in_flight = 1";
    let (outcome, _) = outcome(load, "", &[serve(slow)]);
    let phase = &outcome.phases[0];
    assert_eq!(phase.num_ok, 10);
    assert!(phase.e2e.unwrap().max_ms >= 10.0 * 50.0 - 10.0, "{:?}", phase.e2e);
    assert!(phase.send_lateness.unwrap().max_ms >= 9.0 * 50.0 - 10.0, "{:?}", phase.send_lateness);
    assert!(phase.client_trouble().unwrap().contains("max_in_flight"), "the client itself was not late");
    // What a client that only looks at its own sending would have told.
    assert!(phase.e2e_from_send.unwrap().p50_ms < phase.e2e.unwrap().p50_ms);
}

#[test]
fn a_trace_is_replayed_with_its_lengths_and_tenants() {
    let tenants = "[[tenants]]\nname = \"a\"\napi_key = \"key-a\"\nheaders = { X-Tenant = \"first\" }\n\
                   [[tenants]]\nname = \"b\"\napi_key = \"key-b\"";
    let prompts = "text = \"words.txt\"\nslice_words = 1\ntokens_per_word = 2.0";
    let trace = "offset_ms,prompt_tokens,output_tokens,tenant\n0,4,3,a\n60,8,5,b\n120,12,,a\n";
    let (url, seen) = serve_and_record();
    let (outcome, is_passed) = run_of(plan_of(traced(tenants, prompts, trace).unwrap(), &[url]));
    assert!(is_passed, "{:?}", outcome.examples);
    let phase = &outcome.phases[0];
    assert_eq!(phase.level, "trace × 1");
    let figures = |name: &str| (phase.tenants[name].num_ok, phase.tenants[name].num_failed);
    assert_eq!((figures("a"), figures("b")), ((2, 0), (1, 0)));
    assert!(phase.wall_s >= 0.12, "the last one arrives after 120 ms");
    let mut asked: Vec<(u64, usize, bool, bool)> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|request| {
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
            let num_words = body["messages"][0]["content"].as_str().unwrap().split(' ').count();
            let is_a = request.head.contains("authorization: bearer key-a");
            (body["max_tokens"].as_u64().unwrap(), num_words, is_a, request.head.contains("x-tenant: first"))
        })
        .collect();
    asked.sort_unstable();
    assert_eq!(asked, [(3, 2, true, true), (5, 4, false, false), (8, 6, true, true)]);
}

#[test]
fn a_trace_that_cannot_be_replayed_is_told_before_anything_is_sent() {
    let reason_of = |prompts: &str, trace: &str| {
        let workload = traced("", prompts, trace).unwrap();
        RunPlan::new(workload, Vec::new(), 1, 1).unwrap_err().to_string()
    };
    let lengths = reason_of("inline = [\"a\"]", "offset_ms,prompt_tokens\n0,4\n");
    assert!(lengths.contains("column prompt_tokens"), "{lengths}");
    let order = reason_of("inline = [\"a\"]", "offset_ms\n5\n4\n");
    assert!(order.contains("trace.csv") && order.contains("line 3, column \"offset_ms\""), "{order}");
    let tenant = reason_of("inline = [\"a\"]", "offset_ms,tenant\n5,nobody\n");
    assert!(tenant.contains("line 2, column \"tenant\""), "{tenant}");
}

#[test]
fn tenants_and_lengths_are_spread_as_the_workload_says() {
    let top = "[[tenants]]\nname = \"a\"\nweight = 3.0\napi_key = \"key-a\"\n[[tenants]]\nname = \"b\"";
    let (url, seen) = serve_and_record();
    let load = "mode = \"closed\"\nclients = [4]\nrequests = 200";
    let mut workload = workload(top, load, "");
    workload.max_tokens = quern_bench::lengths::Lengths::uniform(3, 5).unwrap();
    let (outcome, _) = run_of(plan_of(workload, &[url]));
    let of_a = outcome.phases[0].tenants["a"].num_ok;
    let seen = seen.lock().unwrap();
    let with_key = seen.iter().filter(|request| request.head.contains("bearer key-a")).count();
    assert_eq!((of_a, of_a + outcome.phases[0].tenants["b"].num_ok), (with_key as u64, 200));
    assert!((120..180).contains(&of_a), "{of_a} of 200 for three of four");
    for length in 3..=5 {
        assert!(seen.iter().any(|request| request.body.contains(&format!("\"max_tokens\":{length}"))));
    }
}

const RAMP: &str = "mode = \"ramp\"\narrivals = \"poisson\"\nstart_rate = 250.0\nfactor = 2.0\nmax_rate = 2000.0\nrequests = 10";

#[test]
fn a_ramp_ends_where_the_objective_no_longer_holds() {
    // Well for two rates, and then no more.
    let url = serve(
        |request, stream| {
            if request.number < 20 { stream_well(request, stream) } else { refuse(request, stream) }
        },
    );
    let workload = workload("[objective]\nttft_ms = 60000", RAMP, "");
    let (outcome, is_passed) = run_of(plan_of(workload, &[url, serve(stream_well)]));
    let [first, second] = outcome.ramp_ends.as_slice() else { panic!("{:?}", outcome.ramp_ends) };
    assert_eq!((first.held_rate, first.broken_rate), (Some(500.0), Some(1000.0)));
    assert!(first.reason.contains("only 0.0 % of the requests kept the objective"), "{}", first.reason);
    assert_eq!((second.held_rate, second.broken_rate), (Some(2000.0), None));
    // The first is not driven on after its end, the second is.
    let of = |server: &str| outcome.phases.iter().filter(|phase| phase.server == server).count();
    assert_eq!((of("s0"), of("s1")), (3, 4));
    assert!(is_passed, "the rate that held is the result");
}

#[test]
fn a_ramp_that_held_nowhere_fails_the_run() {
    let workload = workload("[objective]\nttft_ms = 0.000001", RAMP, "");
    let (outcome, is_passed) = run_of(plan_of(workload, &[serve(stream_well)]));
    assert_eq!((outcome.phases.len(), outcome.ramp_ends[0].held_rate), (1, None));
    assert!(!is_passed);
}

#[test]
fn failed_and_wrong_answers_are_no_goodput() {
    let load = "mode = \"open\"\narrivals = \"constant\"\nrates = [500.0]\nrequests = 20";
    let objective = "[objective]\ne2e_ms = 60000\nshare = 0.6";
    let share_of = |check: &str, url: String| {
        let (outcome, _) = run_of(plan_of(workload(objective, load, check), &[url]));
        let phase = outcome.phases[0].clone();
        let kept = phase.objective.unwrap();
        assert!((kept.goodput_per_s - kept.share_kept * 20.0 / phase.wall_s).abs() < 1e-6);
        (kept.share_kept, kept.is_held())
    };
    assert_eq!(share_of("", serve(stream_well)), (1.0, true));
    assert_eq!(share_of("", serve(die_now_and_then)), (0.5, false));
    assert_eq!(share_of("one_of = [\"no\"]", serve(stream_well)), (0.0, false));
}

#[test]
fn an_open_loop_ends_where_nobody_answers_any_more() {
    let load = "mode = \"open\"\narrivals = \"constant\"\nrates = [1000.0]\nrequests = 100000";
    let (outcome, is_passed) = outcome(load, "max_error_share = 1.0", &[nobody()]);
    let phase = &outcome.phases[0];
    assert_eq!((phase.num_failed, phase.failures.get("connect")), (100, Some(&100)));
    let gave_up = phase.gave_up.as_ref().unwrap();
    assert!(gave_up.contains("99900 more were not waited for"), "{gave_up}");
    assert!(!is_passed);
}
