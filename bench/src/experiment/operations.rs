//! What single operations of a step take, as `quern profile` says it: a table, bars, and their part of a trace.
//!
//! What comes in is another program's output, perhaps of another version: nothing in it is believed unchecked, and why
//! it cannot be used is said in the results.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::chart::{Pair, Panel};
use super::lab::Lab;
use super::section::{Findings, Table};
use super::steps::OPERATIONS_PROCESS;
use crate::node::NodeSettings;
use crate::output::number;

/// A line for each phase and kind of operation.
const CSV_FILE: &str = "operations.csv";
/// Tokens of the prompt that is profiled: as many as a node computes at once.
const PREFILL_TOKENS: u32 = 256;
/// Tokens behind it.
const DECODE_STEPS: u32 = 16;
/// Layout of the summary that is understood.
const LAYOUT: u32 = 1;
/// Kinds of operations in a phase: ggml has about a hundred operations.
const MAX_KINDS: usize = 1000;
/// Slices of a trace: a large model's long prompt has some ten thousand.
const MAX_EVENTS: usize = 1_000_000;
/// Bars of the plot; the last one stands for all that have none.
const NUM_BARS: usize = 10;
/// The same work may take so much longer in one turn than in the other.
const STEADY: f64 = 1.3;
const UNSTEADY: &str = " These differ: the machine had other work meanwhile, and operations that wait for all threads \
    look longer than they are. Profile again.";
/// In the order of the table.
const PHASES: [&str; 2] = ["prefill", "decode"];

/// What was found out.
#[derive(Debug)]
pub struct Operations {
    summary: Summary,
    /// For a trace with others.
    pub events: Vec<Value>,
}

/// Unknown fields are passed over: a later version may say more.
#[derive(Debug, Deserialize)]
struct Summary {
    prefill_tokens: u32,
    decode_steps: u32,
    llama_cpp_version: String,
    phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    phase: String,
    untimed_ms: [f64; 2],
    timed_ms: f64,
    num_operations: u64,
    operations_ms: f64,
    kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    op: String,
    part: Option<String>,
    weight_types: Vec<String>,
    count: u64,
    total_ms: f64,
    share: f64,
    gflop_per_s: Option<f64>,
    weight_gb_per_s: Option<f64>,
}

impl Kind {
    fn name(&self) -> String {
        self.part.as_ref().map_or_else(|| self.op.clone(), |part| format!("{} {part}", self.op))
    }
}

/// Has the node's program profile the model as a node with these settings would compute it.
///
/// # Errors
/// When the command fails, as it does where a version or an engine has none, or prints something else.
pub fn measure(lab: &Lab, settings: &NodeSettings) -> anyhow::Result<Operations> {
    let file = lab.scratch("operations.json");
    let mut arguments = vec!["profile".to_owned(), "--json".to_owned()];
    arguments.extend(["--model".to_owned(), settings.model.clone()]);
    arguments.extend(["--out".to_owned(), file.display().to_string()]);
    arguments.extend(["--prefill-tokens".to_owned(), PREFILL_TOKENS.to_string()]);
    arguments.extend(["--decode-steps".to_owned(), DECODE_STEPS.to_string()]);
    arguments.extend(settings.switches.iter().flat_map(|(switch, value)| [switch.clone(), value.clone()]));
    take(&lab.quern(arguments)?, &file)
}

/// Makes something of what was printed and what was written.
fn take(printed: &str, file: &Path) -> anyhow::Result<Operations> {
    let summary = read(printed).context("quern profile printed no summary that this version knows")?;
    let events = read_events(file).context("quern profile wrote no trace that this version knows")?;
    Ok(Operations { summary, events })
}

fn read(printed: &str) -> anyhow::Result<Summary> {
    // The layout goes first: another one may lack what is asked for here.
    #[derive(Deserialize)]
    struct Layout {
        layout: u32,
    }
    let Layout { layout } = serde_json::from_str(printed)?;
    anyhow::ensure!(layout == LAYOUT, "it is in layout {layout}, and known is {LAYOUT}");
    let summary: Summary = serde_json::from_str(printed)?;
    for phase in PHASES {
        let num_found = summary.phases.iter().filter(|found| found.phase == phase).count();
        anyhow::ensure!(num_found == 1, "it tells {num_found} times of {phase}");
    }
    for phase in &summary.phases {
        check(phase).with_context(|| format!("in {}", phase.phase))?;
    }
    Ok(summary)
}

