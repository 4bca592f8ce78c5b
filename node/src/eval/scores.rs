//! What predictions are worth: F1, the confusion matrix, means with their errors, and the difference
//! between two models on the same rows. Numbers only; no files and no engines.

use serde::Serialize;

/// What a model said to each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The labels' names.
    pub labels: Vec<String>,
    /// For each row one logit or log-probability a label; unnormalised.
    pub scores: Vec<Vec<f32>>,
}

impl Predictions {
    /// The likeliest label of each row, the first of equals.
    #[must_use]
    pub fn best(&self) -> Vec<usize> {
        let best = |scores: &Vec<f32>| {
            let first = scores.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
            first.map_or(0, |(idx, _)| idx)
        };
        self.scores.iter().map(best).collect()
    }

    /// The probabilities of a row's labels.
    #[must_use]
    pub fn probabilities(&self, row_idx: usize) -> Vec<f32> {
        softmax(&self.scores[row_idx])
    }
}

/// Logits as probabilities.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| (power / sum) as f32).collect()
}

/// How often each label was taken for each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confusion {
    /// The labels' names.
    pub labels: Vec<String>,
    /// `[true label][predicted label]`: rows.
    pub counts: Vec<Vec<u32>>,
}

impl Confusion {
    /// Counts pairs of true and predicted labels.
    ///
    /// # Panics
    /// When a number is not below the number of labels.
    #[must_use]
    pub fn of(labels: &[String], truth: &[usize], predicted: &[usize]) -> Confusion {
        let mut counts = vec![vec![0; labels.len()]; labels.len()];
        truth.iter().zip(predicted).for_each(|(&truth, &predicted)| counts[truth][predicted] += 1);
        Confusion { labels: labels.to_vec(), counts }
    }

    /// The mean over labels of F1, the harmonic mean of precision and recall. Labels that
    /// neither occur nor were predicted do not count.
    #[must_use]
    pub fn macro_f1(&self) -> f64 {
        let f1s: Vec<f64> = (0..self.labels.len()).filter_map(|idx| self.f1(idx)).collect();
        f1s.iter().sum::<f64>() / f1s.len().max(1) as f64
    }

    /// F1 of one label: 2 right / (occurring + predicted).
    fn f1(&self, idx: usize) -> Option<f64> {
        let occurring: u32 = self.counts[idx].iter().sum();
        let predicted: u32 = self.counts.iter().map(|row| row[idx]).sum();
        let both = occurring + predicted;
        (both > 0).then(|| 2.0 * f64::from(self.counts[idx][idx]) / f64::from(both))
    }

    /// The pairs of labels that were taken for each other most often: true, predicted, rows.
    #[must_use]
    pub fn mistakes(&self, num: usize) -> Vec<(&str, &str, u32)> {
        let mut pairs = Vec::new();
        for (truth, row) in self.counts.iter().enumerate() {
            for (predicted, &count) in
                row.iter().enumerate().filter(|(idx, count)| *idx != truth && **count > 0)
            {
                pairs.push((self.labels[truth].as_str(), self.labels[predicted].as_str(), count));
            }
        }
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.2));
        pairs.truncate(num);
        pairs
    }
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean; 0 of a single value.
    pub error: f64,
}

/// The mean of independent values, with the error that their spread tells.
#[must_use]
pub fn estimate(values: &[f64]) -> Estimate {
    let num = values.len() as f64;
    let mean = values.iter().sum::<f64>() / num.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    let error = if num > 1.0 { (squares / (num - 1.0) / num).sqrt() } else { 0.0 };
    Estimate { mean, error }
}

/// The mean of `b - a` over pairs. Its error is that of the differences, which is far
/// smaller than that of either side where both do ill on the same rows.
#[must_use]
pub fn difference(a: &[f64], b: &[f64]) -> Estimate {
    estimate(&a.iter().zip(b).map(|(a, b)| b - a).collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn f1_by_hand() {
        // a: 2 right, 1 taken for b. b: 1 right. c: taken for a. d never occurs.
        let confusion = Confusion::of(&names(&["a", "b", "c", "d"]), &[0, 0, 0, 1, 2], &[0, 0, 1, 1, 0]);
        assert_eq!(confusion.counts, [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0; 4]]);
        // a: 2*2/(3+3), b: 2*1/(1+2), c: 0.
        let f1 = (4.0 / 6.0 + 2.0 / 3.0 + 0.0) / 3.0;
        assert!((confusion.macro_f1() - f1).abs() < 1e-12, "{}", confusion.macro_f1());
        assert_eq!(confusion.mistakes(5), [("a", "b", 1), ("c", "a", 1)]);
    }

    #[test]
    fn the_likeliest_label_is_the_first_of_equals() {
        let scores = vec![vec![1.0, 3.0, 3.0], vec![-5.0, -7.0, -6.0]];
        let predictions = Predictions { labels: names(&["a", "b", "c"]), scores };
        assert_eq!(predictions.best(), [1, 0]);
        let probabilities = predictions.probabilities(0);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((probabilities[1] / probabilities[0] - 2f32.exp()).abs() < 1e-5);
        assert_eq!(softmax(&[1000.0, 0.0]), [1.0, 0.0]);
    }

    #[test]
    fn errors_follow_from_the_spread() {
        let one = estimate(&[1.0, 3.0]);
        assert!((one.mean - 2.0).abs() < 1e-12 && (one.error - 1.0).abs() < 1e-12, "{one:?}");
        assert_eq!(estimate(&[5.0]), Estimate { mean: 5.0, error: 0.0 });
        // Both err on the same rows: the difference is certain.
        assert_eq!(difference(&[1.0, 9.0, 4.0], &[2.0, 10.0, 5.0]), Estimate { mean: 1.0, error: 0.0 });
    }
}
