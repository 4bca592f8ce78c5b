//! `speculative`: guessing ahead by lookup and by a draft model, with what it gives and proof that answers stay.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::About;
use super::chart::Panel;
use super::lab::{Lab, Served};
use super::load::{Ask, decode_rate, quantile};
use super::section::Findings;
use super::sheet::{Column, Sheet, more, told};
use super::speed::Figures;
use super::texts;
use crate::node::NodeSettings;
use crate::workload::Workload;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "speculative",
    title: "Speculation: lookup and draft model",
    question: "How often do guesses come true, what does that give, and are answers at temperature 0 the same?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct SpeculativeArgs {
    /// The draft model: a GGUF file with the same vocabulary. Without it, the model itself in Q2_K is made and used.
    #[arg(long, value_name = "FILE")]
    draft: Option<PathBuf>,
    /// Tokens to guess ahead at most.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    max_draft: u32,
    /// Tokens of an answer; 96 with --quick, else 192.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..))]
    answer_tokens: Option<u32>,
}

const EDIT: Column = more(
    "edit_tok_per_s",
    "editing: decode tok/s",
    "tokens per second after the first of answers that repeat most of their prompt; median of the answers",
);
const WRITE: Column =
    more("write_tok_per_s", "writing: decode tok/s", "the same of answers that are new text");
const EDIT_ACCEPTED: Column =
    told("edit_accepted", "editing: accepted", "share of the guessed tokens that came true while editing");
const WRITE_ACCEPTED: Column =
    told("write_accepted", "writing: accepted", "share of the guessed tokens that came true while writing");
const EDIT_DRAFTED: Column =
    told("edit_drafted", "editing: guessed", "guessed tokens for each token of the answers while editing");
const WRITE_DRAFTED: Column =
    told("write_drafted", "writing: guessed", "guessed tokens for each token of the answers while writing");
const EQUAL: Column = told(
    "equal_share",
    "equal answers, share",
    "share of the compared answers that are, character by character, those without speculation",
);
const COMPARED: Column = told("compared_answers", "compared", "answers that were compared");

const PROVEN: Column = told(
    "proven_share",
    "equal, computed row by row, share",
    "the same of nodes that compute the rows of a step one after the other",
);

const COLUMNS: &[Column] =
    &[EDIT, WRITE, EDIT_ACCEPTED, WRITE_ACCEPTED, EDIT_DRAFTED, WRITE_DRAFTED, EQUAL, COMPARED, PROVEN];

/// The setting that the others are compared with.
const OFF: &str = "off";

/// Nothing, lookup, or a draft model's file.
type Speculation = Option<Option<PathBuf>>;

/// Editing or writing, with where its figures go.
struct Task {
    asks: Vec<Ask>,
    rate: &'static str,
    accepted: &'static str,
    drafted: &'static str,
}

pub(super) fn speculative(lab: &Lab, args: &SpeculativeArgs) -> anyhow::Result<Findings> {
    let mut settings: Vec<(String, Speculation)> =
        vec![(OFF.to_owned(), None), ("lookup".to_owned(), Some(None))];
    lab.expect_steps(4 + 3 * lab.wish.rounds);
    let mut sheet = Sheet::new(None, COLUMNS);
    let draft_name = if args.draft.is_some() { "draft" } else { "draft: the model itself in Q2_K" };
    let draft = lab.attempt(&mut sheet, draft_name, |_| draft_model(lab, args))?;
    settings.extend(draft.map(|draft| (draft_name.to_owned(), Some(Some(draft)))));
    // Answers without speculation of the present round.
    let mut answers: Vec<String> = Vec::new();
    let mut unlike = Vec::new();
    lab.rounds(&mut sheet, &settings, |sheet, (name, speculation), round| {
        let served = lab.start(&node(lab, args, speculation))?;
        lab.ask(&served, &[Ask::chat(texts::task(0), 4)])?;
        let mut said = Vec::new();
        for task in tasks(lab, args, round)? {
            let (figures, texts) = measure(lab, &served, &task)?;
            sheet.add(name, 0.0, round, figures);
            said.extend(texts);
        }
        if name == OFF {
            answers = said;
            return Ok(());
        }
        let parted = differences(name, &answers, &said);
        let compared = answers.len().min(said.len()) as f64;
        let equal = (compared > 0.0).then(|| 1.0 - parted.len() as f64 / compared);
        sheet.add(name, 0.0, round, [(EQUAL.id, equal), (COMPARED.id, Some(compared))]);
        unlike.extend(parted);
        Ok(())
    })?;
    let disproved = prove(lab, args, &settings, &mut sheet)?;
    let bars = [EDIT, WRITE, EDIT_ACCEPTED, WRITE_ACCEPTED, EQUAL, PROVEN];
    let mut findings = Findings::new(sheet, bars.iter().map(|column| Panel::Bars(column.id, 0.0)).collect());
    describe(&mut findings, &unlike, &disproved);
    Ok(findings)
}

