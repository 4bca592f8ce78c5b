//! `hardware`: what this machine does with the settings that were found best, beside the defaults, and what it costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::About;
use super::chart::Panel;
use super::distillation::{CLASSIFIER, classifier_config};
use super::lab::{Lab, Served};
use super::load::{Ask, closed_loop, quantile, total_ms, wall_s};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::speed::Figures;
use super::texts;
use crate::gpu::Gpu;
use crate::prices::Prices;
use crate::reply::Reply;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "hardware",
    title: "This machine: throughput, utilisation, cost",
    question: "How much does this machine serve by number of clients, how busy is it meanwhile, and what does a million \
               tokens or classifications cost on it?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct HardwareArgs {
    /// Clients at once; 1,8,16 with --quick.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    clients: Vec<usize>,
    /// A key of the settings that other experiments found best; may be given again. Without any, only the defaults
    /// are measured.
    #[arg(long, value_name = "KEY=VALUE")]
    best: Vec<String>,
    /// A price table: TOML with [[machine]], name, usd_per_hour.
    #[arg(long, value_name = "FILE", requires = "machine")]
    prices: Option<PathBuf>,
    /// The name of this machine in the price table.
    #[arg(long, value_name = "NAME", requires = "prices")]
    machine: Option<String>,
}

const COLUMNS: &[Column] = &[
    more("tokens_per_s", "tok/s", "tokens of answers per second, closed loop, short prompts"),
    more("requests_per_s", "requests/s", "answers per second of the same run"),
    more(
        "texts_per_s",
        "texts/s",
        "texts per second that are classified by how likely the model is to answer with each label",
    ),
    less(
        "answer_p50_ms",
        "answer p50 ms",
        "milliseconds from sending a request to the end of its answer, median",
    ),
    less("answer_p95_ms", "answer p95 ms", "the same, 95th percentile; of few requests, nearly the longest"),
    less("text_p50_ms", "text p50 ms", "milliseconds from sending a text to its label, median"),
    less("text_p95_ms", "text p95 ms", "the same, 95th percentile; of few requests, nearly the longest"),
    told("cpu_percent", "CPU %", "processor time of the node while it answers, in per cent of all cores"),
    told("gpu_percent", "GPU %", "utilisation of the first GPU, as NVML says, mean over the run"),
    told("power_w", "power W", "power draw of the first GPU, as NVML says, mean over the run"),
    less(
        "usd_per_million_tokens",
        "USD per million tokens",
        "price of the time that a million answer tokens take at this rate",
    ),
    less(
        "usd_per_million_texts",
        "USD per million texts",
        "price of the time that a million classified texts take",
    ),
];

/// Pause between two looks at the GPU.
const GPU_PAUSE: Duration = Duration::from_millis(500);

pub(super) fn hardware(lab: &Lab, args: &HardwareArgs) -> anyhow::Result<Findings> {
    let clients = match (&args.clients[..], lab.wish.is_quick) {
        ([], true) => vec![1, 8, 16],
        ([], false) => vec![1, 2, 4, 8, 16, 32],
        (given, _) => given.to_vec(),
    };
    anyhow::ensure!(!clients.contains(&0), "--clients: every level must have a client");
    let usd_per_hour = args.prices.as_ref().zip(args.machine.as_ref());
    let usd_per_hour = usd_per_hour.map(|(file, name)| Prices::read(file)?.usd_per_hour(name));
    let usd_per_hour = usd_per_hour.transpose().context("--prices")?;
    let mut settings = vec![("defaults".to_owned(), Vec::new())];
    if !args.best.is_empty() {
        settings.push((format!("best: {}", args.best.join(", ")), args.best.clone()));
    }
    lab.expect_steps(settings.len() * lab.wish.rounds);
    let rows = texts::rows(&std::fs::read_to_string(lab.rows_file()?)?)?;
    let mut sheet = Sheet::new(Some(("clients", "clients at once")), COLUMNS);
    lab.rounds(&mut sheet, &settings, |sheet, (name, best), round| {
        let mut node = best.iter().fold(lab.settings(&lab.wish.model), |node, pair| node.also("--set", pair));
        node.config = classifier_config(lab, &rows)?;
        let served = lab.start(&node)?;
        lab.ask(&served, &[Ask::chat(texts::task(lab.next_text()), 4)])?;
        for &clients in &clients {
            let mut figures = answer(lab, &served, clients)?;
            figures.extend(classify(lab, &served, clients, &rows)?);
            let rate = |id: &str, figures: &Figures| {
                figures.iter().find(|(other, _)| *other == id).and_then(|(_, v)| *v)
            };
            let cost = |rate: Option<f64>| Some(usd_per_hour? / 3600.0 * 1e6 / rate?);
            let costs = [
                ("usd_per_million_tokens", cost(rate("tokens_per_s", &figures))),
                ("usd_per_million_texts", cost(rate("texts_per_s", &figures))),
            ];
            figures.extend(costs);
            sheet.add(name, clients as f64, round, figures);
        }
        Ok(())
    })?;
    let lines = [
        "tokens_per_s",
        "texts_per_s",
        "answer_p95_ms",
        "text_p95_ms",
        "cpu_percent",
        "gpu_percent",
        "usd_per_million_tokens",
    ];
    let mut findings = Findings::new(sheet, lines.map(Panel::Lines).into());
    findings.method = vec![
        "A node for each setting in turn, closed loop: each client sends its next request when its last one ended. Answers \
         and classifications are measured one after the other."
            .to_owned(),
    ];
    if usd_per_hour.is_none() {
        findings
            .not_measured
            .push("Costs: no price table was given (--prices FILE --machine NAME).".to_owned());
    }
    match Gpu::read() {
        Some(gpu) => findings.told.push(format!("The first GPU: {}.", gpu.name)),
        None => {
            findings.not_measured.push("GPU utilisation and power: there is no NVIDIA GPU here.".to_owned())
        }
    }
    findings.not_measured.push("Power of the processor and of the machine as a whole.".to_owned());
    Ok(findings)
}

