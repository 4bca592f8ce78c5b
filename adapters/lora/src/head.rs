//! A classification head: one row of weights for each label, and the labels' names.

use std::fs;
use std::io;
use std::path::Path;

use quern_gguf::{Array, ByteStrings, Metadata, Problem, Value};

use crate::error::Fault;

/// Keys of a GGUF file that carry a head. llama.cpp reads such files and passes over these keys.
const WEIGHT: &str = "quern.classifier.weight";
const BIAS: &str = "quern.classifier.bias";
const LABELS: &str = "quern.classifier.labels";

/// More than this is no label file.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// A linear layer from the last hidden state to one number a label.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// `[num_labels, hidden]`, row-major.
    pub weight: Vec<f32>,
    /// `[num_labels]`, where there is one.
    pub bias: Option<Vec<f32>>,
    /// The names of the rows, all different.
    pub labels: Vec<String>,
    /// The length of a row.
    pub hidden: u64,
}

impl Head {
    /// The keys that carry the head in a GGUF file: weights and bias as f32, labels as text.
    pub fn entries(&self) -> Vec<(&'static str, Value)> {
        let labels: ByteStrings = self.labels.iter().collect();
        let mut entries = vec![
            (WEIGHT, Value::Array(Array::F32(self.weight.clone()))),
            (LABELS, Value::Array(Array::Strings(labels))),
        ];
        if let Some(bias) = &self.bias {
            entries.push((BIAS, Value::Array(Array::F32(bias.clone()))));
        }
        entries
    }

    /// One logit a label for a hidden state: `W h + b`, summed in f64. `state` is `[hidden]`.
    ///
    /// # Panics
    ///
    /// When the state is of another length.
    #[must_use]
    pub fn logits(&self, state: &[f32]) -> Vec<f32> {
        assert_eq!(state.len() as u64, self.hidden, "a head takes hidden states of its own length");
        let dot =
            |row: &[f32]| row.iter().zip(state).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let bias = |idx: usize| self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[idx]));
        let rows = self.weight.chunks_exact(state.len());
        rows.enumerate().map(|(idx, row)| (dot(row) + bias(idx)) as f32).collect()
    }

    /// Reads the head that a GGUF file carries, if it carries one; adapters and merged models do so alike.
    ///
    /// # Errors
    ///
    /// A key has the wrong type, or weights, bias and labels disagree.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Head>, Fault> {
        let bad = |problem: Problem| Fault::BadLabels { file: "metadata", reason: problem.to_string() };
        if !metadata.contains(WEIGHT) {
            return Ok(None);
        }
        let weight = metadata.f32s(WEIGHT).map_err(bad)?.to_vec();
        let labels = metadata.strings(LABELS).map_err(bad)?.into_iter().map(str::to_owned).collect();
        let bias = match metadata.contains(BIAS) {
            true => Some(metadata.f32s(BIAS).map_err(bad)?.to_vec()),
            false => None,
        };
        Head::new(weight, bias, labels, "metadata").map(Some)
    }

    /// Puts a head together; `file` is where the labels come from.
    pub(crate) fn new(
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        labels: Vec<String>,
        file: &'static str,
    ) -> Result<Head, Fault> {
        let bad = |reason: String| Fault::BadLabels { file, reason };
        check_labels(&labels, file)?;
        if labels.is_empty() || weight.is_empty() || !weight.len().is_multiple_of(labels.len()) {
            let (weights, labels) = (weight.len(), labels.len());
            return Err(bad(format!("{weights} weights cannot be shared by {labels} labels")));
        }
        if bias.as_ref().is_some_and(|bias| bias.len() != labels.len()) {
            return Err(bad("the bias has not one number for each label".into()));
        }
        let hidden = (weight.len() / labels.len()) as u64;
        let all = weight.iter().chain(bias.iter().flatten());
        if all.into_iter().any(|value| !value.is_finite()) {
            return Err(Fault::NotFinite {
                tensor: "score.weight".into(),
                found: "a NaN or an infinity",
                element_idx: weight.iter().position(|value| !value.is_finite()).unwrap_or(0) as u64,
            });
        }
        Ok(Head { weight, bias, labels, hidden })
    }
}