fn node(lab: &Lab, args: &SpeculativeArgs, speculation: &Speculation) -> NodeSettings {
    // One client without a target time for steps: batches have the same shape with every setting but for guesses.
    let node =
        lab.settings(&lab.wish.model).with("--target-step", "0ms").set("scheduler.max_draft", args.max_draft);
    match speculation {
        None => node.with("--speculation", "off"),
        Some(None) => node.with("--speculation", "lookup"),
        Some(Some(draft)) => {
            node.with("--speculation", "draft").set("scheduler.draft_model", draft.display())
        }
    }
}

/// Asks the first round's tasks once more of nodes that compute the rows of a step one after the other, so that no
/// rounding depends on how many there are. Tells where answers part even there.
fn prove(
    lab: &Lab,
    args: &SpeculativeArgs,
    settings: &[(String, Speculation)],
    sheet: &mut Sheet,
) -> anyhow::Result<Vec<String>> {
    let (mut answers, mut unlike) = (Vec::new(), Vec::new());
    for (name, speculation) in settings {
        lab.say(format!("{name}: are answers the same, row by row"));
        let said = lab.attempt(sheet, name, |_| {
            let served = lab.start(&node(lab, args, speculation).set("engine.llama.micro_batch_rows", 1))?;
            let mut said = Vec::new();
            for task in tasks(lab, args, 0)? {
                said.extend(measure(lab, &served, &task)?.1);
            }
            Ok(said)
        })?;
        let Some(said) = said else { continue };
        if name == OFF {
            answers = said;
        } else if !answers.is_empty() {
            let parted = differences(&format!("{name}, row by row"), &answers, &said);
            let equal = 1.0 - parted.len() as f64 / answers.len() as f64;
            sheet.add(name, 0.0, 0, [(PROVEN.id, Some(equal))]);
            unlike.extend(parted);
        }
    }
    Ok(unlike)
}

fn describe(findings: &mut Findings, unlike: &[String], disproved: &[String]) {
    findings.method = vec![
        "A node for each setting in turn, one client, temperature 0. Editing repeats most of its prompt (the workload \
         `speculative`), writing does not. Accepted and guessed tokens are the node's own counts."
            .to_owned(),
        "A guess is checked in one step with several rows, and sums of floating-point numbers depend on how many rows a \
         step has: where two tokens are all but equally likely, an answer may differ for that alone. So the first \
         round's tasks are asked once more of nodes that compute the rows of a step one after the other \
         (`engine.llama.micro_batch_rows=1`), at the price of all speed. An answer that differs there does so for the \
         speculation."
            .to_owned(),
    ];
    if disproved.is_empty() && findings.sheet.has_values(PROVEN.id) {
        findings.told.push(
            "Computed row by row, every answer was the same, character by character, as without speculation."
                .to_owned(),
        );
    }
    findings.told.extend(disproved.iter().cloned());
    if unlike.is_empty() {
        findings
            .told
            .push("Every answer was the same, character by character, as without speculation.".to_owned());
    }
    findings.told.extend(unlike.iter().cloned());
    findings.not_measured = vec![
        "Several clients at once, where guesses take rows from others.".to_owned(),
        "Temperatures above 0.".to_owned(),
    ];
}

