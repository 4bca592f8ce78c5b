//! Confidence that means what it says: one temperature, fitted on rows that were held back from training.
//!
//! Softmax of a classifier's scores is mostly too sure of itself. Dividing the scores by one number changes
//! no label and makes "90 %" come true nine times out of ten (Guo et al., 2017, "On Calibration of Modern
//! Neural Networks"). The number lies in a small file beside the adapter, where the node finds it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Fault};
use crate::head::read_file;

/// The file's name in an adapter's folder, and the end of its name beside a GGUF file.
const FILE: &str = "calibration.json";

/// More than this is no calibration.
const MAX_BYTES: u64 = 64 << 10;

/// Temperatures are sought between the inverse of this and this: rows that are all right have their minimum
/// at zero, where every answer would be called certain.
const MAX_TEMPERATURE: f64 = 20.0;

/// Halvings of the range of 1/T: enough for every digit of an f32.
const HALVINGS: usize = 60;

/// Bins of equal width over confidence, as in the paper.
const BINS: usize = 15;

/// A score counts as no further below the best of its row than this, so that an impossible label that was the
/// right one costs much and not infinitely much.
const MAX_DISTANCE: f64 = 100.0;

/// What fitting found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// What to divide scores by before softmax; 1 where there were no rows.
    pub temperature: f32,
    /// Mean negative log-likelihood of the true labels at temperature 1, in nats.
    pub nll_before: f64,
    /// The same at the fitted temperature, never larger.
    pub nll_after: f64,
    /// Expected calibration error at temperature 1, from 0 to 1.
    pub ece_before: f64,
    /// The same at the fitted temperature.
    pub ece_after: f64,
}

/// Fits the temperature that makes the true labels likeliest. A row is a classifier's scores, one for each
/// label (logits or log-probabilities: a constant on top makes no difference), and the index of the true one.
/// Rows should be of texts that the classifier was not trained on.
///
/// A score that is not finite counts as far below the others.
///
/// # Panics
///
/// When a row has no scores or its true label is none of them.
#[must_use]
pub fn fit_temperature(rows: &[(Vec<f32>, usize)]) -> Fitted {
    let rows: Vec<Row> = rows.iter().map(|(scores, label)| Row::new(scores, *label)).collect();
    let inverse = best_inverse(&rows);
    let (before, after) = (measure(&rows, 1.0), measure(&rows, inverse));
    Fitted {
        temperature: (1.0 / inverse) as f32,
        nll_before: before.nll,
        nll_after: after.nll,
        ece_before: before.ece,
        ece_after: after.ece,
    }
}

/// Scores as distances below the best.
struct Row {
    scores: Vec<f64>,
    label: usize,
}

impl Row {
    fn new(scores: &[f32], label: usize) -> Row {
        assert!(label < scores.len(), "the true label is one of the row's");
        let finite = scores.iter().copied().filter(|score| score.is_finite());
        let best = f64::from(finite.fold(f32::NEG_INFINITY, f32::max));
        let below = |&score: &f32| {
            let distance = best - f64::from(score);
            if score.is_finite() && distance < MAX_DISTANCE { -distance } else { -MAX_DISTANCE }
        };
        Row { scores: scores.iter().map(below).collect(), label }
    }

    /// Softmax at 1/T, and the mean score under it.
    fn probabilities(&self, inverse: f64, out: &mut Vec<f64>) -> f64 {
        out.clear();
        out.extend(self.scores.iter().map(|score| (score * inverse).exp()));
        let total: f64 = out.iter().sum();
        out.iter_mut().for_each(|weight| *weight /= total);
        out.iter().zip(&self.scores).map(|(probability, score)| probability * score).sum()
    }
}

