//! What was found, as JSON and as lines for people.

use std::fmt;

use quern_adapters::Calibration;
use serde::Serialize;

use super::reference::Agreement;
use super::scores::{Confusion, Estimate};

/// What was found.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub(super) enum Report {
    Text(TextReport),
    Labels(LabelReport),
    Calibration(CalibrationReport),
}

/// Perplexities on a text.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TextReport {
    pub(super) text: String,
    /// Tokens in a window, and from one window's beginning to the next one's.
    pub(super) context: u32,
    pub(super) stride: u32,
    pub(super) adapter: Option<String>,
    pub(super) models: Vec<Perplexity>,
}

/// One model's perplexity.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Perplexity {
    pub(super) model: String,
    pub(super) perplexity: Estimate,
    /// The mean negative log-likelihood of a token, in nats.
    pub(super) loss: Estimate,
    pub(super) num_windows: usize,
    pub(super) num_judged: usize,
    pub(super) tokens_per_second: f64,
    /// None for the first model, and where the tokens are others.
    pub(super) against_first: Option<Against>,
}

/// A model held against the first.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Against {
    /// Its perplexity less the first one's.
    pub(super) perplexity: Estimate,
    /// Its perplexity over the first one's.
    pub(super) ratio: Estimate,
}

/// Accuracies on labelled rows.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LabelReport {
    pub(super) csv: String,
    pub(super) adapter: Option<String>,
    pub(super) num_rows: usize,
    pub(super) num_labels: usize,
    pub(super) models: Vec<Accuracy>,
}

/// One model's accuracy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Accuracy {
    pub(super) model: String,
    /// `head`, or `spoken` where labels are judged by how likely they are as an answer.
    pub(super) by: &'static str,
    pub(super) accuracy: Estimate,
    pub(super) macro_f1: f64,
    /// How far confidence is from accuracy, as it is and with the calibration that lies beside the adapter.
    pub(super) calibration_error: f64,
    pub(super) calibrated_error: Option<f64>,
    pub(super) rows_per_second: f64,
    /// Less the first one's accuracy, by row.
    pub(super) against_first: Option<Estimate>,
    pub(super) agreement: Option<Agreement>,
    pub(super) confusion: Confusion,
}

/// A temperature that was fitted.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CalibrationReport {
    pub(super) file: String,
    #[serde(flatten)]
    pub(super) calibration: Calibration,
    /// Mean negative log-likelihood of the true labels before and after, in nats.
    pub(super) nll_before: f64,
    pub(super) nll_after: f64,
}

impl Report {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("reports have only text keys") + "\n"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Text(report) => report.fmt(f),
            Report::Labels(report) => report.fmt(f),
            Report::Calibration(report) => report.fmt(f),
        }
    }
}

impl fmt::Display for TextReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.models[0];
        let (windows, judged) = (first.num_windows, first.num_judged);
        writeln!(f, "{}: {windows} windows of {} tokens, {judged} tokens judged", self.text, self.context)?;
        let width = name_width(self.models.iter().map(|model| &model.model));
        for model in &self.models {
            let Estimate { mean, error } = model.perplexity;
            write!(f, "{:width$}  perplexity {mean:.4} ± {error:.4}", model.model)?;
            if let Some(Against { perplexity, ratio }) = &model.against_first {
                let (percent, percent_error) = ((ratio.mean - 1.0) * 100.0, ratio.error * 100.0);
                write!(f, "  {:+.4} ± {:.4}", perplexity.mean, perplexity.error)?;
                write!(f, " ({percent:+.2} ± {percent_error:.2} %)")?;
            }
            writeln!(f, "  {:.0} tokens/s", model.tokens_per_second)?;
        }
        Ok(())
    }
}

impl fmt::Display for LabelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} rows, {} labels", self.csv, self.num_rows, self.num_labels)?;
        let width = name_width(self.models.iter().map(|model| &model.model));
        for model in &self.models {
            let Estimate { mean, error } = model.accuracy;
            let (percent, error) = (mean * 100.0, error * 100.0);
            write!(f, "{:width$}  accuracy {percent:.2} ± {error:.2} %", model.model)?;
            if let Some(against) = &model.against_first {
                write!(f, " ({:+.2} ± {:.2})", against.mean * 100.0, against.error * 100.0)?;
            }
            write!(f, "  macro F1 {:.4}", model.macro_f1)?;
            write!(f, "  calibration error {:.4}", model.calibration_error)?;
            if let Some(calibrated) = model.calibrated_error {
                write!(f, " ({calibrated:.4} calibrated)")?;
            }
            writeln!(f, "  {:.1} rows/s, by {}", model.rows_per_second, model.by)?;
            if let Some(agreement) = &model.agreement {
                write_agreement(f, agreement)?;
            }
        }
        if let [model] = &self.models[..] {
            for (truth, predicted, count) in model.confusion.mistakes(5) {
                writeln!(f, "  {truth} taken for {predicted}: {count}")?;
            }
        }
        Ok(())
    }
}

fn write_agreement(f: &mut fmt::Formatter<'_>, agreement: &Agreement) -> fmt::Result {
    let &Agreement { num_rows, num_same_label, num_close, largest_difference, mean_difference } = agreement;
    let percent = |num: usize| 100.0 * num as f64 / num_rows.max(1) as f64;
    writeln!(
        f,
        "  against the reference: same label {:.2} % ({num_same_label} of {num_rows}), all probabilities within \
         0.02 on {:.2} %, largest difference {largest_difference:.4}, mean of rows' largest {mean_difference:.4}",
        percent(num_same_label),
        percent(num_close),
    )
}

impl fmt::Display for CalibrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Calibration { temperature, rows, ece_before, ece_after } = self.calibration;
        let (nll_before, nll_after) = (self.nll_before, self.nll_after);
        writeln!(f, "{}: temperature {temperature:.4}, fitted on {rows} rows", self.file)?;
        writeln!(f, "negative log-likelihood {nll_before:.4} became {nll_after:.4}")?;
        writeln!(f, "expected calibration error {ece_before:.4} became {ece_after:.4}")
    }
}

fn name_width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0)
}