/// The answers that are not those without speculation, and where they part.
fn differences(name: &str, without: &[String], with: &[String]) -> Vec<String> {
    let pairs = without.iter().zip(with).filter(|(first, other)| first != other);
    pairs.map(|(first, other)| difference(name, first, other)).collect()
}

/// Where two answers part.
fn difference(name: &str, first: &str, other: &str) -> String {
    let same: String = first.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let rest = |text: &str| text.chars().skip(same.chars().count()).take(24).collect::<String>();
    format!(
        "{name}: an answer differs from character {} on: {:?} without, {:?} with speculation",
        same.chars().count() + 1,
        rest(first),
        rest(other)
    )
}

fn draft_model(lab: &Lab, args: &SpeculativeArgs) -> anyhow::Result<PathBuf> {
    if let Some(draft) = &args.draft {
        anyhow::ensure!(draft.is_file(), "--draft {}: there is no such file", draft.display());
        return Ok(std::path::absolute(draft)?);
    }
    let draft = lab.scratch("draft.gguf");
    let paths = [&lab.wish.model, &draft].map(|path| path.display().to_string());
    lab.quern(["quantize".to_owned()].into_iter().chain(paths).chain(["Q2_K".to_owned()]))?;
    Ok(std::path::absolute(draft)?)
}

/// The tasks of a round: the same for each setting.
fn tasks(lab: &Lab, args: &SpeculativeArgs, round: usize) -> anyhow::Result<[Task; 2]> {
    let max_tokens = args.answer_tokens.unwrap_or(if lab.wish.is_quick { 96 } else { 192 });
    let count = if lab.wish.is_quick { 2 } else { 4 };
    let numbers = (round * count) as u64..((round + 1) * count) as u64;
    let workload = Workload::find("speculative")?;
    let prompts = workload.read_prompts(&workload.prompts).context("the program's own prompts")?;
    let edit = |number| Ask::chat(prompts.get(0, number).user, max_tokens);
    let write = |number| Ask::chat(texts::task(number), max_tokens);
    Ok([
        Task {
            asks: numbers.clone().map(edit).collect(),
            rate: EDIT.id,
            accepted: EDIT_ACCEPTED.id,
            drafted: EDIT_DRAFTED.id,
        },
        Task {
            asks: numbers.map(write).collect(),
            rate: WRITE.id,
            accepted: WRITE_ACCEPTED.id,
            drafted: WRITE_DRAFTED.id,
        },
    ])
}

fn measure(lab: &Lab, served: &Served, task: &Task) -> anyhow::Result<(Figures, Vec<String>)> {
    let metrics = || lab.wait(async { Ok(served.node.metrics().await?) });
    let before = metrics()?;
    let (mut rates, mut said, mut num_tokens) = (Vec::new(), Vec::new(), 0);
    for ask in &task.asks {
        let replies = lab.ask(served, std::slice::from_ref(ask))?;
        rates.extend(decode_rate(&replies));
        for reply in replies {
            num_tokens += reply.num_tokens();
            said.push(reply.text);
        }
    }
    let after = metrics()?;
    let drafted = after.growth(&before, "quern_speculation_drafted_tokens_total");
    let accepted = after.growth(&before, "quern_speculation_accepted_tokens_total");
    let figures = vec![
        (task.rate, quantile(&rates, 0.5)),
        (task.accepted, (drafted > 0.0).then(|| accepted / drafted)),
        (task.drafted, Some(drafted / num_tokens.max(1) as f64)),
    ];
    Ok((figures, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_with_its_place() {
        let told = difference("lookup", "same words, then this", "same words, then that");
        assert!(told.contains("from character 20 on: \"is\" without, \"at\" with"), "{told}");
    }
}