fn check(phase: &Phase) -> anyhow::Result<()> {
    let is_time = |ms: f64| ms.is_finite() && ms >= 0.0;
    let times = [phase.untimed_ms[0], phase.untimed_ms[1], phase.timed_ms, phase.operations_ms];
    anyhow::ensure!(times.into_iter().all(is_time), "a time is none: {times:?}");
    let num_kinds = phase.kinds.len();
    anyhow::ensure!((1..=MAX_KINDS).contains(&num_kinds), "{num_kinds} kinds of operations");
    for kind in &phase.kinds {
        let rates = [kind.gflop_per_s, kind.weight_gb_per_s];
        let is_good = is_time(kind.total_ms)
            && (0.0..=1.0).contains(&kind.share)
            && rates.into_iter().flatten().all(is_time);
        anyhow::ensure!(is_good, "{}: a figure is none", kind.name().escape_debug());
    }
    let all: f64 = phase.kinds.iter().map(|kind| kind.share).sum();
    anyhow::ensure!((all - 1.0).abs() < 0.01, "shares add up to {all}");
    Ok(())
}

/// The events of a trace, as those of a process of its own.
fn read_events(file: &Path) -> anyhow::Result<Vec<Value>> {
    let mut trace: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let Some(Value::Array(mut events)) = trace.get_mut("traceEvents").map(Value::take) else {
        anyhow::bail!("it has no traceEvents");
    };
    anyhow::ensure!((1..=MAX_EVENTS).contains(&events.len()), "{} events", events.len());
    for (idx, event) in events.iter_mut().enumerate() {
        let is_good = is_event(event);
        let fields =
            event.as_object_mut().filter(|_| is_good).with_context(|| format!("event {idx} is none"))?;
        fields.insert("pid".to_owned(), OPERATIONS_PROCESS.into());
    }
    Ok(events)
}

/// Whether it is a name, or a slice with times.
fn is_event(event: &Value) -> bool {
    let is_time = |key: &str| event[key].as_f64().is_some_and(|us| us >= 0.0);
    let is_whole = match event["ph"].as_str() {
        Some("M") => event["args"]["name"].is_string(),
        Some("X") => is_time("ts") && is_time("dur"),
        _ => false,
    };
    is_whole && event["name"].is_string() && event["tid"].is_u64()
}

impl Operations {
    fn phase(&self, name: &str) -> &Phase {
        self.summary
            .phases
            .iter()
            .find(|phase| phase.phase == name)
            .expect("reading checked that it is there")
    }

