//! `quern eval --csv` and `--calibrate`: rows with labels, judged by a head or by what a
//! model would answer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use quern_adapters::{Calibration, Head, fit_temperature, labels_of};
use quern_engine::{Engine as _, TokenId};

use super::reference::{self, Reference};
use super::report::{Accuracy, CalibrationReport, LabelReport};
use super::scores::{Confusion, Predictions, difference, estimate};
use super::spoken::{self, Question};
use super::subject::{Machine, Needs, Subject};
use super::table::{Labelled as Row, Table};
use super::{EvalArgs, EvalError, LabellingArgs, bar, confusion, pooled};
use crate::serving::Labelled;

/// Texts that are read together.
const MAX_TEXTS: u32 = 64;

/// Each output costs two rows of logits in memory.
const MAX_OUTPUTS: u32 = 128;

/// Sequences of a step beside the labels': what prompts share, and the prompt.
const PROMPT_SEQUENCES: usize = 2;

/// Rows of a step, whose state is there beside the longest text's.
const STEP_ROWS: usize = 256;

/// A model's word on all rows.
struct Judged {
    predictions: Predictions,
    truth: Vec<usize>,
    by: &'static str,
    seconds: f64,
}

pub(super) fn run(args: &EvalArgs, csv: &Path, machine: &Machine) -> Result<LabelReport, EvalError> {
    let wishes = &args.labelling;
    if args.models.len() > 1 && !(wishes.confusion.is_empty() && wishes.predictions.is_none()) {
        return Err(EvalError::Usage("--confusion and --predictions are about one model; name one"));
    }
    let table = rows(args, csv)?;
    let mut models: Vec<Accuracy> = Vec::new();
    let mut first_right: Vec<f64> = Vec::new();
    let mut num_labels = 0;
    for model in &args.models {
        let subject = Subject::open(model, args.adapter.as_deref())?;
        let labelled = label(args, &subject, &table, machine)?;
        num_labels = labelled.predictions.labels.len();
        let right: Vec<f64> = right(&labelled);
        let mut accuracy = accuracy(args, &subject, &table, &labelled)?;
        if models.is_empty() {
            first_right = right;
        } else {
            accuracy.against_first = Some(difference(&first_right, &right));
        }
        write_files(args, &table, &labelled.predictions, &accuracy)?;
        models.push(accuracy);
    }
    Ok(LabelReport {
        csv: csv.display().to_string(),
        adapter: args.adapter.as_ref().map(|path| path.display().to_string()),
        num_rows: table.rows.len(),
        num_labels,
        models,
    })
}

pub(super) fn calibrate(
    args: &EvalArgs,
    csv: &Path,
    machine: &Machine,
) -> Result<CalibrationReport, EvalError> {
    let [model] = &args.models[..] else {
        return Err(EvalError::Usage("--calibrate is about one model; name one"));
    };
    let table = rows(args, csv)?;
    let subject = Subject::open(model, args.adapter.as_deref())?;
    let Judged { predictions, truth, .. } = label(args, &subject, &table, machine)?;
    let rows: Vec<(Vec<f32>, usize)> = predictions.scores.into_iter().zip(truth).collect();
    let fitted = fit_temperature(&rows);
    let calibration = Calibration::of(&fitted, rows.len());
    let classifier = classifier(args, &subject);
    let written = calibration.write(&classifier);
    let file = written.map_err(|source| EvalError::File { path: classifier, source })?;
    Ok(CalibrationReport {
        file: file.display().to_string(),
        calibration,
        nll_before: fitted.nll_before,
        nll_after: fitted.nll_after,
    })
}

/// Whose calibration it is: the adapter's, or that of the model whose head was merged into it.
fn classifier(args: &EvalArgs, subject: &Subject) -> PathBuf {
    args.adapter.clone().unwrap_or_else(|| subject.path.clone())
}

fn rows(args: &EvalArgs, csv: &Path) -> Result<Table, EvalError> {
    let wishes = &args.labelling;
    let mut table = Table::read(csv, &wishes.text_column, &wishes.label_column)?;
    if let Some(rows) = wishes.rows {
        table.keep(rows as usize);
    }
    Ok(table)
}

fn label(args: &EvalArgs, subject: &Subject, table: &Table, machine: &Machine) -> Result<Judged, EvalError> {
    let labels = match (&subject.head, &args.labelling.labels) {
        (Some(head), _) => head.labels.clone(),
        (None, Some(file)) => {
            labels_of(file).map_err(|fault| EvalError::Labels { path: file.clone(), fault })?
        }
        (None, None) => table.labels.clone(),
    };
    // What the model cannot answer is known before it has read anything.
    let truth = table.truth(&labels)?;
    let (scores, seconds) = match &subject.head {
        Some(head) => by_head(subject, head, table, machine)?,
        None => by_answer(args, subject, &labels, table, machine)?,
    };
    let by = if subject.head.is_some() { "head" } else { "spoken" };
    Ok(Judged { predictions: Predictions { labels, scores }, truth, by, seconds })
}

type Scores = (Vec<Vec<f32>>, f64);

