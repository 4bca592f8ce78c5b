//! What a run leaves behind: JSON Lines of everything, CSV of the phases, a Markdown table, an SVG plot.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::run::{RunOutcome, Sink};
use crate::stats::{FIGURES, Figure, PhaseSummary, Spread, TenantFigures, levels, ratios, rounds, servers};
use crate::summary::RequestRecord;

/// Everything of a run: requests, phases, ratios.
pub const RESULTS_FILE: &str = "results.jsonl";
/// The phases' figures.
pub const PHASES_FILE: &str = "phases.csv";
/// For people.
pub const TABLE_FILE: &str = "table.md";
/// For people in a hurry.
pub const PLOT_FILE: &str = "plot.svg";

/// What a run was: the first line of its results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunHeader {
    /// The run's or workload's name.
    pub name: String,
    /// The workload's name.
    pub workload: String,
    /// What the workload asks, in its own words.
    pub about: String,
    /// When it began, UTC.
    pub date: String,
    /// How it was called.
    pub command_line: String,
    /// This program's version.
    pub bench_version: String,
    /// The format of the results, see [`crate::results`]. Files without it are of format 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Servers by name, with what was said about them.
    pub servers: Vec<(String, String)>,
    /// Seed of the run.
    pub seed: u64,
    /// The machine.
    pub machine: Machine,
    /// Notes from the command line: versions of servers, threads, anything.
    pub notes: Vec<String>,
}

fn first_format() -> u32 {
    1
}