/// The labels that lie beside an adapter, and the file that names them: `labels.json`, or `config.json` as
/// transformers writes it, both with an object `id2label`.
///
/// # Errors
///
/// `BadJson`, `BadLabels`, or `File`.
pub fn labels_in(folder: &Path) -> Result<Option<(Vec<String>, &'static str)>, Fault> {
    for file in ["labels.json", "config.json"] {
        let Some(text) = read_text(folder, file, MAX_TEXT_BYTES)? else { continue };
        let bad = |reason: String| Fault::BadJson { file, reason };
        let parsed: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match parsed.get("id2label").and_then(serde_json::Value::as_object) {
            Some(map) => return Ok(Some((in_order(map, file)?, file))),
            // A configuration of a model without labels is none of ours.
            None if file == "labels.json" => return Err(bad("it has no object id2label".into())),
            None => {}
        }
    }
    Ok(None)
}

/// The labels in a file: JSON with an object `id2label`, or text with one label a line. White space around
/// a line is no part of it, and empty lines are none.
///
/// # Errors
///
/// `BadJson`, `BadLabels`, or `File`.
pub fn labels_of(path: &Path) -> Result<Vec<String>, Fault> {
    const FILE: &str = "the list of labels";
    let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such file");
    let text =
        read_file(path, FILE, MAX_TEXT_BYTES)?.ok_or_else(|| Fault::File { file: FILE, error: missing() })?;
    let text = String::from_utf8(text)
        .map_err(|_| Fault::BadLabels { file: FILE, reason: "it is no UTF-8 text".into() })?;
    if text.trim_start().starts_with('{') {
        let bad = |reason: String| Fault::BadJson { file: FILE, reason };
        let parsed: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let map = parsed.get("id2label").and_then(serde_json::Value::as_object);
        return in_order(map.ok_or_else(|| bad("it has no object id2label".into()))?, FILE);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let labels: Vec<String> = lines.map(str::to_owned).collect();
    if labels.is_empty() {
        return Err(Fault::BadLabels { file: FILE, reason: "it has no labels".into() });
    }
    check_labels(&labels, FILE)?;
    Ok(labels)
}

fn in_order(
    map: &serde_json::Map<String, serde_json::Value>,
    file: &'static str,
) -> Result<Vec<String>, Fault> {
    let bad = |reason: String| Fault::BadLabels { file, reason };
    let mut labels = vec![None; map.len()];
    for (id, label) in map {
        let slot = id.parse::<usize>().ok().and_then(|id| labels.get_mut(id));
        let slot = slot.ok_or_else(|| bad(format!("{id:?} is no number below {}", map.len())))?;
        *slot = Some(label.as_str().ok_or_else(|| bad(format!("label {id} is no text")))?.to_owned());
    }
    let missing = |idx| bad(format!("there is no label {idx}"));
    let labels: Vec<String> = labels
        .into_iter()
        .enumerate()
        .map(|(idx, label)| label.ok_or_else(|| missing(idx)))
        .collect::<Result<_, _>>()?;
    check_labels(&labels, file)?;
    Ok(labels)
}

fn check_labels(labels: &[String], file: &'static str) -> Result<(), Fault> {
    let mut seen = std::collections::HashSet::new();
    for label in labels {
        if label.is_empty() || !seen.insert(label) {
            let what = if label.is_empty() { "is empty" } else { "occurs twice" };
            return Err(Fault::BadLabels { file, reason: format!("the label {label:?} {what}") });
        }
    }
    Ok(())
}

/// Reads a small file of a folder; none where there is none.
pub(crate) fn read_text(folder: &Path, file: &'static str, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    read_file(&folder.join(file), file, limit)
}

/// Reads a small file, which errors call `file`; none where there is none.
pub(crate) fn read_file(path: &Path, file: &'static str, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    let size_bytes = match fs::metadata(path) {
        Ok(found) if found.is_file() => found.len(),
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file");
            return Err(Fault::File { file, error });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Fault::File { file, error }),
    };
    if size_bytes > limit {
        return Err(Fault::FileTooLarge { file, size_bytes, limit });
    }
    fs::read(path).map(Some).map_err(|error| Fault::File { file, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_matrix_and_a_bias() {
        let labels = vec!["a".to_owned(), "b".to_owned()];
        let mut head = Head { weight: vec![1.0, 2.0, -1.0, 0.5], bias: None, labels, hidden: 2 };
        assert_eq!(head.logits(&[3.0, 4.0]), [11.0, -1.0]);
        head.bias = Some(vec![0.5, -0.5]);
        assert_eq!(head.logits(&[3.0, 4.0]), [11.5, -1.5]);
    }
}