fn by_head(subject: &Subject, head: &Head, table: &Table, machine: &Machine) -> Result<Scores, EvalError> {
    let texts: Vec<Vec<TokenId>> =
        table.rows.iter().map(|row| subject.text(&row.text)).collect::<Result<_, _>>()?;
    let longest = longest(subject, table, texts.iter().map(Vec::len))?;
    let kv_capacity = longest + STEP_ROWS;
    let needs = Needs { kv_capacity, max_sequences: MAX_TEXTS, max_outputs: MAX_TEXTS };
    let (mut engine, adapter) = subject.engine(needs, machine)?;
    let model = engine.capabilities().hidden_size as u64;
    if head.hidden != model {
        return Err(EvalError::HeadSize { path: subject.path.clone(), head: head.hidden, model });
    }
    let bar = bar(texts.len(), &subject.name);
    let began = Instant::now();
    let mut scores = vec![Vec::new(); texts.len()];
    pooled::read(&mut engine, adapter, &texts, &mut |idx, state| {
        scores[idx] = head.logits(state);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    Ok((scores, began.elapsed().as_secs_f64()))
}

fn by_answer(
    args: &EvalArgs,
    subject: &Subject,
    labels: &[String],
    table: &Table,
    machine: &Machine,
) -> Result<Scores, EvalError> {
    let LabellingArgs { system, end_token, .. } = &args.labelling;
    let task = subject.label_task(system.as_deref(), labels, *end_token)?;
    let question = |row: &Row| -> Result<Question, EvalError> {
        let Labelled { prompt, labels, .. } = task.encode(&subject.tokenizer, &row.text)?;
        Ok(Question { prompt, labels })
    };
    let questions: Vec<Question> = table.rows.iter().map(question).collect::<Result<_, _>>()?;
    let answer_len = |question: &Question| question.labels.max_len();
    let longest_answer = questions.iter().map(answer_len).max().unwrap_or(0);
    let lens = questions.iter().map(|question| question.prompt.len() + answer_len(question));
    let longest = longest(subject, table, lens)?;
    let max_sequences = (PROMPT_SEQUENCES + labels.len()).min(quern_llama::MAX_SEQUENCES as usize);
    let kv_capacity = longest + max_sequences * longest_answer;
    let needs = Needs { kv_capacity, max_sequences: max_sequences as u32, max_outputs: MAX_OUTPUTS };
    let (mut engine, adapter) = subject.engine(needs, machine)?;
    let bar = bar(questions.len(), &subject.name);
    let began = Instant::now();
    let scores = spoken::score(&mut engine, adapter, &questions, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    Ok((scores, began.elapsed().as_secs_f64()))
}

/// The largest of the rows' numbers of tokens, which the model must be able to read.
fn longest(subject: &Subject, table: &Table, lens: impl Iterator<Item = usize>) -> Result<usize, EvalError> {
    let longest = table.rows.iter().zip(lens).max_by_key(|(_, len)| *len);
    let (row, tokens) = longest.expect("a table has at least one row");
    let limit = subject.trained_context;
    if tokens > limit {
        let what = format!("{}, line {}", table.path.display(), row.line);
        return Err(EvalError::TooLong { what, tokens, limit });
    }
    Ok(tokens)
}

/// 1 for each row with the right label, else 0.
fn right(labelled: &Judged) -> Vec<f64> {
    let pairs = labelled.predictions.best().into_iter().zip(&labelled.truth);
    pairs.map(|(predicted, truth)| f64::from(u8::from(predicted == *truth))).collect()
}

fn accuracy(
    args: &EvalArgs,
    subject: &Subject,
    table: &Table,
    labelled: &Judged,
) -> Result<Accuracy, EvalError> {
    let Judged { predictions, truth, .. } = labelled;
    let reference = args.labelling.reference.as_deref();
    let reference = reference.map(|path| Reference::read(path, table, &predictions.labels)).transpose()?;
    let calibration = Calibration::read(&classifier(args, subject))?;
    // Fitting also says how far off rows are before it, which is all that is asked here.
    let error_at = |temperature: f32| {
        let cool = |scores: &Vec<f32>| scores.iter().map(|score| score / temperature).collect();
        let rows: Vec<(Vec<f32>, usize)> =
            predictions.scores.iter().map(cool).zip(truth.iter().copied()).collect();
        fit_temperature(&rows).ece_before
    };
    let confusion = Confusion::of(&predictions.labels, truth, &predictions.best());
    Ok(Accuracy {
        model: subject.name.clone(),
        by: labelled.by,
        accuracy: estimate(&right(labelled)),
        macro_f1: confusion.macro_f1(),
        calibration_error: error_at(1.0),
        calibrated_error: calibration.map(|calibration| error_at(calibration.temperature)),
        rows_per_second: truth.len() as f64 / labelled.seconds,
        against_first: None,
        agreement: reference.map(|reference| reference.agreement(predictions)),
        confusion,
    })
}

fn write_files(
    args: &EvalArgs,
    table: &Table,
    predictions: &Predictions,
    accuracy: &Accuracy,
) -> Result<(), EvalError> {
    let failed = |path: &Path, source| EvalError::File { path: path.to_owned(), source };
    let name = table.path.file_stem().unwrap_or_default().to_string_lossy();
    let percent = accuracy.accuracy.mean * 100.0;
    let title = format!("{name}: {percent:.1} % of {} rows ({})", table.rows.len(), accuracy.model);
    for path in &args.labelling.confusion {
        confusion::write(path, &accuracy.confusion, &title).map_err(|source| failed(path, source))?;
    }
    if let Some(path) = &args.labelling.predictions {
        reference::write(path, table, predictions).map_err(|source| failed(path, source))?;
    }
    Ok(())
}
