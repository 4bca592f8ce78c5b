use clap::Parser;

use super::*;
use crate::record::Reader;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    args: SimulateArgs,
}

fn args(flags: &[&str]) -> SimulateArgs {
    Flags::parse_from([&["test"], flags].concat()).args
}

const BUSY: [&str; 8] = ["--fixed-us", "1000", "--row-us", "100", "--output-us", "50", "--seconds", "60"];

fn report(flags: &[&str]) -> Report {
    simulate(&args(&[&BUSY, flags].concat())).unwrap()
}

/// A trace of a file, and the summary of serving it.
fn summary_of(csv: &str, flags: &[&str]) -> Summary {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), csv).unwrap();
    report(&[&["--trace", file.path().to_str().unwrap()], flags].concat()).policies.remove(0)
}

#[test]
fn one_request_takes_what_its_steps_cost() {
    // A first step of 64 rows, for costs are not known yet; 36 more end the prompt.
    let one = summary_of("at_ms,prompt,max_new\n5,100,3\n", &[]);
    let prompt_us = (1000 + 64 * 100) + (1000 + 36 * 100 + 50);
    assert_eq!((one.finished, one.steps), (1, 4));
    assert_eq!(one.ttft_p50_ms, f64::from(prompt_us) / 1000.0);
    assert_eq!(one.tbt_p95_ms, 1.15);
}

#[test]
fn what_is_cached_is_not_computed() {
    let one = summary_of("at_ms,prompt,cached,max_new\n0,100,90,1\n", &[]);
    assert_eq!(one.ttft_p50_ms, (1000.0 + 10.0 * 100.0 + 50.0) / 1000.0);
}

#[test]
fn deadlines_are_met_missed_or_expire() {
    let trace = "at_ms,prompt,max_new,deadline_ms\n0,50,10,1000\n0,50,10,8\n0,50,10,7\n0,9,1,\n";
    let one = summary_of(trace, &["--max-running", "1"]);
    // The first holds the only place; the others give up before it is done.
    assert_eq!((one.finished, one.expired, one.with_deadline, one.deadlines_met), (2, 2, 3, 1));
}

#[test]
fn a_full_queue_refuses_and_what_never_fits_is_no_load() {
    let trace = "at_ms,prompt,max_new\n0,50,10\n0,50,10\n0,50,10\n1,9999,1\n";
    let one = summary_of(trace, &["--max-running", "1", "--max-queued", "2", "--kv-capacity", "1000"]);
    assert_eq!((one.finished, one.refused), (2, 2));
}

#[test]
fn everything_is_served_when_room_is_short() {
    let one = report(&["--load", "1.2", "--kv-capacity", "700", "--answer", "100", "--max-queued", "100000"]);
    let one = &one.policies[0];
    assert_eq!((one.finished, one.refused), (one.requests, 0));
    assert!(one.pauses > 0 && one.requests > 50, "{one:?}");
}

#[test]
fn adapters_take_turns_where_steps_cannot_mix_them() {
    let apart = report(&["--adapters", "3"]).policies.remove(0);
    let mixed = report(&["--adapters", "3", "--mixes-adapters"]).policies.remove(0);
    assert_eq!(apart.finished, apart.requests);
    assert!(mixed.ttft_p95_ms < apart.ttft_p95_ms);
}

#[test]
fn the_load_asked_for_is_about_what_keeps_the_node_busy() {
    let half = report(&["--load", "0.5"]).policies.remove(0);
    let over = report(&["--load", "1.5", "--deadline-ms", "2000"]).policies.remove(0);
    assert!((0.3..0.9).contains(&half.busy), "{half:?}");
    assert!(over.busy > 0.95 && over.attainment() < 0.95, "{over:?}");
}

#[test]
fn the_same_seed_gives_the_same_report_and_a_picture() {
    let flags = [
        "builtin",
        "builtin",
        "--tenants",
        "3",
        "--flood",
        "8",
        "--flooder",
        "t0",
        "--deadline-ms",
        "100..900",
    ];
    let report = report(&flags);
    assert_eq!(format!("{:?}", report.policies[0]), format!("{:?}", report.policies[1]));
    assert!(report.alone[0].alone_ms <= report.alone[0].beside_ms);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plot.svg");
    plot::draw(&path, &report).unwrap();
    let drawn = std::fs::read_to_string(path).unwrap();
    for text in ["time to first token", "deadlines met", "Jain", "beside the flood", "by flags"] {
        assert!(drawn.contains(text), "no `{text}`");
    }
}

#[test]
fn a_recording_tells_the_costs_and_replays_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steps.rec");
    let one = report(&["--record", path.to_str().unwrap()]).policies.remove(0);
    let file = std::fs::File::open(&path).unwrap();
    let steps: Vec<_> = Reader::new(std::io::BufReader::new(file)).unwrap().map(Result::unwrap).collect();
    assert_eq!(steps.len() as u64, one.steps + one.fallbacks.stalled);
    let replayed = crate::replay::replay(&crate::ReplayArgs {
        recording: path,
        policy: Some("builtin".to_owned()),
        show: 1,
        costs_out: None,
        json: false,
        open: OpenArgs::default(),
    });
    let replayed = replayed.unwrap();
    assert_eq!(
        (replayed.same, replayed.different, replayed.rest),
        (one.steps, 0, None),
        "{:?}",
        replayed.shown
    );
    let fit = replayed.fit.unwrap();
    assert!((fit.costs.row_us - 100.0).abs() < 1.0 && (fit.costs.fixed_us - 1000.0).abs() < 20.0, "{fit:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for flags in [
        &["--fixed-us=-1"][..],
        &["--flooder", "nobody"],
        &["builtin", "builtin", "--record", "file"],
        &["--costs", "no-such-file"],
        &["no-such-policy.wasm"],
    ] {
        assert!(simulate(&args(flags)).is_err(), "{flags:?}");
    }
}

/// The built-in policy, which lets the node repeat each plan four times.
struct Holding {
    inner: quern_scheduler::builtin::BuiltinPlanner,
    asked: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl quern_scheduler::plan::Planner for Holding {
    fn name(&self) -> &str {
        "holding"
    }

    fn plan(&mut self, snapshot: &quern_scheduler::plan::Snapshot) -> Option<quern_scheduler::plan::Plan> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let plan = self.inner.plan(snapshot)?;
        Some(quern_scheduler::plan::Plan { hold_steps: 4, ..plan })
    }
}

#[test]
fn plans_that_may_be_held_are_repeated_as_on_the_node() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "at_ms,prompt,max_new\n0,50,101\n").unwrap();
    let trace = Trace::read(file.path()).unwrap();
    let args = args(&["builtin", "--max-running", "4"]);
    let config = NodeConfig {
        token_budget: args.token_budget,
        max_running: args.max_running,
        max_queued: args.max_queued,
        kv_capacity: args.kv_capacity,
        target_step_us: 400_000,
        mixes_adapters: true,
        costs: DEFAULT_COSTS,
    };
    let engine = opened::engine(false).unwrap();
    let mut contender = Contender::new(&engine, contender::BUILTIN, &args.open).unwrap();
    let asked = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    contender.planner = Box::new(Holding { inner: Default::default(), asked: asked.clone() });
    let served = node::serve(config, &trace, &mut contender).unwrap();
    let summary = Summary::new("holding", &trace, &served);
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((summary.finished, summary.steps), (1, 101));
    // Once for the prompt, and again when it begins to decode; then for each five steps.
    assert_eq!(asked, 21, "each answer serves five steps");
}
