//! How good a model is, by `quern eval`: perplexity on a text, accuracy on labelled rows.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::lab::Lab;
use super::sheet::{Column, less, more, told};
use super::speed::Figures;
use super::texts;

/// Perplexity on a text.
pub const PERPLEXITY: Column =
    less("perplexity", "perplexity", "perplexity on the text, in windows of which the second half is judged");
/// Its standard error.
pub const PERPLEXITY_ERROR: Column = told(
    "perplexity_error",
    "± perplexity",
    "standard error of the perplexity, tokens taken for independent; settings are judged on the same tokens, so \
     differences are surer than this",
);
/// Accuracy on rows.
pub const ACCURACY: Column = more("accuracy", "accuracy", "share of the labelled rows with the right label");
/// Macro F1 on rows.
pub const MACRO_F1: Column = more("macro_f1", "macro F1", "mean of the labels' F1 scores on the same rows");
/// How many rows.
pub const NUM_ROWS: Column = told("num_rows", "rows", "labelled rows that were judged");

/// Tokens of a window.
const CONTEXT: u32 = 256;

/// Perplexity of a model, with an adapter or without.
///
/// # Errors
/// When the command fails or prints something else.
pub fn perplexity(lab: &Lab, model: &Path, adapter: Option<&Path>) -> anyhow::Result<Figures> {
    perplexity_with(lab, model, adapter, &[])
}

/// Perplexity of the model with keys and values in a format.
///
/// # Errors
/// When the command fails or prints something else.
pub fn perplexity_with_kv(lab: &Lab, kv_type: &str) -> anyhow::Result<Figures> {
    perplexity_with(lab, &lab.wish.model, None, &["--kv-type", kv_type])
}

fn perplexity_with(
    lab: &Lab,
    model: &Path,
    adapter: Option<&Path>,
    settings: &[&str],
) -> anyhow::Result<Figures> {
    let text = lab.text_file()?;
    let num_windows = if lab.wish.is_quick { 4 } else { 40 };
    let (context, num_windows) = (CONTEXT.to_string(), num_windows.to_string());
    let windows = ["--context", &context, "--chunks", &num_windows];
    let limits = windows.iter().chain(settings).map(|word| (*word).to_owned());
    let report = evaluate(lab, model, adapter, ("--text", &text), limits)?;
    let found = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let perplexity = found("/models/0/perplexity/mean").context("quern eval printed no perplexity")?;
    Ok(vec![(PERPLEXITY.id, Some(perplexity)), (PERPLEXITY_ERROR.id, found("/models/0/perplexity/error"))])
}

/// Accuracy of a model, with an adapter or without, on the rows.
///
/// # Errors
/// When the command fails or prints something else.
pub fn accuracy(lab: &Lab, model: &Path, adapter: Option<&Path>) -> anyhow::Result<Figures> {
    accuracy_on(lab, model, adapter, (&lab.rows_file()?, None))
}

/// The same on the rows of a file, with labels of which some may be no row's.
///
/// # Errors
/// When the command fails or prints something else.
pub fn accuracy_on(
    lab: &Lab,
    model: &Path,
    adapter: Option<&Path>,
    (rows, labels): (&Path, Option<&Path>),
) -> anyhow::Result<Figures> {
    let mut limits = Vec::new();
    limits.extend(labels.into_iter().flat_map(|file| ["--labels".to_owned(), file.display().to_string()]));
    limits.extend(system(lab).into_iter().flat_map(|system| ["--system".to_owned(), system.to_owned()]));
    limits.extend(["--rows".to_owned(), max_rows(lab).to_string()]);
    let report = evaluate(lab, model, adapter, ("--csv", rows), limits)?;
    let found = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let accuracy = found("/models/0/accuracy/mean").context("quern eval printed no accuracy")?;
    Ok(vec![
        (ACCURACY.id, Some(accuracy)),
        (MACRO_F1.id, found("/models/0/macro_f1")),
        (NUM_ROWS.id, found("/num_rows")),
    ])
}

/// What is said before each row: the program's own rows need their own words.
pub fn system(lab: &Lab) -> Option<&str> {
    let is_own = lab.wish.csv.is_none();
    lab.wish.system.as_deref().or(is_own.then_some(texts::ROWS_SYSTEM))
}

/// Rows that are judged at most.
pub fn max_rows(lab: &Lab) -> usize {
    if lab.wish.is_quick { 8 } else { 200 }
}

fn evaluate(
    lab: &Lab,
    model: &Path,
    adapter: Option<&Path>,
    (task, file): (&str, &Path),
    limits: impl IntoIterator<Item = String>,
) -> anyhow::Result<Value> {
    let path = |path: &Path| path.display().to_string();
    let mut arguments =
        vec!["eval".to_owned(), path(model), task.to_owned(), path(file), "--json".to_owned()];
    arguments.extend(["--threads".to_owned(), lab.wish.threads.to_string()]);
    arguments.extend(adapter.into_iter().flat_map(|adapter| ["--adapter".to_owned(), path(adapter)]));
    arguments.extend(limits);
    let printed = lab.quern(arguments)?;
    serde_json::from_str(&printed).context("quern eval printed no JSON")
}

/// What a reader must know of perplexity.
pub fn perplexity_method(lab: &Lab) -> String {
    let text = if lab.wish.text.is_some() { "a text that was given" } else { "a short text of this program" };
    format!("Perplexity: `quern eval --text`, windows of {CONTEXT} tokens, on {text}.")
}

/// What a reader must know of all these figures.
pub fn method(lab: &Lab) -> String {
    let rows = if lab.wish.csv.is_some() { "rows that were given" } else { "rows of this program" };
    format!(
        "{} Accuracy: `quern eval --csv`, at most {} {rows}; where there is no classification head, by how likely the \
         model is to answer with each label.",
        perplexity_method(lab),
        max_rows(lab)
    )
}
