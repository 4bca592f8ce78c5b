//! Reads the `results.csv` that an experiment left, with the lines that its figures stand in.
//!
//! The head of the file says its layout. An earlier one is converted, and says what it lacks; a later one is refused,
//! because what its columns mean is not known here. `section.rs` writes these files.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::section::{CSV_FILE, CSV_LAYOUT};
use crate::output::spread_cell;
use crate::stats::{Spread, first_seen};

/// What each earlier layout lacks, from layout 1 on.
const LACKS: [&str; 1] =
    ["its head does not name machine, versions and command, and `hardware` has no latencies"];

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum ReadingError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It has no head that says what it is.
    #[error("{}: no line `# quern-bench experiment NAME, layout N, DATE`: no experiment wrote this file", path.display())]
    NoHead {
        /// The file.
        path: PathBuf,
    },
    /// It is of a later version.
    #[error(
        "{}: in layout {layout}, but this version reads layouts 1 to {CSV_LAYOUT}: use the version of quern-bench that \
         wrote it, or a later one",
        path.display()
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// The layout that it says.
        layout: u32,
    },
    /// It is no table, or lacks a column that every experiment has.
    #[error("{}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A figure is no number.
    #[error("{}: line {line}, column {column}: {text:?} is no number", path.display())]
    Cell {
        /// The file.
        path: PathBuf,
        /// One-based.
        line: u64,
        /// The column's name.
        column: String,
        /// What stands there.
        text: String,
    },
}

/// What the head of the file says.
#[derive(Debug, Default)]
pub struct Head {
    /// The experiment.
    pub name: String,
    /// When it began, UTC.
    pub date: String,
    /// Where it was made.
    pub machine: Option<String>,
    /// How it was called.
    pub command: Option<String>,
    /// The model and the settings that all share.
    pub notes: Vec<String>,
    layout: u32,
}

/// The figures of an experiment as it left them.
#[derive(Debug)]
pub struct Measured {
    /// The file.
    pub path: PathBuf,
    /// What its head says.
    pub head: Head,
    /// Says that it was converted, from which layout, and what it lacks.
    pub converted: Option<String>,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    line: u64,
    setting: String,
    level: f64,
    round: String,
    values: Vec<Option<f64>>,
}

/// A setting's figure over the rounds, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Cited {
    /// The figure.
    pub spread: Spread,
    /// Its column.
    pub column: String,
    /// The file, as it was named to [`read`].
    pub path: PathBuf,
    /// Its lines there, one-based.
    pub lines: Vec<u64>,
}

impl Cited {
    /// The median.
    pub fn median(&self) -> f64 {
        self.spread.median
    }
}

impl std::fmt::Display for Cited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.lines.iter().map(u64::to_string).collect();
        let plural = if lines.len() == 1 { "" } else { "s" };
        let (column, path) = (&self.column, self.path.display());
        write!(f, "{column} {} ({path}, line{plural} {})", spread_cell(Some(self.spread)), lines.join(", "))
    }
}

/// Reads the figures of an experiment from its folder's `results.csv`, or from such a file.
///
/// # Errors
/// When it cannot be read, is of a later layout, or is no such table.
pub fn read(path: &Path) -> Result<Measured, ReadingError> {
    let path = if path.is_dir() { path.join(CSV_FILE) } else { path.to_owned() };
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(path, &text),
        Err(source) => Err(ReadingError::Read { path, source }),
    }
}

fn parse(path: PathBuf, text: &str) -> Result<Measured, ReadingError> {
    let Some(head) = head_of(text) else { return Err(ReadingError::NoHead { path }) };
    let layout = head.layout;
    if layout == 0 || layout > CSV_LAYOUT {
        return Err(ReadingError::Later { path, layout });
    }
    let lacks = LACKS.get(layout as usize - 1);
    let converted = lacks.map(|lacks| format!("converted from layout {layout} to {CSV_LAYOUT}: {lacks}"));
    let (columns, rows) = table_of(&path, text)?;
    Ok(Measured { path, head, converted, columns, rows })
}

