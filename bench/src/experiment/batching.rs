//! `batching`: static batches, batches with a wait window, and continuous batching under the same arrivals.
//!
//! The node batches continuously. The other two are made here, before the node, by a gate such as servers have that
//! form batches of requests: nobody passes while a batch is under way. Their node still drops a sequence from its
//! steps as soon as it has ended, which a server that pads its batches would not, so both are shown at their best.

use std::convert::Infallible;
use std::time::Duration;

use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::About;
use super::arrivals::poisson_times;
use super::chart::{Panel, Span};
use super::lab::{Lab, Served};
use super::load::{Ask, closed_loop, quantile, send, total_ms, ttft_ms, wall_s};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::texts;
use crate::reply::Reply;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "batching",
    title: "Batching: static, dynamic, continuous",
    question: "What does a short request wait for when it shares a server with long ones, and what does each way of \
               batching make of the same arrivals?",
};

/// One request in so many is a long one.
const ONE_LONG_IN: u64 = 4;

/// Its own flags.
#[derive(Debug, Args)]
pub struct BatchingArgs {
    /// Requests of a batch, and sequences that the node computes together.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Milliseconds that a dynamic batch waits for company.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    window_ms: u64,
    /// Arrivals as shares of what the node can do; 0.4,0.8 with --quick.
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    load: Vec<f64>,
    /// Requests of each run; with --quick what arrives in half a minute, from 8 to 20, else 100.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    requests: Option<u32>,
    /// Tokens of a short answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    short_tokens: u32,
    /// Tokens of a long answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    long_tokens: u32,
}

const COLUMNS: &[Column] = &[
    less(
        "short_p50_ms",
        "short: end to end p50 ms",
        "milliseconds from a short request's arrival to its end, median",
    ),
    less("short_p95_ms", "short: end to end p95 ms", "the same, 95th percentile"),
    less(
        "short_slowdown",
        "short: times its time alone",
        "the median of short requests' end to end time over the time of one on an idle node",
    ),
    less(
        "short_ttft_p50_ms",
        "short: TTFT p50 ms",
        "milliseconds from a short request's arrival to its first token",
    ),
    less("short_ttft_p95_ms", "short: TTFT p95 ms", "the same, 95th percentile"),
    less(
        "long_p50_ms",
        "long: end to end p50 ms",
        "milliseconds from a long request's arrival to its end, median",
    ),
    more(
        "requests_per_s",
        "requests/s",
        "requests that ended, over the time from the first arrival to the last end",
    ),
    more("tokens_per_s", "tok/s", "tokens of all answers over the same time"),
    told("offered_per_s", "offered requests/s", "arrivals per second"),
    told("num_requests", "requests", "requests of the run, of which one in four is long"),
];

/// Who may start when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whoever comes, at once.
    Continuous,
    /// A batch is full before it starts, and over before the next one starts.
    Static,
    /// The same, but a batch starts when its first request has waited for the window.
    Dynamic(Duration),
}

/// A request to come.
#[derive(Debug, Clone)]
struct Arrival {
    at: Duration,
    is_long: bool,
    ask: Ask,
}

/// What became of it, in the order of arrivals.
#[derive(Debug)]
struct Ended {
    reply: Reply,
    is_long: bool,
}

/// What the node does alone: the scale for arrivals and for slowdowns.
#[derive(Debug, Clone, Copy)]
struct Scale {
    requests_per_s: f64,
    short_alone_ms: f64,
}