    /// Both phases' kinds under each name, the largest share first.
    fn kinds(&self) -> Vec<(String, [Option<&Kind>; 2])> {
        let phases = PHASES.map(|name| self.phase(name));
        let mut all: Vec<(String, [Option<&Kind>; 2])> = Vec::new();
        for (idx, phase) in phases.into_iter().enumerate() {
            for kind in &phase.kinds {
                let name = kind.name();
                let at = all.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
                    all.push((name, [None, None]));
                    all.len() - 1
                });
                all[at].1[idx] = Some(kind);
            }
        }
        let largest =
            |kinds: &[Option<&Kind>; 2]| kinds.iter().flatten().map(|kind| kind.share).fold(0.0, f64::max);
        all.sort_by(|(_, a), (_, b)| largest(b).total_cmp(&largest(a)));
        all
    }

    /// Adds the table, the bars, the file of figures and what a reader must know of them.
    pub fn tell(&self, findings: &mut Findings) {
        let Summary { prefill_tokens, decode_steps, llama_cpp_version, .. } = &self.summary;
        findings.tables.push(self.table());
        findings.panels.push(self.panel());
        findings.files.push((CSV_FILE, self.csv()));
        findings.method.push(format!(
            "Operations: `quern profile` with the node's settings, one prefill of {prefill_tokens} tokens and \
             {decode_steps} decode steps of one sequence behind it (llama.cpp {llama_cpp_version}). Each operation was \
             computed alone: fused ones come apart, threads come to rest behind each, and short ones look longer than \
             they are: good for shares, not for speeds. In `trace.json` they are a process of their own, which shares no \
             clock with the node's steps; `{CSV_FILE}` has the sums."
        ));
        for name in PHASES {
            let phase = self.phase(name);
            let [before, after] = phase.untimed_ms;
            let cost_us =
                (phase.timed_ms - f64::midpoint(before, after)) * 1e3 / phase.num_operations.max(1) as f64;
            let cost = match cost_us {
                cost_us if cost_us > 0.0 => format!("so that timing cost {cost_us:.1} µs an operation"),
                _ => "so that what timing costs is lost in the machine's own changes of speed".to_owned(),
            };
            findings.told.push(format!(
                "{name}, {} operations one at a time: {} ms, of which {} ms in operations; without timing them {} ms \
                 before and {} ms after, {cost}.{}",
                phase.num_operations,
                number(phase.timed_ms),
                number(phase.operations_ms),
                number(before),
                number(after),
                if before.max(after) > STEADY * before.min(after) { UNSTEADY } else { "" }
            ));
        }
    }

    fn table(&self) -> Table {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "–".to_owned(), number);
        let row = |(name, [prefill, decode]): &(String, [Option<&Kind>; 2])| {
            let share = |kind: &Option<&Kind>| rate(kind.map(|kind| kind.share * 100.0));
            let mut types: Vec<&str> = [prefill, decode]
                .into_iter()
                .flatten()
                .flat_map(|kind| &kind.weight_types)
                .map(String::as_str)
                .collect();
            types.sort_unstable();
            types.dedup();
            vec![
                name.clone(),
                types.join(", "),
                share(prefill),
                rate(prefill.and_then(|kind| kind.gflop_per_s)),
                share(decode),
                rate(decode.and_then(|kind| kind.weight_gb_per_s)),
            ]
        };
        Table {
            title: "Operations",
            about: "Shares of the time in all operations of a phase. GFLOP/s are of products of matrices, GB/s of the \
                    weights that they read.",
            num_names: 2,
            columns: &["operation", "weights", "prefill, %", "prefill, GFLOP/s", "decode, %", "decode, GB/s"],
            rows: self.kinds().iter().map(row).collect(),
        }
    }

    fn panel(&self) -> Panel {
        let percent = |kind: Option<&Kind>| kind.map_or(0.0, |kind| kind.share * 100.0);
        let kinds = self.kinds().into_iter();
        let mut pairs: Vec<Pair> =
            kinds.map(|(name, kinds)| Pair { name, values: kinds.map(percent) }).collect();
        if pairs.len() > NUM_BARS {
            let others = pairs.split_off(NUM_BARS - 1);
            let sum = |idx: usize| others.iter().map(|pair| pair.values[idx]).sum();
            pairs.push(Pair { name: format!("{} others", others.len()), values: [sum(0), sum(1)] });
        }
        Panel::Pairs("% of the time in operations".to_owned(), PHASES, pairs)
    }

    fn csv(&self) -> String {
        let mut csv = csv::Writer::from_writer(Vec::new());
        let mut lines = vec![
            "phase,op,part,weight_types,count,total_ms,share,gflop_per_s,weight_gb_per_s"
                .split(',')
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        ];
        let rate = |rate: Option<f64>| rate.map_or_else(String::new, |rate| format!("{rate:.6}"));
        for phase in PHASES.map(|name| self.phase(name)) {
            lines.extend(phase.kinds.iter().map(|kind| {
                vec![
                    phase.phase.clone(),
                    kind.op.clone(),
                    kind.part.clone().unwrap_or_default(),
                    kind.weight_types.join(" "),
                    kind.count.to_string(),
                    format!("{:.6}", kind.total_ms),
                    format!("{:.6}", kind.share),
                    rate(kind.gflop_per_s),
                    rate(kind.weight_gb_per_s),
                ]
            }));
        }
        for line in lines {
            csv.write_record(line).expect("a vector takes everything");
        }
        let bytes = csv.into_inner().expect("a vector takes everything");
        String::from_utf8(bytes).expect("texts make a text")
    }
}

#[cfg(test)]
mod tests;
