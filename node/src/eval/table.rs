//! Rows of texts and labels from a CSV file, and what may be wrong with one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why a CSV file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no CSV, or its rows have different lengths.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the reader said, with the line.
        reason: String,
    },
    /// A column that is needed is not there.
    #[error("{}: there is no column {wanted:?}; there are {}", path.display(), quoted(found))]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        wanted: String,
        /// All that are there.
        found: Vec<String>,
    },
    /// A cell that must say something is empty.
    #[error("{}, line {line}: the column {column:?} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The line, from 1, the header counted.
        line: u64,
        /// The column.
        column: String,
    },
    /// There are no rows.
    #[error("{}: there are no rows behind the header", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// A label that the model does not know.
    #[error("{}, line {line}: the model has no label {label:?}; it has {}", path.display(), quoted(known))]
    UnknownLabel {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The label.
        label: String,
        /// Those that it has.
        known: Vec<String>,
    },
}

/// A file of rows with a text and a label each.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Where it came from.
    pub path: PathBuf,
    /// At least one.
    pub rows: Vec<Labelled>,
    /// The labels of all rows of the file, those that are left out too, each once, in order of the alphabet.
    pub labels: Vec<String>,
    /// Rows of the file behind these, which are left out.
    pub num_left_out: usize,
}

/// A text and its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The line in the file, from 1, the header counted.
    pub line: u64,
    /// The text.
    pub text: String,
    /// What it should be called.
    pub label: String,
}

impl Table {
    /// Reads a file's columns of these names. Others are passed over.
    ///
    /// # Errors
    /// [`TableError`], naming line and column.
    pub fn read(path: &Path, text: &str, label: &str) -> Result<Table, TableError> {
        let mut cells = Cells::open(path)?;
        let (text_idx, label_idx) = (cells.column(text)?, cells.column(label)?);
        let mut rows = Vec::new();
        while let Some((line, record)) = cells.next_record()? {
            let cell = |idx: usize, column: &str| match record.get(idx).unwrap_or_default() {
                "" => Err(TableError::Empty { path: path.to_owned(), line, column: column.to_owned() }),
                cell => Ok(cell.to_owned()),
            };
            let (text, label) = (cell(text_idx, text)?, cell(label_idx, label)?);
            rows.push(Labelled { line, text, label });
        }
        if rows.is_empty() {
            return Err(TableError::NoRows { path: path.to_owned() });
        }
        let labels: BTreeSet<&String> = rows.iter().map(|row| &row.label).collect();
        let labels = labels.into_iter().cloned().collect();
        Ok(Table { path: path.to_owned(), rows, labels, num_left_out: 0 })
    }

    /// Keeps the first `num_rows`, at least one.
    pub fn keep(&mut self, num_rows: usize) {
        let num_rows = num_rows.clamp(1, self.rows.len());
        self.num_left_out += self.rows.len() - num_rows;
        self.rows.truncate(num_rows);
    }

    /// Each row's label as its place among `labels`.
    ///
    /// # Errors
    /// [`TableError::UnknownLabel`].
    pub fn truth(&self, labels: &[String]) -> Result<Vec<usize>, TableError> {
        let place = |row: &Labelled| {
            labels.iter().position(|label| *label == row.label).ok_or_else(|| TableError::UnknownLabel {
                path: self.path.clone(),
                line: row.line,
                label: row.label.clone(),
                known: labels.to_vec(),
            })
        };
        self.rows.iter().map(place).collect()
    }
}

/// The records of a CSV file that begins with a header.
pub(super) struct Cells {
    path: PathBuf,
    pub(super) header: Vec<String>,
    reader: csv::Reader<Box<dyn Read>>,
    record: csv::StringRecord,
}

impl Cells {
    pub(super) fn open(path: &Path) -> Result<Cells, TableError> {
        let file = File::open(path).map_err(|source| TableError::Io { path: path.to_owned(), source })?;
        let mut reader = csv::Reader::from_reader(Box::new(file) as Box<dyn Read>);
        let malformed = |error: csv::Error| malformed(path, &error);
        let header = reader.headers().map_err(malformed)?;
        // Spreadsheets begin their files with a mark of the byte order.
        let header = header.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
        Ok(Cells { path: path.to_owned(), header, reader, record: csv::StringRecord::new() })
    }

    /// The place of a column.
    pub(super) fn column(&self, wanted: &str) -> Result<usize, TableError> {
        self.header.iter().position(|name| name == wanted).ok_or_else(|| TableError::NoColumn {
            path: self.path.clone(),
            wanted: wanted.to_owned(),
            found: self.header.clone(),
        })
    }

    /// The next record with its line.
    pub(super) fn next_record(&mut self) -> Result<Option<(u64, &csv::StringRecord)>, TableError> {
        let more =
            self.reader.read_record(&mut self.record).map_err(|error| malformed(&self.path, &error))?;
        let line = self.record.position().map_or(0, csv::Position::line);
        Ok(more.then_some((line, &self.record)))
    }
}

fn malformed(path: &Path, error: &csv::Error) -> TableError {
    TableError::Malformed { path: path.to_owned(), reason: error.to_string() }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn told(content: &str) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.csv");
        std::fs::write(&path, content).expect("it can be written");
        let told = match Table::read(&path, "text", "label") {
            Ok(table) => format!("{:?}", table.rows),
            Err(error) => error.to_string(),
        };
        told.replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn rows_are_read_by_column_name() {
        let content = "\u{feff}label,id,text\na,1,\"one, two\nthree\"\nb,2,four\n";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.csv");
        std::fs::write(&path, content).expect("it can be written");
        let table = Table::read(&path, "text", "label").expect("it is sound");
        let row = |line, text: &str, label: &str| Labelled { line, text: text.into(), label: label.into() };
        assert_eq!(table.rows, [row(2, "one, two\nthree", "a"), row(4, "four", "b")]);
        assert_eq!(table.labels, ["a", "b"]);
        // Rows that are not judged still say what a row may be called.
        let mut first = table.clone();
        first.keep(1);
        assert_eq!((first.rows.len(), first.num_left_out, first.labels), (1, 1, table.labels.clone()));
        assert_eq!(table.truth(&["b".into(), "a".into()]).expect("both are known"), [1, 0]);
        let unknown = table.truth(&["a".into()]).expect_err("b is unknown").to_string();
        assert!(unknown.contains("line 4: the model has no label \"b\"; it has \"a\""), "{unknown}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        assert_eq!(
            told("txt,label\na,b\n"),
            r#"rows.csv: there is no column "text"; there are "txt", "label""#
        );
        assert_eq!(told("text,label\na,\n"), r#"rows.csv, line 2: the column "label" is empty"#);
        assert_eq!(told("text,label\n"), "rows.csv: there are no rows behind the header");
        assert!(told("text,label\na,b,c\n").contains("line: 2"), "{}", told("text,label\na,b,c\n"));
        let missing = Table::read(Path::new("no/such.csv"), "text", "label").expect_err("there is none");
        assert!(missing.to_string().starts_with("no/such.csv: "), "{missing}");
    }
}