pub(super) fn batching(lab: &Lab, args: &BatchingArgs) -> anyhow::Result<Findings> {
    let loads = match (&args.load[..], lab.wish.is_quick) {
        ([], true) => vec![0.4, 0.8],
        ([], false) => vec![0.2, 0.4, 0.6, 0.8],
        (given, _) => given.to_vec(),
    };
    anyhow::ensure!(
        loads.iter().all(|load| *load > 0.0 && load.is_finite()),
        "--load: shares must be above 0"
    );
    lab.expect_steps(loads.len() * 3 * lab.wish.rounds);
    let settings = lab.settings(&lab.wish.model).with("--max-running", args.batch_size);
    lab.say("what the node can do");
    let served = lab.start(&settings)?;
    let scale = measure_scale(lab, &served, args)?;

    let level = Some(("load_share", "arrivals, share of what the node can do"));
    let mut sheet = Sheet::new(level, COLUMNS);
    let mut spans = Vec::new();
    let ways = ways(args);
    for &load in &loads {
        let rate = load * scale.requests_per_s;
        let num_requests = num_requests(args, lab.wish.is_quick, rate);
        lab.rounds(&mut sheet, &ways, |sheet, (name, way), round| {
            let arrivals = arrivals(lab, args, num_requests, rate, round as u64);
            let ended = lab.wait(drive(lab, &served, &arrivals, *way, args.batch_size as usize))?;
            sheet.add(name, load, round, figures(&ended, scale, rate));
            if round == 0 && load.total_cmp(&loads[loads.len() - 1]).is_eq() {
                spans.push(Panel::Spans(format!("{name}, load {load}"), spans_of(&ended)));
            }
            Ok(())
        })?;
    }
    let mut panels =
        vec![Panel::Lines("short_p50_ms"), Panel::Lines("short_slowdown"), Panel::Lines("requests_per_s")];
    panels.extend(spans);
    let mut findings = Findings::new(sheet, panels);
    describe(&mut findings, args, scale);
    Ok(findings)
}

/// Requests of a run: on a slow machine, few that are looked at soon are worth more than many.
fn num_requests(args: &BatchingArgs, is_quick: bool, rate: f64) -> usize {
    const QUICK_RUN_S: f64 = 30.0;
    match (args.requests, is_quick) {
        (Some(count), _) => count as usize,
        (None, true) => (rate * QUICK_RUN_S).clamp(8.0, 20.0) as usize,
        (None, false) => 100,
    }
}

fn ways(args: &BatchingArgs) -> [(String, Way); 3] {
    let window = Duration::from_millis(args.window_ms);
    [
        ("continuous".to_owned(), Way::Continuous),
        (format!("static, {}", args.batch_size), Way::Static),
        (format!("dynamic, {} or {} ms", args.batch_size, args.window_ms), Way::Dynamic(window)),
    ]
}

fn describe(findings: &mut Findings, args: &BatchingArgs, scale: Scale) {
    let BatchingArgs { batch_size, short_tokens, long_tokens, .. } = args;
    findings.method = vec![
        format!(
            "Requests arrive at random (Poisson), the same ones at the same times for each way; one in {ONE_LONG_IN} \
             wants {long_tokens} tokens, the others {short_tokens}. Latency counts from the arrival. One node \
             ({batch_size} sequences at once) serves all ways, which take turns."
        ),
        "Continuous batching is the node's own. The batches of the other two are formed before it: nobody passes while \
         a batch is under way, which is what head-of-line blocking is. The node drops sequences that have ended, so \
         padding costs these two nothing, as it would in a server that computes whole batches."
            .to_owned(),
        format!(
            "What the node can do was measured first, with {batch_size} clients in closed loop: {:.2} requests/s. A \
             short request alone took {:.0} ms.",
            scale.requests_per_s, scale.short_alone_ms
        ),
    ];
    findings.not_measured = vec![
        "Servers that pad batches to their longest sequence: static and dynamic batches would be slower there.".to_owned(),
        "Prompts of different lengths: all are about as long.".to_owned(),
    ];
}

/// As many clients as places, and one short request alone.
fn measure_scale(lab: &Lab, served: &Served, args: &BatchingArgs) -> anyhow::Result<Scale> {
    let short = || Ask::chat(texts::task(lab.next_text()), args.short_tokens);
    lab.ask(served, &[short()])?;
    let alone = [lab.ask(served, &[short()])?, lab.ask(served, &[short()])?];
    let alone: Vec<f64> = alone.iter().flatten().map(total_ms).collect();
    let num_clients = args.batch_size as usize;
    let asks: Vec<Ask> = (0..num_clients * 3).map(|idx| ask_of(lab, args, idx as u64)).collect();
    let replies = lab.wait(closed_loop(lab.client(), &served.server, &asks, num_clients))?;
    let requests_per_s = replies.len() as f64 / wall_s(&replies).unwrap_or(f64::NAN);
    Ok(Scale { requests_per_s, short_alone_ms: quantile(&alone, 0.0).unwrap_or(f64::NAN) })
}

fn is_long(idx: u64) -> bool {
    idx % ONE_LONG_IN == ONE_LONG_IN / 2
}

fn ask_of(lab: &Lab, args: &BatchingArgs, idx: u64) -> Ask {
    let max_tokens = if is_long(idx) { args.long_tokens } else { args.short_tokens };
    Ask::chat(texts::task(lab.next_text()), max_tokens)
}

