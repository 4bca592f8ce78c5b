//! What another program said to the same rows, and how far ours is from it.
//!
//! A reference has the columns `text`, `label` and `predicted`, and one for each label
//! with its probability: the format in which [`write`] writes our own predictions, too.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::scores::Predictions;
use super::table::{Cells, Table, TableError};

/// A probability that is no further off than this counts as the same.
const CLOSE: f32 = 0.02;

/// Why predictions cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The file is unsound.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It is about other rows.
    #[error("{}, line {line}: the text is {found:?}, that of the rows to compare with is {wanted:?}", path.display())]
    OtherText {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Its text.
        found: String,
        /// The text of the row at its place.
        wanted: String,
    },
    /// It is about more or fewer rows.
    #[error("{}: there are {found} rows, and {wanted} to compare with{}", path.display(), of_more(*left_out))]
    OtherLength {
        /// The file.
        path: PathBuf,
        /// Its rows.
        found: usize,
        /// Those that were judged.
        wanted: usize,
        /// Those behind them, which were not; a reference may have them.
        left_out: usize,
    },
    /// A probability is no number.
    #[error("{}, line {line}: {found:?} is no probability", path.display())]
    NoNumber {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// What stands there.
        found: String,
    },
}

fn of_more(left_out: usize) -> String {
    match left_out {
        0 => String::new(),
        left_out => format!(" and {left_out} behind them"),
    }
}

/// Labels and probabilities of a reference, by row.
pub struct Reference {
    predicted: Vec<usize>,
    /// `[row][label]`, in the order of the labels that it was read for.
    probabilities: Vec<Vec<f32>>,
}

/// How far predictions are from a reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Rows that were compared.
    pub num_rows: usize,
    /// Rows with the same label.
    pub num_same_label: usize,
    /// Rows on which every probability is within 0.02.
    pub num_close: usize,
    /// The largest difference of a probability, over all rows and labels.
    pub largest_difference: f32,
    /// The mean over rows of the largest difference in the row.
    pub mean_difference: f64,
}

impl Reference {
    /// Reads a reference for the rows of a table and these labels. It may go on with rows
    /// that the table leaves out, which are not looked at.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn read(path: &Path, table: &Table, labels: &[String]) -> Result<Reference, ReferenceError> {
        let mut cells = Cells::open(path)?;
        let (text, predicted) = (cells.column("text")?, cells.column("predicted")?);
        let columns: Vec<usize> = labels.iter().map(|label| cells.column(label)).collect::<Result<_, _>>()?;
        let mut reference = Reference { predicted: Vec::new(), probabilities: Vec::new() };
        let mut rows = table.rows.iter();
        let mut num_rows = 0;
        while let Some((line, record)) = cells.next_record()? {
            num_rows += 1;
            // More rows than there may be is told behind the loop.
            let Some(row) = rows.next() else { continue };
            if record.get(text) != Some(row.text.as_str()) {
                let (path, found) = (path.to_owned(), record.get(text).unwrap_or_default().to_owned());
                return Err(ReferenceError::OtherText { path, line, found, wanted: row.text.clone() });
            }
            let label = record.get(predicted).unwrap_or_default();
            let place = labels.iter().position(|known| known == label);
            reference.predicted.push(place.ok_or_else(|| TableError::UnknownLabel {
                path: path.to_owned(),
                line,
                label: label.to_owned(),
                known: labels.to_vec(),
            })?);
            let number = |&column: &usize| {
                let cell = record.get(column).unwrap_or_default();
                let found: Option<f32> = cell.parse().ok().filter(|p| (0.0..=1.0).contains(p));
                let (path, found_text) = (path.to_owned(), cell.to_owned());
                found.ok_or(ReferenceError::NoNumber { path, line, found: found_text })
            };
            reference.probabilities.push(columns.iter().map(number).collect::<Result<_, _>>()?);
        }
        let (wanted, left_out) = (table.rows.len(), table.num_left_out);
        if (wanted..=wanted + left_out).contains(&num_rows) {
            return Ok(reference);
        }
        Err(ReferenceError::OtherLength { path: path.to_owned(), found: num_rows, wanted, left_out })
    }

    /// Holds predictions on the same rows and labels against it.
    #[must_use]
    pub fn agreement(&self, ours: &Predictions) -> Agreement {
        let difference = |(row_idx, theirs): (usize, &Vec<f32>)| {
            let ours = ours.probabilities(row_idx);
            ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        let differences: Vec<f32> = self.probabilities.iter().enumerate().map(difference).collect();
        let num_rows = differences.len();
        Agreement {
            num_rows,
            num_same_label: ours.best().iter().zip(&self.predicted).filter(|(a, b)| a == b).count(),
            num_close: differences.iter().filter(|difference| **difference <= CLOSE).count(),
            largest_difference: differences.iter().copied().fold(0.0, f32::max),
            mean_difference: differences.iter().map(|&d| f64::from(d)).sum::<f64>() / num_rows.max(1) as f64,
        }
    }
}

