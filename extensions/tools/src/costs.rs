//! What steps cost: given, kept in a file, or fitted to recorded steps.
//!
//! The shape is the scheduler's own: a step takes `fixed + rows * row +
//! outputs * output` (`node/scheduler/src/cost.rs`).

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::stats::quantile;

/// Costs of a step, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Of a step, however small.
    pub fixed_us: f64,
    /// Of each row.
    pub row_us: f64,
    /// Of each output, beyond its row's.
    pub output_us: f64,
}

/// A step that ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) took_us: f64,
}

/// Costs that were fitted, and how well they fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// The costs.
    #[serde(flatten)]
    pub costs: Costs,
    /// Steps that they were fitted to.
    pub steps: usize,
    /// Half of these steps took no further from what the costs say, as a part of
    /// what they took.
    pub error_p50: f64,
    /// All but a twentieth took no further from it.
    pub error_p95: f64,
}

impl Costs {
    /// What a step takes.
    #[must_use]
    pub fn step_us(&self, rows: u32, outputs: u32) -> f64 {
        self.fixed_us + self.row_us * f64::from(rows) + self.output_us * f64::from(outputs)
    }

    pub(crate) fn read(path: &Path) -> anyhow::Result<Costs> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let costs: Costs =
            serde_json::from_str(&text).with_context(|| format!("{} holds no costs", path.display()))?;
        costs.checked().with_context(|| format!("{} holds no costs", path.display()))
    }

    pub(crate) fn checked(self) -> anyhow::Result<Costs> {
        let each = [self.fixed_us, self.row_us, self.output_us];
        let sound = each.iter().all(|cost| (0.0..=1e9).contains(cost)) && self.step_us(1, 1) >= 1.0;
        anyhow::ensure!(sound, "costs are microseconds, none negative, and a step takes at least one");
        Ok(self)
    }
}

/// Fits costs so that relative errors are least, none negative. Steps far off,
/// which something else on the machine delayed, are left out of a second fit.
/// `None` without steps.
pub(crate) fn fit(samples: &[Sample]) -> Option<Fit> {
    let usable: Vec<Sample> = samples.iter().copied().filter(|sample| sample.took_us >= 1.0).collect();
    let first = least_squares(&usable)?;
    let mut errors: Vec<f64> = usable.iter().map(|sample| error(&first, sample)).collect();
    let limit = 5.0 * quantile(&mut errors, 0.5).max(0.01);
    let near: Vec<Sample> = usable.iter().copied().filter(|sample| error(&first, sample) <= limit).collect();
    let costs = least_squares(&near).unwrap_or(first);
    let mut errors: Vec<f64> = usable.iter().map(|sample| error(&costs, sample)).collect();
    let [error_p50, error_p95] = [0.5, 0.95].map(|share| quantile(&mut errors, share));
    Some(Fit { costs, steps: usable.len(), error_p50, error_p95 })
}

fn error(costs: &Costs, sample: &Sample) -> f64 {
    (costs.step_us(sample.rows, sample.outputs) / sample.took_us - 1.0).abs()
}

/// Minimises the sum of squared relative errors over all sets of costs that may
/// be above zero, of which there are seven.
fn least_squares(samples: &[Sample]) -> Option<Costs> {
    let mut best: Option<(f64, Costs)> = None;
    for set in 1u8..8 {
        let used: Vec<usize> = (0..3).filter(|idx| set & 1 << idx != 0).collect();
        let Some(found) = solve(samples, &used) else { continue };
        if found.iter().any(|cost| *cost < 0.0) {
            continue;
        }
        let mut each = [0.0; 3];
        used.iter().zip(found).for_each(|(&idx, cost)| each[idx] = cost);
        let [fixed_us, row_us, output_us] = each;
        let costs = Costs { fixed_us, row_us, output_us };
        let loss: f64 = samples.iter().map(|sample| error(&costs, sample).powi(2)).sum();
        if best.is_none_or(|(least, _)| loss < least) {
            best = Some((loss, costs));
        }
    }
    best.map(|(_, costs)| costs)
}

/// Solves the normal equations for some of the costs, by elimination with pivots.
/// `None` where the steps do not tell them apart.
fn solve(samples: &[Sample], used: &[usize]) -> Option<Vec<f64>> {
    let n = used.len();
    let mut matrix = vec![vec![0.0; n + 1]; n];
    for sample in samples {
        let all = [1.0, f64::from(sample.rows), f64::from(sample.outputs)];
        // Divided by the step's time, so that errors are relative.
        let part: Vec<f64> = used.iter().map(|&idx| all[idx] / sample.took_us).collect();
        for row in 0..n {
            for column in 0..n {
                matrix[row][column] += part[row] * part[column];
            }
            matrix[row][n] += part[row];
        }
    }
    let scale: Vec<f64> = (0..n).map(|idx| matrix[idx][idx]).collect();
    for pivot in 0..n {
        let most = (pivot..n).max_by(|&a, &b| matrix[a][pivot].abs().total_cmp(&matrix[b][pivot].abs()))?;
        matrix.swap(pivot, most);
        if matrix[pivot][pivot].abs() <= 1e-9 * scale[pivot] {
            return None;
        }
        let lead = matrix[pivot].clone();
        let others = matrix.iter_mut().enumerate().filter(|(idx, _)| *idx != pivot);
        for (_, row) in others {
            let factor = row[pivot] / lead[pivot];
            row.iter_mut().zip(&lead).for_each(|(value, lead)| *value -= factor * lead);
        }
    }
    Some((0..n).map(|idx| matrix[idx][n] / matrix[idx][idx]).collect())
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const TRUE_COSTS: Costs = Costs { fixed_us: 16_000.0, row_us: 6_500.0, output_us: 6_000.0 };

    #[test]
    fn finds_costs_through_noise_and_delays() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let sample = |_| {
            let outputs = random.random_range(1..9);
            let rows = outputs + random.random_range(0..80);
            let delay = if random.random_bool(0.03) { 5.0 } else { 1.0 };
            let took_us = TRUE_COSTS.step_us(rows, outputs) * random.random_range(0.95..1.05) * delay;
            Sample { rows, outputs, took_us }
        };
        let samples: Vec<Sample> = (0..1000).map(sample).collect();
        let fit = fit(&samples).unwrap();
        for (rows, outputs) in [(1, 1), (8, 8), (64, 1), (80, 8)] {
            let part = fit.costs.step_us(rows, outputs) / TRUE_COSTS.step_us(rows, outputs);
            assert!((part - 1.0).abs() < 0.05, "{rows} rows: {part}");
        }
        assert!(fit.error_p50 < 0.05, "{fit:?}");
    }

    #[test]
    fn steps_of_one_kind_give_costs_that_fit_them() {
        let sample = Sample { rows: 4, outputs: 4, took_us: 8000.0 };
        let fit = fit(&[sample; 20]).unwrap();
        assert!((fit.costs.step_us(4, 4) - 8000.0).abs() < 1.0);
        assert!(fit.costs.checked().is_ok());
        assert_eq!(super::fit(&[]), None);
    }
}