/// The arrivals of a round: the same times and kinds for each way, with prompts that no cache knows.
fn arrivals(lab: &Lab, args: &BatchingArgs, count: usize, rate: f64, round: u64) -> Vec<Arrival> {
    let arrival = |(idx, at): (usize, Duration)| {
        let idx = idx as u64;
        Arrival { at, is_long: is_long(idx), ask: ask_of(lab, args, idx) }
    };
    poisson_times(count, rate, round).into_iter().enumerate().map(arrival).collect()
}

/// Sends each request when it has arrived and may pass.
async fn drive(
    lab: &Lab,
    served: &Served,
    arrivals: &[Arrival],
    way: Way,
    batch_size: usize,
) -> anyhow::Result<Vec<Ended>> {
    let (queue, waiting) = mpsc::channel(arrivals.len().max(1));
    let begun = Instant::now();
    let mut requests: FuturesUnordered<_> = arrivals
        .iter()
        .enumerate()
        .map(|(idx, arrival)| {
            let queue = queue.clone();
            async move {
                let intended = begun + arrival.at;
                sleep_until(intended).await;
                let pass = match way {
                    Way::Continuous => None,
                    Way::Static | Way::Dynamic(_) => Some(pass(queue, intended).await?),
                };
                let reply = send(lab.client(), &served.server, &arrival.ask, intended).await?;
                drop(pass);
                anyhow::Ok((idx, Ended { reply, is_long: arrival.is_long }))
            }
        })
        .collect();
    // The gate closes when nobody is left who could come.
    drop(queue);
    // Owns the requests: when one fails, the others go, and with them whom the gate would wait for.
    let all = async move {
        let mut ended = Vec::new();
        while let Some(one) = requests.next().await {
            ended.push(one?);
        }
        ended.sort_by_key(|(idx, _)| *idx);
        Ok(ended.into_iter().map(|(_, one)| one).collect())
    };
    let window = if let Way::Dynamic(window) = way { Some(window) } else { None };
    let gate = form_batches(waiting, batch_size, window);
    let (ended, ()) = tokio::join!(all, gate);
    ended
}

/// Held while a request of a batch is under way.
type Pass = mpsc::Sender<Infallible>;

/// Somebody who waits to pass: since when, and where the pass goes.
type Waiting = (Instant, oneshot::Sender<Pass>);

async fn pass(queue: mpsc::Sender<Waiting>, since: Instant) -> anyhow::Result<Pass> {
    let (give, got) = oneshot::channel();
    queue.send((since, give)).await?;
    // Whoever waits must not keep the gate open for others to come.
    drop(queue);
    Ok(got.await?)
}

/// Lets requests pass in batches of `size`, each when the one before is over. With a window, a batch also starts when
/// its first request has waited for so long; else only when it is full, or when nobody is left who could come.
async fn form_batches(mut queue: mpsc::Receiver<Waiting>, size: usize, window: Option<Duration>) {
    while let Some(first) = queue.recv().await {
        let until = window.map(|window| first.0 + window);
        let mut batch = vec![first];
        while batch.len() < size {
            let next = match until {
                Some(until) => timeout_at(until, queue.recv()).await.unwrap_or_default(),
                None => queue.recv().await,
            };
            let Some(next) = next else { break };
            batch.push(next);
        }
        // A server does not know that nobody is left who could come: it waits for its window all the same.
        if let (Some(until), true) = (until, batch.len() < size) {
            sleep_until(until).await;
        }
        let (held, mut over) = mpsc::channel(1);
        for (_, give) in batch {
            // Nobody takes it if the request was given up; the pass is gone then, as it should be.
            let _ = give.send(held.clone());
        }
        drop(held);
        while over.recv().await.is_some() {}
    }
}