/// Writes predictions in a reference's format.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, table: &Table, ours: &Predictions) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    let header = ["text", "label", "predicted"].into_iter().chain(ours.labels.iter().map(String::as_str));
    writer.write_record(header)?;
    for (row_idx, (row, best)) in table.rows.iter().zip(ours.best()).enumerate() {
        let probabilities = ours.probabilities(row_idx).into_iter().map(|p| format!("{p:.6}"));
        let cells = [row.text.clone(), row.label.clone(), ours.labels[best].clone()];
        writer.write_record(cells.into_iter().chain(probabilities))?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(folder: &Path) -> Table {
        let path = folder.join("rows.csv");
        std::fs::write(&path, "text,label\nfirst,a\n\"one, two\",b\n").expect("it can be written");
        Table::read(&path, "text", "label").expect("it is sound")
    }

    fn labels() -> Vec<String> {
        vec!["a".into(), "b".into()]
    }

    #[test]
    fn predictions_agree_with_themselves_and_are_told_from_others() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (table, path) = (table(folder.path()), folder.path().join("reference.csv"));
        let ours = Predictions { labels: labels(), scores: vec![vec![2.0, 1.0], vec![0.0, 3.0]] };
        write(&path, &table, &ours).expect("it can be written");
        let reference = Reference::read(&path, &table, &labels()).expect("it is sound");
        let agreement = reference.agreement(&ours);
        assert_eq!((agreement.num_rows, agreement.num_same_label, agreement.num_close), (2, 2, 2));
        assert!(agreement.largest_difference < 1e-6);

        // The second row turns round: its probabilities are 0.047 and 0.953.
        let other = Predictions { labels: labels(), scores: vec![vec![2.0, 1.0], vec![3.0, 0.0]] };
        let agreement = reference.agreement(&other);
        assert_eq!((agreement.num_same_label, agreement.num_close), (1, 1));
        assert!((agreement.largest_difference - 0.9051).abs() < 1e-3, "{}", agreement.largest_difference);
        assert!((agreement.mean_difference - 0.4526).abs() < 1e-3, "{}", agreement.mean_difference);
    }

    #[test]
    fn what_does_not_belong_together_is_said() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (table, path) = (table(folder.path()), folder.path().join("reference.csv"));
        let told = |content: &str| {
            std::fs::write(&path, content).expect("it can be written");
            match Reference::read(&path, &table, &labels()) {
                Ok(_) => "nothing".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        let header = "text,label,predicted,a,b\n";
        let first = "first,a,a,0.9,0.1\n";
        assert!(told("text,predicted,a\n").contains("there is no column \"b\""));
        assert!(told(&format!("{header}{first}")).contains("there are 1 rows, and 2 to compare with"));
        assert!(told(&format!("{header}second,a,a,1,0\n")).contains("line 2: the text is \"second\""));
        assert!(told(&format!("{header}first,a,c,1,0\n")).contains("line 2: the model has no label \"c\""));
        assert!(told(&format!("{header}first,a,a,1,x\n")).contains("line 2: \"x\" is no probability"));
        let more = format!("{header}{first}\"one, two\",b,b,0,1\n");
        assert_eq!(told(&more), "nothing");
        assert!(told(&format!("{more}{first}")).contains("there are 3 rows"));
    }

    #[test]
    fn rows_that_are_left_out_may_be_in_a_reference() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut table, path) = (table(folder.path()), folder.path().join("reference.csv"));
        table.keep(1);
        let read = |rows: &str| {
            std::fs::write(&path, format!("text,label,predicted,a,b\n{rows}")).expect("it can be written");
            Reference::read(&path, &table, &labels()).map_err(|error| error.to_string())
        };
        let (first, second) = ("first,a,a,0.9,0.1\n", "\"one, two\",b,b,0,1\n");
        for rows in [first.to_owned(), format!("{first}{second}")] {
            let ours = Predictions { labels: labels(), scores: vec![vec![2.0, 1.0]] };
            let agreement = read(&rows).expect("it begins with the row that is judged").agreement(&ours);
            assert_eq!((agreement.num_rows, agreement.num_same_label), (1, 1));
        }
        let told = |rows: &str| read(rows).err().unwrap_or_default();
        assert!(told(&format!("{second}{first}")).contains("line 2: the text is \"one, two\""));
        let many = told(&[first, second, second].concat());
        assert!(many.contains("there are 3 rows, and 1 to compare with and 1 behind them"), "{many}");
        assert!(told("").contains("there are 0 rows"));
    }
}