/// The likelihood is concave in 1/T, so its slope has one zero at most, and halving finds it.
fn best_inverse(rows: &[Row]) -> f64 {
    if rows.is_empty() {
        return 1.0;
    }
    let mut buffer = Vec::new();
    let mut slope = |inverse: f64| -> f64 {
        rows.iter().map(|row| row.scores[row.label] - row.probabilities(inverse, &mut buffer)).sum()
    };
    let (mut low, mut high) = (1.0 / MAX_TEMPERATURE, MAX_TEMPERATURE);
    // Scores that say nothing have no best temperature: 1 is as good as any.
    if slope(1.0) == 0.0 {
        return 1.0;
    }
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        if slope(middle) > 0.0 { low = middle } else { high = middle }
    }
    (low * high).sqrt()
}

struct Measured {
    nll: f64,
    ece: f64,
}

/// Likelihood and calibration error: in each bin of confidence, how far its mean is from the share of rows
/// that are right, weighted by the rows in it.
fn measure(rows: &[Row], inverse: f64) -> Measured {
    let mut buffer = Vec::new();
    let mut nll = 0.0;
    let mut bins = [(0.0_f64, 0.0_f64); BINS];
    for row in rows {
        row.probabilities(inverse, &mut buffer);
        nll -= buffer[row.label].max(f64::MIN_POSITIVE).ln();
        let first = (0, f64::NEG_INFINITY);
        let better = |best: (usize, f64), (idx, &p): (usize, &f64)| if p > best.1 { (idx, p) } else { best };
        let (best, confidence) = buffer.iter().enumerate().fold(first, better);
        let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += confidence;
        bin.1 += f64::from(u8::from(best == row.label));
    }
    let num_rows = rows.len().max(1) as f64;
    let gap: f64 = bins.iter().map(|(confidence, right)| (confidence - right).abs()).sum();
    Measured { nll: nll / num_rows, ece: gap / num_rows }
}

/// What lies beside an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// What to divide scores by before softmax.
    pub temperature: f32,
    /// Rows that it was fitted on.
    #[serde(default)]
    pub rows: usize,
    /// Expected calibration error on them at temperature 1.
    #[serde(default)]
    pub ece_before: f64,
    /// The same at the fitted temperature.
    #[serde(default)]
    pub ece_after: f64,
}

impl Calibration {
    /// What to keep of a fit on so many rows.
    #[must_use]
    pub fn of(fitted: &Fitted, rows: usize) -> Calibration {
        let &Fitted { temperature, ece_before, ece_after, .. } = fitted;
        Calibration { temperature, rows, ece_before, ece_after }
    }

    /// Where the calibration of an adapter, or of a model with a head, lies: `calibration.json` in a folder,
    /// `NAME.calibration.json` beside a file `NAME.gguf`.
    #[must_use]
    pub fn path_of(adapter: &Path) -> PathBuf {
        if adapter.is_dir() {
            return adapter.join(FILE);
        }
        adapter.with_extension(FILE)
    }

    /// Reads the calibration of an adapter; none where there is none.
    ///
    /// # Errors
    ///
    /// [`Fault::BadJson`] where the file says nothing of use, or [`Fault::File`].
    pub fn read(adapter: &Path) -> Result<Option<Calibration>, AdapterError> {
        let path = Calibration::path_of(adapter);
        let wrong = |fault: Fault| AdapterError { path: path.clone(), fault };
        let Some(text) = read_file(&path, FILE, MAX_BYTES).map_err(wrong)? else { return Ok(None) };
        let bad = |reason: String| wrong(Fault::BadJson { file: FILE, reason });
        let read: Calibration = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if !(read.temperature.is_finite() && read.temperature > 0.0) {
            return Err(bad(format!("the temperature {} is not above 0", read.temperature)));
        }
        Ok(Some(read))
    }

    /// Writes the calibration beside its adapter, whole or not at all, and says where.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn write(&self, adapter: &Path) -> io::Result<PathBuf> {
        let path = Calibration::path_of(adapter);
        let partial = path.with_extension("json.partial");
        let text = serde_json::to_string_pretty(self).expect("numbers always serialise");
        fs::write(&partial, text + "\n")?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests;