/// One line of the results file.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a, T: Serialize> {
    Run(&'a T),
    Request(&'a T),
    Phase(&'a T),
    Ratio(&'a T),
    Ramp(&'a T),
}

/// Writes results into a folder as they come.
pub struct FolderSink {
    lines: BufWriter<File>,
}

impl FolderSink {
    /// Makes the folder and begins the results file.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub fn create(folder: &Path, header: &RunHeader) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut sink = Self { lines: BufWriter::new(File::create(folder.join(RESULTS_FILE))?) };
        sink.write(&Line::Run(header))?;
        sink.lines.flush()?;
        Ok(sink)
    }

    fn write<T: Serialize>(&mut self, line: &Line<'_, T>) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.lines, line)?;
        self.lines.write_all(b"\n")
    }
}

impl Sink for FolderSink {
    fn take(&mut self, summary: &PhaseSummary, records: &[RequestRecord]) -> std::io::Result<()> {
        for record in records {
            self.write(&Line::Request(record))?;
        }
        self.write(&Line::Phase(summary))?;
        self.lines.flush()
    }
}

/// Keeps nothing: for a run that only prints its table.
pub struct NoSink;

impl Sink for NoSink {
    fn take(&mut self, _: &PhaseSummary, _: &[RequestRecord]) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes what can only be written when all phases are done.
///
/// # Errors
/// When the folder cannot be written or the plot cannot be drawn.
pub fn write_summary(folder: &Path, header: &RunHeader, outcome: &RunOutcome) -> anyhow::Result<()> {
    let mut results = std::fs::OpenOptions::new().append(true).open(folder.join(RESULTS_FILE))?;
    for ratio in ratios(&outcome.phases) {
        writeln!(results, "{}", serde_json::to_string(&Line::Ratio(&ratio))?)?;
    }
    for end in &outcome.ramp_ends {
        writeln!(results, "{}", serde_json::to_string(&Line::Ramp(end))?)?;
    }
    write_csv(&folder.join(PHASES_FILE), &outcome.phases)?;
    std::fs::write(folder.join(TABLE_FILE), table(header, outcome))?;
    crate::plot::draw(&folder.join(PLOT_FILE), &header.name, &outcome.phases)
}

fn write_csv(path: &Path, phases: &[PhaseSummary]) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_path(path)?;
    let head = ["server", "level", "round", "ok", "failed", "wrong", "wall s", "prompt tokens", "tokens"];
    csv.write_record(head.iter().copied().chain(FIGURES.iter().map(|figure| figure.name)))?;
    for phase in phases {
        let mut row = vec![phase.server.clone(), phase.level.clone(), phase.round.to_string()];
        row.extend([phase.num_ok, phase.num_failed, phase.num_wrong].map(|count| count.to_string()));
        row.push(format!("{:.3}", phase.wall_s));
        row.extend([phase.prompt_tokens, phase.tokens].map(|count| count.to_string()));
        let figure = |figure| phase.figure(figure).map_or_else(String::new, |value| format!("{value:.3}"));
        row.extend(FIGURES.iter().map(figure));
        csv.write_record(row)?;
    }
    csv.flush()?;
    Ok(())
}

/// The run for people: the machine, a table of figures a level, the ratios, and what went wrong.
pub fn table(header: &RunHeader, outcome: &RunOutcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, header, outcome);
    text
}

fn write_table(text: &mut String, header: &RunHeader, outcome: &RunOutcome) -> std::fmt::Result {
    let RunHeader {
        name,
        workload,
        about,
        date,
        command_line,
        bench_version,
        servers,
        seed,
        machine,
        notes,
        ..
    } = header;
    writeln!(text, "# {name}\n\n{about}\n")?;
    writeln!(text, "Workload `{workload}`, {date}, quern-bench {bench_version}, seed {seed}.  ")?;
    writeln!(text, "Machine: {machine}.  ")?;
    for (server, about) in servers {
        writeln!(text, "`{server}`: {about}.  ")?;
    }
    for note in notes {
        writeln!(text, "Note: {note}.  ")?;
    }
    writeln!(text, "Command: `{command_line}`\n")?;
    for end in &outcome.ramp_ends {
        writeln!(text, "Highest rate: {end}.\n")?;
    }
    if let Some(kept) = outcome.phases.iter().find_map(|phase| phase.objective.as_ref()) {
        let percent = kept.share_wanted * 100.0;
        writeln!(text, "Objective: {}, for {percent} % of the requests.\n", kept.times)?;
    }
    write_figures(text, &outcome.phases)?;
    write_ratios(text, &outcome.phases)?;
    write_troubles(text, outcome)
}

fn write_figures(text: &mut String, phases: &[PhaseSummary]) -> std::fmt::Result {
    let servers = servers(phases);
    for level in levels(phases) {
        writeln!(text, "## {level}\n\nMedian over the rounds, range in brackets.\n")?;
        writeln!(text, "| | {} |", servers.join(" | "))?;
        writeln!(text, "|---|{}", "---:|".repeat(servers.len()))?;
        let mut row = |name: &str, cell: &dyn Fn(&str) -> String| {
            let cells: Vec<String> = servers.iter().map(|server| cell(server)).collect();
            writeln!(text, "| {name} | {} |", cells.join(" | "))
        };
        row("requests ok / failed / wrong", &|server| {
            let sum = |count: fn(&PhaseSummary) -> u64| rounds(phases, server, level).map(count).sum::<u64>();
            format!("{} / {} / {}", sum(|p| p.num_ok), sum(|p| p.num_failed), sum(|p| p.num_wrong))
        })?;
        row("prompt tokens a request", &|server| {
            let mean = |phase: &PhaseSummary| phase.prompt_tokens as f64 / phase.num_ok.max(1) as f64;
            spread_cell(Spread::of(rounds(phases, server, level).map(mean)))
        })?;
        let has_value = |figure: &&Figure| {
            phases.iter().any(|phase| phase.level == level && phase.figure(figure).is_some())
        };
        for figure in FIGURES.iter().filter(has_value) {
            row(figure.name, &|server| {
                spread_cell(Spread::of(
                    rounds(phases, server, level).filter_map(|phase| phase.figure(figure)),
                ))
            })?;
        }
        if phases.iter().any(|phase| phase.num_with_expected > 0) {
            row("answers as expected", &|server| {
                let sum =
                    |count: fn(&PhaseSummary) -> u64| rounds(phases, server, level).map(count).sum::<u64>();
                format!("{} of {}", sum(|p| p.num_as_expected), sum(|p| p.num_with_expected))
            })?;
        }
        writeln!(text)?;
        write_tenants(text, phases, level)?;
    }
    Ok(())
}

/// A line a tenant, server and round, if there are tenants.
fn write_tenants(text: &mut String, phases: &[PhaseSummary], level: &str) -> std::fmt::Result {
    let mut of_level =
        phases.iter().filter(|phase| phase.level == level && !phase.tenants.is_empty()).peekable();
    if of_level.peek().is_none() {
        return Ok(());
    }
    writeln!(
        text,
        "| tenant | server | round | ok / failed | tokens | TTFT p50 / p95 ms | end to end p95 ms | kept the objective |"
    )?;
    writeln!(text, "|---|---|---:|---:|---:|---:|---:|---:|")?;
    for phase in of_level {
        for (name, figures) in &phase.tenants {
            let TenantFigures { num_ok, num_failed, tokens, ttft, e2e, share_kept } = figures;
            let none = || "–".to_owned();
            let ttft = ttft.map_or_else(none, |q| format!("{} / {}", number(q.p50_ms), number(q.p95_ms)));
            let e2e = e2e.map_or_else(none, |q| number(q.p95_ms));
            let kept = share_kept.map_or_else(none, |share| format!("{:.1} %", share * 100.0));
            let (server, round) = (&phase.server, phase.round + 1);
            writeln!(
                text,
                "| {name} | {server} | {round} | {num_ok} / {num_failed} | {tokens} | {ttft} | {e2e} | {kept} |"
            )?;
        }
    }
    writeln!(text)
}

fn write_ratios(text: &mut String, phases: &[PhaseSummary]) -> std::fmt::Result {
    let ratios = ratios(phases);
    let Some(first) = ratios.first() else { return Ok(()) };
    writeln!(text, "## {} over the others\n", first.over)?;
    writeln!(text, "One ratio a round, of phases that ran one after the other.\n")?;
    writeln!(text, "| level | figure | divided by | median | range | pairs | better is |")?;
    writeln!(text, "|---|---|---|---:|---|---:|---|")?;
    for ratio in ratios {
        let Spread { median, min, max, count } = ratio.ratio;
        let better = if ratio.is_more_better { "more" } else { "less" };
        let (level, figure, under) = (&ratio.level, &ratio.figure, &ratio.under);
        writeln!(
            text,
            "| {level} | {figure} | {under} | {median:.3} | {min:.3} to {max:.3} | {count} | {better} |"
        )?;
    }
    writeln!(text)
}

fn write_troubles(text: &mut String, outcome: &RunOutcome) -> std::fmt::Result {
    let mut troubles = Vec::new();
    for phase in &outcome.phases {
        let place = format!("{}, {}, round {}", phase.server, phase.level, phase.round + 1);
        let ended_early = phase.gave_up.clone();
        troubles.extend(
            ended_early.into_iter().chain(phase.client_trouble()).map(|why| format!("{place}: {why}")),
        );
        if !phase.is_counted_by_server && phase.num_ok > 0 {
            troubles.push(format!("{place}: the server gave no token counts; deltas were counted"));
        }
        for (kind, count) in phase.failures.iter().chain(&phase.wrong) {
            let example = outcome.examples.get(kind).map_or("", String::as_str).replace('\n', " ");
            troubles.push(format!("{place}: {count} × {kind}, for example: {example}"));
        }
    }
    if outcome.num_compared > 0 {
        let same = outcome.num_compared - outcome.num_different;
        writeln!(text, "Answers equal across servers: {same} of {}.\n", outcome.num_compared)?;
    }
    if !troubles.is_empty() {
        writeln!(text, "## To be aware of\n")?;
        for trouble in troubles {
            writeln!(text, "- {trouble}")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// Enough digits to compare, no more.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub(crate) fn spread_cell(spread: Option<Spread>) -> String {
    match spread {
        None => "–".to_owned(),
        Some(Spread { median, count: 1, .. }) => number(median),
        Some(Spread { median, min, max, .. }) if number(min) == number(max) => number(median),
        Some(Spread { median, min, max, .. }) => {
            format!("{} [{}–{}]", number(median), number(min), number(max))
        }
    }
}