fn figures(ended: &[Ended], scale: Scale, offered: f64) -> Vec<(&'static str, Option<f64>)> {
    let of = |is_long: bool, value: fn(&Reply) -> Option<f64>| -> Vec<f64> {
        ended.iter().filter(|one| one.is_long == is_long).filter_map(|one| value(&one.reply)).collect()
    };
    let total = |reply: &Reply| Some(total_ms(reply));
    let (short, short_ttft, long) = (of(false, total), of(false, ttft_ms), of(true, total));
    let wall_s = wall_s(ended.iter().map(|one| &one.reply)).unwrap_or(f64::NAN);
    let tokens: u64 = ended.iter().map(|one| one.reply.num_tokens()).sum();
    vec![
        ("short_p50_ms", quantile(&short, 0.5)),
        ("short_p95_ms", quantile(&short, 0.95)),
        ("short_slowdown", quantile(&short, 0.5).map(|ms| ms / scale.short_alone_ms)),
        ("short_ttft_p50_ms", quantile(&short_ttft, 0.5)),
        ("short_ttft_p95_ms", quantile(&short_ttft, 0.95)),
        ("long_p50_ms", quantile(&long, 0.5)),
        ("requests_per_s", Some(ended.len() as f64 / wall_s)),
        ("tokens_per_s", Some(tokens as f64 / wall_s)),
        ("offered_per_s", Some(offered)),
        ("num_requests", Some(ended.len() as f64)),
    ]
}

fn spans_of(ended: &[Ended]) -> Vec<Span> {
    let Some(begin) = ended.iter().map(|one| one.reply.intended).min() else { return Vec::new() };
    let seconds = |at: Instant| at.duration_since(begin).as_secs_f64();
    let span = |one: &Ended| Span {
        came: seconds(one.reply.intended),
        began: seconds(one.reply.deltas.first().copied().unwrap_or(one.reply.ended)),
        ended: seconds(one.reply.ended),
        is_long: one.is_long,
    };
    ended.iter().map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::load::tests::reply;

    /// When each of these requests passed, in milliseconds. A long one lasts a second, a short one a tenth.
    fn passed(arrivals_ms: &[(u64, bool)], size: usize, window: Option<u64>) -> Vec<u128> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
            let (queue, waiting) = mpsc::channel(16);
            let begun = Instant::now();
            let requests = arrivals_ms.iter().map(|&(at, is_long)| {
                let queue = queue.clone();
                async move {
                    let since = begun + Duration::from_millis(at);
                    sleep_until(since).await;
                    let held = pass(queue, since).await.unwrap();
                    let passed = begun.elapsed().as_millis();
                    tokio::time::sleep(Duration::from_millis(if is_long { 1000 } else { 100 })).await;
                    drop(held);
                    passed
                }
            });
            let requests = futures_util::future::join_all(requests.collect::<Vec<_>>());
            drop(queue);
            let window = window.map(Duration::from_millis);
            tokio::join!(requests, form_batches(waiting, size, window)).0
        })
    }

    const LONG_AND_SHORT: [(u64, bool); 5] =
        [(0, true), (100, false), (200, false), (300, false), (2500, false)];

    #[test]
    fn a_static_batch_is_full_before_it_starts_and_over_before_the_next() {
        // The first two pass at 100, when they are two; the next two wait for the long one, and the last for nobody,
        // since nobody is left to come.
        assert_eq!(passed(&LONG_AND_SHORT, 2, None), [100, 100, 1100, 1100, 2500]);
    }

    #[test]
    fn a_dynamic_batch_starts_when_its_window_is_over() {
        assert_eq!(passed(&LONG_AND_SHORT, 4, Some(250)), [250, 250, 250, 1250, 2750]);
        assert_eq!(passed(&LONG_AND_SHORT, 1, Some(250)), [0, 1000, 1100, 1200, 2500]);
    }

    #[test]
    fn one_request_in_four_is_long() {
        assert_eq!((0..8).filter(|idx| is_long(*idx)).count(), 2);
    }

    #[test]
    fn short_and_long_requests_are_told_apart() {
        let begin = Instant::now();
        let one = |deltas: &[u64], is_long| Ended { reply: reply(begin, deltas, 9), is_long };
        let ended = [one(&[100, 200], false), one(&[200, 400], false), one(&[500, 4000], true)];
        let scale = Scale { requests_per_s: 1.0, short_alone_ms: 50.0 };
        let figures: std::collections::BTreeMap<_, _> = figures(&ended, scale, 2.0).into_iter().collect();
        let near = |id: &str, value: f64| (figures[id].unwrap() - value).abs() < 1e-6;
        assert!(near("short_p50_ms", 200.0) && near("short_p95_ms", 400.0) && near("short_slowdown", 4.0));
        assert!(near("long_p50_ms", 4000.0) && near("requests_per_s", 0.75) && near("tokens_per_s", 1.5));
        let mut sheet = Sheet::new(None, COLUMNS);
        sheet.add("x", 0.0, 0, figures);
        assert_eq!(spans_of(&ended)[2], Span { came: 0.0, began: 0.5, ended: 4.0, is_long: true });
    }
}