/// The comments before the table; none if they do not say what the file is.
fn head_of(text: &str) -> Option<Head> {
    let mut head = Head::default();
    for line in text.lines().map_while(|line| line.strip_prefix("# ")) {
        if let Some(rest) = line.strip_prefix("quern-bench experiment ") {
            let (name, rest) = rest.split_once(", layout ")?;
            let (layout, date) = rest.split_once(", ")?;
            (head.name, head.layout, head.date) = (name.to_owned(), layout.parse().ok()?, date.to_owned());
        } else if let Some((key, value)) = line.split_once(": ") {
            let value = value.to_owned();
            match key {
                "machine" => head.machine = Some(value),
                "command" => head.command = Some(value),
                "note" => head.notes.push(value),
                _ => {}
            }
        }
    }
    (!head.name.is_empty()).then_some(head)
}

fn table_of(path: &Path, text: &str) -> Result<(Vec<String>, Vec<Row>), ReadingError> {
    let wrong = |reason: String| ReadingError::Table { path: path.to_owned(), reason };
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| wrong(error.to_string()))?.clone();
    let names: Vec<&str> = header.iter().collect();
    // Figures stand between the round and the reason why there are none.
    let (round_idx, columns) = match names[..] {
        ["setting", "round", ref columns @ .., "failed"] => (1, columns),
        ["setting", _, "round", ref columns @ .., "failed"] => (2, columns),
        _ => return Err(wrong(format!("no columns setting, round and failed, but {}", names.join(", ")))),
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |idx: usize| -> Result<Option<f64>, ReadingError> {
            let text = &record[idx];
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
            if text.is_empty() || value.is_some() {
                return Ok(value);
            }
            let (path, column) = (path.to_owned(), names[idx].to_owned());
            Err(ReadingError::Cell { path, line, column, text: text.to_owned() })
        };
        // A setting that failed has a line of its own, with the reason alone.
        if !record[names.len() - 1].is_empty() {
            continue;
        }
        let level = if round_idx == 2 { number(1)? } else { None };
        let values = (round_idx + 1..=round_idx + columns.len()).map(number).collect::<Result<_, _>>()?;
        let (setting, round) = (record[0].to_owned(), record[round_idx].to_owned());
        rows.push(Row { line, setting, level: level.unwrap_or(0.0), round, values });
    }
    Ok((columns.iter().map(|name| (*name).to_owned()).collect(), rows))
}

impl Measured {
    /// Settings in the order in which they were first measured.
    pub fn settings(&self) -> Vec<&str> {
        first_seen(self.rows.iter().map(|row| row.setting.as_str()))
    }

    /// Levels at which a setting has a figure, from the lowest; 0 alone where an experiment has no levels.
    pub fn levels(&self, setting: &str, column: &str) -> Vec<f64> {
        let mut levels: Vec<f64> = self.values(setting, column).map(|(row, _)| row.level).collect();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        levels
    }

    /// A setting's figure at a level; none where it was not measured.
    pub fn figure(&self, setting: &str, level: f64, column: &str) -> Option<Cited> {
        let at_level =
            || self.values(setting, column).filter(move |(row, _)| row.level.total_cmp(&level).is_eq());
        let spread = Spread::of(at_level().map(|(_, value)| value))?;
        let lines = at_level().map(|(row, _)| row.line).collect();
        Some(Cited { spread, column: column.to_owned(), path: self.path.clone(), lines })
    }

    /// One setting's figure over another's at a level, round by round; none where no round has both.
    pub fn ratio(&self, over: &str, under: &str, level: f64, column: &str) -> Option<Spread> {
        let at_level = |setting| {
            let of_setting = self.values(setting, column);
            of_setting.filter(move |(row, _)| row.level.total_cmp(&level).is_eq()).collect::<Vec<_>>()
        };
        let unders = at_level(under);
        let pairs = at_level(over).into_iter().filter_map(|(row, value)| {
            let (_, under) = unders.iter().find(|(other, _)| other.round == row.round)?;
            (*under > 0.0).then(|| value / under)
        });
        Spread::of(pairs)
    }