/// Writing: so many clients, each with a few answers.
fn answer(lab: &Lab, served: &Served, clients: usize) -> anyhow::Result<Figures> {
    let (tokens, per_client) = if lab.wish.is_quick { (24, 1) } else { (96, 4) };
    let asks: Vec<Ask> =
        (0..clients * per_client).map(|_| Ask::chat(texts::task(lab.next_text()), tokens)).collect();
    let cpu_before = served.node.cpu_time();
    let run = watched_loop(lab, served, &asks, clients)?;
    let cpu = served.node.cpu_time().zip(cpu_before).map(|(after, before)| (after - before).as_secs_f64());
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let num_tokens: u64 = run.replies.iter().map(Reply::num_tokens).sum();
    Ok(vec![
        ("tokens_per_s", Some(num_tokens as f64 / run.seconds)),
        ("requests_per_s", Some(run.requests_per_s())),
        ("answer_p50_ms", run.total_ms(0.5)),
        ("answer_p95_ms", run.total_ms(0.95)),
        ("cpu_percent", cpu.map(|cpu| cpu / run.seconds / cores * 100.0)),
        ("gpu_percent", mean(run.gpu.iter().map(|gpu| gpu.utilisation_percent))),
        ("power_w", mean(run.gpu.iter().filter_map(|gpu| gpu.power_w))),
    ])
}

fn classify(
    lab: &Lab,
    served: &Served,
    clients: usize,
    rows: &[(String, String)],
) -> anyhow::Result<Figures> {
    let per_client = if lab.wish.is_quick { 1 } else { 8 };
    let first = lab.next_text() as usize;
    let rows = rows.iter().cycle().skip(first % rows.len()).take(clients * per_client);
    let asks: Vec<Ask> = rows.map(|(text, _)| Ask::label(text.clone()).of(CLASSIFIER)).collect();
    let run = watched_loop(lab, served, &asks, clients)?;
    Ok(vec![
        ("texts_per_s", Some(run.requests_per_s())),
        ("text_p50_ms", run.total_ms(0.5)),
        ("text_p95_ms", run.total_ms(0.95)),
    ])
}

/// What a closed loop gave.
struct Run {
    replies: Vec<Reply>,
    seconds: f64,
    gpu: Vec<Gpu>,
}

impl Run {
    fn requests_per_s(&self) -> f64 {
        self.replies.len() as f64 / self.seconds
    }

    /// Milliseconds that so large a part of the requests does not exceed, from sending to the end.
    fn total_ms(&self, part: f64) -> Option<f64> {
        quantile(&self.replies.iter().map(total_ms).collect::<Vec<_>>(), part)
    }
}

/// A closed loop, with looks at the GPU meanwhile, where there is one.
fn watched_loop(lab: &Lab, served: &Served, asks: &[Ask], clients: usize) -> anyhow::Result<Run> {
    let gpu = std::cell::RefCell::new(Vec::new());
    // Ends when the requests have; the tool is a process of its own, and is waited for on another thread.
    let look = async {
        loop {
            tokio::time::sleep(GPU_PAUSE).await;
            if let Ok(seen) = tokio::task::spawn_blocking(Gpu::read).await {
                gpu.borrow_mut().extend(seen);
            }
        }
    };
    let replies = lab.wait(async {
        tokio::select! {
            done = closed_loop(lab.client(), &served.server, asks, clients) => done,
            () = look => unreachable!("looking at the GPU never ends by itself"),
        }
    })?;
    let seconds = wall_s(&replies).context("nothing was asked")?;
    Ok(Run { replies, seconds, gpu: gpu.into_inner() })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::experiment::load::tests::reply;

    #[test]
    fn a_run_is_counted_and_its_latencies_are_those_that_occurred() {
        let begin = Instant::now();
        let replies = vec![reply(begin, &[100, 500], 3), reply(begin, &[100, 2000], 3)];
        let run = Run { seconds: wall_s(&replies).unwrap(), replies, gpu: Vec::new() };
        assert!((run.requests_per_s() - 1.0).abs() < 1e-9);
        assert_eq!((run.total_ms(0.5), run.total_ms(0.95)), (Some(500.0), Some(2000.0)));
    }

    #[test]
    fn a_mean_of_nothing_is_none() {
        assert_eq!(mean([].into_iter()), None);
        assert_eq!(mean([1.0, 3.0].into_iter()), Some(2.0));
    }
}
