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

const COLUMNS: &[Column] =
    &[EDIT, WRITE, EDIT_ACCEPTED, WRITE_ACCEPTED, EDIT_DRAFTED, WRITE_DRAFTED, EQUAL, COMPARED];

/// The setting that the others are compared with.
const OFF: &str = "off";

/// Editing or writing, with where its figures go.
struct Task {
    asks: Vec<Ask>,
    rate: &'static str,
    accepted: &'static str,
    drafted: &'static str,
}

pub(super) fn speculative(lab: &Lab, args: &SpeculativeArgs) -> anyhow::Result<Findings> {
    let mut settings = vec![(OFF.to_owned(), None), ("lookup".to_owned(), Some(None))];
    lab.expect_steps(1 + 3 * lab.wish.rounds);
    let mut sheet = Sheet::new(None, COLUMNS);
    let draft_name = if args.draft.is_some() { "draft" } else { "draft: the model itself in Q2_K" };
    let draft = lab.attempt(&mut sheet, draft_name, |_| draft_model(lab, args))?;
    settings.extend(draft.map(|draft| (draft_name.to_owned(), Some(Some(draft)))));
    // Answers without speculation of the present round.
    let mut answers: Vec<String> = Vec::new();
    let mut unlike = Vec::new();
    lab.rounds(&mut sheet, &settings, |sheet, (name, speculation), round| {
        // One client without a target time for steps: batches have the same shape with every setting but for guesses.
        let node = lab
            .settings(&lab.wish.model)
            .with("--target-step", "0ms")
            .set("scheduler.max_draft", args.max_draft);
        let node = match speculation {
            None => node.with("--speculation", "off"),
            Some(None) => node.with("--speculation", "lookup"),
            Some(Some(draft)) => {
                node.with("--speculation", "draft").set("scheduler.draft_model", draft.display())
            }
        };
        let served = lab.start(&node)?;
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
        let pairs = || answers.iter().zip(&said);
        let equal = pairs().filter(|(first, other)| first == other).count();
        unlike.extend(
            pairs()
                .filter(|(first, other)| first != other)
                .map(|(first, other)| difference(name, first, other)),
        );
        let compared = pairs().count() as f64;
        let figures = [(EQUAL.id, Some(equal as f64 / compared)), (COMPARED.id, Some(compared))];
        sheet.add(name, 0.0, round, figures);
        Ok(())
    })?;
    let bars = [EDIT, WRITE, EDIT_ACCEPTED, WRITE_ACCEPTED, EQUAL];
    let mut findings = Findings::new(sheet, bars.iter().map(|column| Panel::Bars(column.id, 0.0)).collect());
    describe(&mut findings, &unlike);
    Ok(findings)
}

fn describe(findings: &mut Findings, unlike: &[String]) {
    findings.method = vec![
        "A node for each setting in turn, one client, temperature 0. Editing repeats most of its prompt (the workload \
         `speculative`), writing does not. Accepted and guessed tokens are the node's own counts."
            .to_owned(),
        "A guess is checked in one step with several rows, and sums of floating-point numbers depend on how many rows a \
         step has: where two tokens are all but equally likely, an answer may differ for that alone."
            .to_owned(),
    ];
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