    fn values<'a>(&'a self, setting: &'a str, column: &str) -> impl Iterator<Item = (&'a Row, f64)> {
        let idx = self.columns.iter().position(|name| name == column);
        let of_setting = self.rows.iter().filter(move |row| row.setting == setting);
        of_setting.filter_map(move |row| Some((row, row.values[idx?]?)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HEAD: &str = "# A probe: What is it?\n# quern-bench experiment probe, layout 2, 2026-01-31T00:00:00Z\n\
                        # machine: a box\n# command: quern-bench experiment probe\n# note: one model\n";

    /// Results with this table behind a good head.
    pub(crate) fn measured(path: &str, table: &str) -> Measured {
        parse(path.into(), &format!("{HEAD}{table}")).unwrap()
    }

    fn told(text: &str) -> String {
        parse("r.csv".into(), text).unwrap_err().to_string()
    }

    #[test]
    fn figures_are_read_with_their_lines() {
        let table = "setting,length_tokens,round,speed,size,failed\nf16,64,0,10.5,,\nq8,64,0,21,,\nf16,64,1,11.5,,\n\
                     q8,64,1,24,7,\nf16,256,0,3,,\nq2,,,,,no such format\n";
        let read = measured("r.csv", table);
        assert_eq!((read.head.name.as_str(), read.head.machine.as_deref()), ("probe", Some("a box")));
        assert_eq!((read.settings(), read.levels("f16", "speed")), (vec!["f16", "q8"], vec![64.0, 256.0]));
        let cited = read.figure("f16", 64.0, "speed").unwrap();
        assert_eq!((cited.median(), cited.lines.clone()), (11.0, vec![7, 9]));
        assert_eq!(cited.to_string(), "speed 11.0 [10.5–11.5] (r.csv, lines 7, 9)");
        let one = read.figure("q8", 64.0, "size").unwrap();
        assert_eq!(one.to_string(), "size 7.00 (r.csv, line 10)");
        assert_eq!(read.figure("q8", 256.0, "speed"), None);
        assert_eq!(read.figure("q8", 64.0, "no such column"), None);
        let ratio = read.ratio("q8", "f16", 64.0, "speed").unwrap();
        assert!((ratio.min - 2.0).abs() < 1e-9 && ratio.count == 2);
        assert_eq!(read.converted, None);
    }

    #[test]
    fn an_experiment_without_levels_is_at_level_0() {
        let read = measured("r.csv", "setting,round,speed,failed\noff,0,2,\n");
        assert_eq!(read.levels("off", "speed"), [0.0]);
        assert!(read.figure("off", 0.0, "speed").is_some());
    }

    #[test]
    fn another_layout_is_converted_or_refused_by_name() {
        let text = format!("{HEAD}setting,round,speed,failed\noff,0,2,\n");
        let old = parse("r.csv".into(), &text.replace("layout 2", "layout 1")).unwrap();
        assert!(old.converted.unwrap().contains("from layout 1 to 2"));
        let later = told(&text.replace("layout 2", "layout 3"));
        assert!(later.starts_with("r.csv: in layout 3, but this version reads layouts 1 to 2"), "{later}");
        assert!(told(&text.replace("layout 2", "layout 0")).contains("layout 0"));
        for head in ["layout two", "layout"] {
            assert!(told(&text.replace("layout 2", head)).contains("no experiment wrote this file"));
        }
    }

    #[test]
    fn other_files_and_broken_cells_are_refused_with_their_place() {
        for text in ["", "setting,round,failed\n", "<html></html>"] {
            assert!(told(text).contains("no experiment wrote this file"), "{text}");
        }
        assert!(told(&format!("{HEAD}name,value\na,1\n")).contains("no columns setting, round and failed"));
        let cell = told(&format!("{HEAD}setting,round,speed,failed\noff,0,fast,\n"));
        assert_eq!(cell, "r.csv: line 7, column speed: \"fast\" is no number");
        assert!(
            told(&format!("{HEAD}setting,round,speed,failed\noff,0,NaN,\n")).contains("\"NaN\" is no number")
        );
        assert!(told(&format!("{HEAD}setting,round,speed,failed\noff,0\n")).starts_with("r.csv: "));
        let nowhere = read(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(nowhere.starts_with("no/such/folder: "), "{nowhere}");
    }
}
