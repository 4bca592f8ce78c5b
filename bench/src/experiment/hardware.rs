//! `hardware`: what this machine does with the settings that were found best, beside the defaults, and what it costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use tokio::time::Instant;

use super::About;
use super::chart::Panel;
use super::distillation::{CLASSIFIER, classifier_config};
use super::lab::{Lab, Served};
use super::load::{Ask, send};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::speed::Figures;
use super::texts;
use crate::gpu::Gpu;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prices {
    machine: Vec<MachinePrice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachinePrice {
    name: String,
    usd_per_hour: f64,
}

pub(super) fn hardware(lab: &Lab, args: &HardwareArgs) -> anyhow::Result<Findings> {
    let clients = match (&args.clients[..], lab.wish.is_quick) {
        ([], true) => vec![1, 8, 16],
        ([], false) => vec![1, 2, 4, 8, 16, 32],
        (given, _) => given.to_vec(),
    };
    anyhow::ensure!(!clients.contains(&0), "--clients: every level must have a client");
    let usd_per_hour = args.prices.as_ref().zip(args.machine.as_ref());
    let usd_per_hour = usd_per_hour.map(|(file, name)| price_of(&std::fs::read_to_string(file)?, name));
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
    let lines = ["tokens_per_s", "texts_per_s", "cpu_percent", "gpu_percent", "usd_per_million_tokens"];
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

fn price_of(table: &str, name: &str) -> anyhow::Result<f64> {
    let prices: Prices = toml::from_str(table)?;
    let found = prices.machine.iter().find(|machine| machine.name == name);
    let names = || prices.machine.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = found.with_context(|| format!("no machine {name:?}, only {}", names()))?;
    anyhow::ensure!(found.usd_per_hour > 0.0, "{name}: usd_per_hour must be above 0");
    Ok(found.usd_per_hour)
}

/// Writing: so many clients, each with a few answers.
fn answer(lab: &Lab, served: &Served, clients: usize) -> anyhow::Result<Figures> {
    let (tokens, per_client) = if lab.wish.is_quick { (24, 1) } else { (96, 4) };
    let asks: Vec<Ask> =
        (0..clients * per_client).map(|_| Ask::chat(texts::task(lab.next_text()), tokens)).collect();
    let cpu_before = served.node.cpu_time();
    let run = closed_loop(lab, served, &asks, clients)?;
    let cpu = served.node.cpu_time().zip(cpu_before).map(|(after, before)| (after - before).as_secs_f64());
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let seconds = run.took.as_secs_f64();
    Ok(vec![
        ("tokens_per_s", Some(run.num_tokens as f64 / seconds)),
        ("requests_per_s", Some(asks.len() as f64 / seconds)),
        ("cpu_percent", cpu.map(|cpu| cpu / seconds / cores * 100.0)),
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
    let run = closed_loop(lab, served, &asks, clients)?;
    Ok(vec![("texts_per_s", Some(asks.len() as f64 / run.took.as_secs_f64()))])
}

/// What a closed loop gave.
struct Run {
    took: Duration,
    num_tokens: u64,
    gpu: Vec<Gpu>,
}

/// Each client takes the next request when its last one ended. The GPU is looked at meanwhile, where there is one.
fn closed_loop(lab: &Lab, served: &Served, asks: &[Ask], clients: usize) -> anyhow::Result<Run> {
    let next = std::cell::RefCell::new(asks.iter());
    let begun = Instant::now();
    let client = || async {
        let mut num_tokens = 0;
        loop {
            let Some(ask) = next.borrow_mut().next() else { return anyhow::Ok(num_tokens) };
            num_tokens += send(lab.client(), &served.server, ask, Instant::now()).await?.num_tokens();
        }
    };
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
    let tokens: Vec<u64> = lab.wait(async {
        tokio::select! {
            done = futures_util::future::try_join_all((0..clients).map(|_| client())) => done,
            () = look => unreachable!("looking at the GPU never ends by itself"),
        }
    })?;
    Ok(Run { took: begun.elapsed(), num_tokens: tokens.iter().sum(), gpu: gpu.into_inner() })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_found_by_the_machines_name() {
        let table = "[[machine]]\nname = \"a\"\nusd_per_hour = 0.5\n[[machine]]\nname = \"free\"\nusd_per_hour = 0.0\n";
        assert!((price_of(table, "a").unwrap() - 0.5).abs() < 1e-9);
        assert!(price_of(table, "b").unwrap_err().to_string().contains("only a, free"));
        assert!(price_of(table, "free").is_err());
        assert!(price_of("[[machine]]\nname = \"a\"\n", "a").is_err());
    }

    #[test]
    fn a_mean_of_nothing_is_none() {
        assert_eq!(mean([].into_iter()), None);
        assert_eq!(mean([1.0, 3.0].into_iter()), Some(2.0));
    }
}
