//! `quern-bench advise`: which settings to use for a model, a memory, a latency and a rate, each with the measurement
//! behind it.
//!
//! `topics.rs` holds a rule for each question. A rule reads figures that experiments left and gives them back with
//! file and line; where there are none it says so. Nothing is guessed, and nothing here measures.

mod topics;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::experiment::reading::{self, Measured};
use crate::experiment::section::CSV_FILE;
use crate::found;

/// `quern-bench advise`.
#[derive(Debug, Args)]
pub struct AdviseArgs {
    /// The folder with experiments' results, in itself or in folders below it; one result of each experiment, all of
    /// the machine that the advice is for.
    #[arg(long, value_name = "DIR")]
    pub results: PathBuf,
    /// Size of your model's file as it is given, in MiB. Figures of speed hold for the model that was measured.
    #[arg(long, value_name = "MIB")]
    pub model_mib: f64,
    /// Memory that the node may take, in MiB.
    #[arg(long, value_name = "MIB")]
    pub memory_mib: f64,
    /// Milliseconds within which a request alone must have its first token.
    #[arg(long, value_name = "MS")]
    pub ttft_ms: f64,
    /// Requests per second.
    #[arg(long, value_name = "N")]
    pub rate: f64,
    /// How many adapters are served.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub adapters: u32,
    /// Answers repeat much of their prompts, as when a text is edited.
    #[arg(long)]
    pub repeats: bool,
    /// How much higher perplexity may be than that of the best format, as a share.
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    pub quality_loss: f64,
}

/// Why there is no advice.
#[derive(Debug, thiserror::Error)]
pub enum AdviseError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Results cannot be used.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// What is said to one question.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    /// Use this.
    Use(String),
    /// What was measured does not do.
    Nothing(String),
    /// There is no measurement; what would make one.
    NotMeasured(String),
    /// The question does not arise.
    NotAsked(String),
}

/// The answer to one question, with what it rests on.
#[derive(Debug)]
struct Advice {
    topic: &'static str,
    answer: Answer,
    /// The rule.
    because: String,
    /// Figures with file and lines.
    evidence: Vec<String>,
    /// What the figures do not say.
    gaps: Vec<String>,
}

impl Advice {
    fn new(topic: &'static str, answer: Answer, because: impl Into<String>) -> Self {
        Self { topic, answer, because: because.into(), evidence: Vec::new(), gaps: Vec::new() }
    }

    fn not_measured(topic: &'static str, experiment: &str, what: &str) -> Self {
        let how = format!("{what}; `quern-bench experiment {experiment}` measures it");
        Self::new(topic, Answer::NotMeasured(how), "")
    }
}

/// Results by the experiment's name.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, Measured>);

impl Known {
    fn read(args: &AdviseArgs) -> anyhow::Result<Self> {
        let folder = args.results.display();
        let found = found::below(&args.results).with_context(|| folder.to_string())?;
        let mut known = Self::default();
        for place in found.iter().filter(|place| place.path.join(CSV_FILE).is_file()) {
            let measured = reading::read(&place.path)?;
            let (name, path) = (measured.head.name.clone(), measured.path.display().to_string());
            if let Some(other) = known.0.insert(name.clone(), measured) {
                let other = other.path.display();
                anyhow::bail!(
                    "two results of `{name}`: {other} and {path}: name a folder that holds one of them"
                );
            }
        }
        anyhow::ensure!(
            !known.0.is_empty(),
            "{folder}: no results of experiments here or up to three folders below"
        );
        Ok(known)
    }

    fn of(&self, experiment: &str) -> Option<&Measured> {
        self.0.get(experiment)
    }

    /// Machines that the results come from, without how busy they were.
    fn machines(&self) -> Vec<&str> {
        let machines = self.0.values().filter_map(|measured| measured.head.machine.as_deref());
        let mut machines: Vec<&str> =
            machines.map(|name| name.split(", load before").next().unwrap_or(name)).collect();
        machines.sort_unstable();
        machines.dedup();
        machines
    }
}

/// Gives advice as Markdown.
///
/// # Errors
/// When the flags make no sense, when there are no results, two of one experiment, or ones of a later version.
pub fn advise(args: &AdviseArgs, command_line: &str) -> Result<String, AdviseError> {
    check(args).map_err(AdviseError::Usage)?;
    let known = Known::read(args).map_err(AdviseError::Failed)?;
    let advice = topics::all(&known, args);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, args, command_line, &known, &advice);
    Ok(text)
}

fn check(args: &AdviseArgs) -> Result<(), String> {
    let AdviseArgs { model_mib, memory_mib, ttft_ms, rate, quality_loss, .. } = args;
    let wanted =
        [("--model-mib", model_mib), ("--memory-mib", memory_mib), ("--ttft-ms", ttft_ms), ("--rate", rate)];
    for (flag, value) in wanted {
        if !value.is_finite() || *value <= 0.0 {
            return Err(format!("{flag} {value}: must be above 0"));
        }
    }
    if !quality_loss.is_finite() || *quality_loss < 0.0 {
        return Err(format!("--quality-loss {quality_loss}: must be 0 or above"));
    }
    Ok(())
}

fn write(
    text: &mut String,
    args: &AdviseArgs,
    command_line: &str,
    known: &Known,
    advice: &[Advice],
) -> std::fmt::Result {
    let AdviseArgs { model_mib, memory_mib, ttft_ms, rate, .. } = args;
    writeln!(text, "# Advice: a model of {model_mib} MiB in {memory_mib} MiB of memory\n")?;
    writeln!(text, "Wanted: the first token within {ttft_ms} ms, {rate} requests a second.  ")?;
    for machine in known.machines() {
        writeln!(text, "Measured on: {machine}.  ")?;
    }
    writeln!(text, "Command: `{command_line}`\n")?;
    if known.machines().len() > 1 {
        writeln!(
            text,
            "**The results are of several machines: what is best on one need not be on another.**\n"
        )?;
    }
    writeln!(text, "| | use |\n|---|---|")?;
    for one in advice {
        writeln!(text, "| {} | {} |", one.topic, short(&one.answer))?;
    }
    for Advice { topic, answer, because, evidence, gaps } in advice {
        writeln!(text, "\n## {topic}: {}\n", short(answer))?;
        if !because.is_empty() {
            writeln!(text, "{because}\n")?;
        }
        if let Answer::NotMeasured(how) = answer {
            writeln!(text, "{how}.")?;
        }
        for line in evidence {
            writeln!(text, "- {line}")?;
        }
        for gap in gaps {
            writeln!(text, "- Not measured: {gap}")?;
        }
    }
    Ok(())
}

fn short(answer: &Answer) -> String {
    match answer {
        Answer::Use(what) => format!("`{what}`"),
        Answer::Nothing(why) => format!("nothing that was measured: {why}"),
        Answer::NotMeasured(_) => "not measured".to_owned(),
        Answer::NotAsked(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests;
