//! What an experiment leaves behind: a CSV file, a plot and a Markdown section, put in place together.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::chart::{Panel, draw};
use super::sheet::{Better, Sheet};
use crate::machine::Machine;
use crate::output::{PLOT_FILE, TABLE_FILE, spread_cell};
use crate::stats::Spread;

/// Every figure of the experiment.
pub const CSV_FILE: &str = "results.csv";
/// Layout of the CSV files, see `reading.rs`. It rises when a reader of an earlier version would misunderstand or miss
/// what it reads.
pub const CSV_LAYOUT: u32 = 2;

/// What an experiment found out, and what it says about itself.
#[derive(Debug)]
pub struct Findings {
    /// The figures.
    pub sheet: Sheet,
    /// The plot.
    pub panels: Vec<Panel>,
    /// Figures that are of no setting.
    pub tables: Vec<Table>,
    /// How it was measured, a sentence or two each.
    pub method: Vec<String>,
    /// What came out beyond the figures: checks, sums, what follows.
    pub told: Vec<String>,
    /// What a reader might expect here and will not find.
    pub not_measured: Vec<String>,
    /// Further files of the results, by name.
    pub files: Vec<(&'static str, String)>,
}

impl Findings {
    /// Findings that so far are figures alone.
    pub fn new(sheet: Sheet, panels: Vec<Panel>) -> Self {
        Self {
            sheet,
            panels,
            tables: Vec::new(),
            method: Vec::new(),
            told: Vec::new(),
            not_measured: Vec::new(),
            files: Vec::new(),
        }
    }
}

/// Figures beside those of the sheet, in a part of the section of their own.
#[derive(Debug)]
pub struct Table {
    /// The part's title.
    pub title: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Columns that hold names; the others hold numbers.
    pub num_names: usize,
    /// The columns' titles.
    pub columns: &'static [&'static str],
    /// A cell for each column.
    pub rows: Vec<Vec<String>>,
}

/// What every section begins with.
#[derive(Debug)]
pub struct Heading {
    /// The experiment's name, which is also its folder's.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What it asks.
    pub question: &'static str,
    /// When it began, UTC.
    pub date: String,
    /// How it was called.
    pub command_line: String,
    /// Versions of what took part.
    pub versions: Vec<String>,
    /// Where it was made.
    pub machine: Machine,
    /// The model, the settings that all share, and whether it was cut short.
    pub notes: Vec<String>,
}

/// Writes all files into a new folder beside its place, and moves it there when they are whole. What stood there
/// before gives way to it.
///
/// # Errors
/// When a file cannot be written or the plot cannot be drawn.
pub fn write(out: &Path, heading: &Heading, findings: &Findings) -> anyhow::Result<PathBuf> {
    let told = |path: &Path| format!("cannot write {}", path.display());
    std::fs::create_dir_all(out).with_context(|| told(out))?;
    let prefix = format!(".{}-", heading.name);
    let beside = tempfile::Builder::new().prefix(&prefix).tempdir_in(out).with_context(|| told(out))?;
    let new = beside.path().join("new");
    std::fs::create_dir(&new)?;
    let is_drawn = draw(&new.join(PLOT_FILE), heading.title, &findings.sheet, &findings.panels)?;
    std::fs::write(new.join(CSV_FILE), csv_text(heading, findings)?)?;
    for (name, text) in &findings.files {
        std::fs::write(new.join(name), text)?;
    }
    std::fs::write(new.join(TABLE_FILE), markdown(heading, findings))?;
    let place = out.join(heading.name);
    if place.exists() {
        std::fs::rename(&place, beside.path().join("old")).with_context(|| told(&place))?;
    }
    std::fs::rename(&new, &place).with_context(|| told(&place))?;
    if !is_drawn {
        eprintln!("quern-bench: {}: nothing was measured, so there is no plot", heading.name);
    }
    Ok(place)
}

/// The head of the CSV file: where and how it was made, and a comment on each column.
fn csv_head(heading: &Heading, findings: &Findings) -> String {
    let Heading { name, title, question, date, command_line, versions, machine, notes } = heading;
    let sheet = &findings.sheet;
    let mut lines = vec![
        format!("{title}: {question}"),
        format!("quern-bench experiment {name}, layout {CSV_LAYOUT}, {date}"),
        format!("machine: {machine}"),
        format!("versions: {}", versions.join("; ")),
        format!("command: {command_line}"),
    ];
    lines.extend(notes.iter().map(|note| format!("note: {note}")));
    lines.extend(findings.not_measured.iter().map(|what| format!("not measured: {what}")));
    lines.push("Lines that begin with # are comments. Empty: not measured.".to_owned());
    lines.push("setting: what was set".to_owned());
    lines.extend(sheet.level.map(|(id, label)| format!("{id}: {label}")));
    lines.push("round: from 0; settings of one round were measured one after the other".to_owned());
    lines.extend(sheet.columns.iter().map(|column| format!("{}: {}", column.id, column.about)));
    lines.push("failed: why the setting gave no figures".to_owned());
    // A line break in a note must not end the comment.
    lines.iter().map(|line| format!("# {}\n", line.replace(['\n', '\r'], " "))).collect()
}

/// The CSV file: its head, a header, a line a row; failed settings have a line with the reason.
fn csv_text(heading: &Heading, findings: &Findings) -> anyhow::Result<String> {
    let sheet = &findings.sheet;
    let mut csv = csv::Writer::from_writer(csv_head(heading, findings).into_bytes());
    let level_id = sheet.level.map(|(id, _)| id);
    let names = ["setting"].into_iter().chain(level_id).chain(["round"]);
    csv.write_record(names.chain(sheet.columns.iter().map(|column| column.id)).chain(["failed"]))?;
    for row in &sheet.rows {
        let mut record = vec![row.setting.clone()];
        record.extend(level_id.map(|_| row.level.to_string()));
        record.push(row.round.to_string());
        let cell = |value: &Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
        record.extend(row.values.iter().map(cell));
        record.push(String::new());
        csv.write_record(record)?;
    }
    for failed in &sheet.failed {
        let num_empty = sheet.columns.len() + 1 + usize::from(level_id.is_some());
        let mut record = vec![failed.setting.clone()];
        record.extend(std::iter::repeat_n(String::new(), num_empty));
        record.push(failed.reason.replace('\n', " "));
        csv.write_record(record)?;
    }
    Ok(String::from_utf8(csv.into_inner()?)?)
}

/// The section for people.
pub fn markdown(heading: &Heading, findings: &Findings) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_markdown(&mut text, heading, findings);
    text
}

fn write_markdown(text: &mut String, heading: &Heading, findings: &Findings) -> std::fmt::Result {
    let Heading { name, title, question, date, command_line, versions, machine, notes } = heading;
    writeln!(text, "# {title}\n\n{question}\n")?;
    writeln!(text, "Experiment `{name}`, {date}.  ")?;
    writeln!(text, "Machine: {machine}.  ")?;
    writeln!(text, "Versions: {}.  ", versions.join("; "))?;
    for note in notes {
        writeln!(text, "Note: {note}.  ")?;
    }
    writeln!(text, "Command: `{command_line}`\n")?;
    for sentence in &findings.method {
        writeln!(text, "{sentence}\n")?;
    }
    write_figures(text, &findings.sheet)?;
    write_ratios(text, &findings.sheet)?;
    for table in &findings.tables {
        write_table(text, table)?;
    }
    write_list(text, "What came out", &findings.told)?;
    let failed =
        findings.sheet.failed.iter().map(|failed| format!("`{}`: {}", failed.setting, failed.reason));
    write_list(text, "Settings that failed", &failed.collect::<Vec<_>>())?;
    write_list(text, "Not measured", &findings.not_measured)
}

fn write_list(text: &mut String, title: &str, items: &[String]) -> std::fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(text, "## {title}\n")?;
    for item in items {
        writeln!(text, "- {}", item.replace('\n', " "))?;
    }
    writeln!(text)
}

fn write_table(text: &mut String, table: &Table) -> std::fmt::Result {
    let Table { title, about, num_names, columns, rows } = table;
    writeln!(text, "## {title}\n\n{about}\n\n| {} |", columns.join(" | "))?;
    let num_numbers = columns.len().saturating_sub(*num_names);
    writeln!(text, "|{}{}", "---|".repeat(*num_names), "---:|".repeat(num_numbers))?;
    for row in rows {
        // A cell ends neither its column nor its line.
        let cells: Vec<String> =
            row.iter().map(|cell| cell.replace('|', "\\|").replace(['\n', '\r'], " ")).collect();
        writeln!(text, "| {} |", cells.join(" | "))?;
    }
    writeln!(text)
}

fn write_figures(text: &mut String, sheet: &Sheet) -> std::fmt::Result {
    if sheet.rows.is_empty() {
        return Ok(());
    }
    let columns: Vec<_> = sheet.columns.iter().filter(|column| sheet.has_values(column.id)).collect();
    writeln!(text, "## Figures\n\nMedian over the rounds, range in brackets.\n")?;
    let labels: Vec<&str> = columns.iter().map(|column| column.label).collect();
    let level = sheet.level.map_or(String::new(), |(_, label)| format!("{label} | "));
    writeln!(text, "| setting | {level}{} |", labels.join(" | "))?;
    let num_right = columns.len() + usize::from(sheet.level.is_some());
    writeln!(text, "|---|{}", "---:|".repeat(num_right))?;
    for level in sheet.levels() {
        for setting in sheet.settings() {
            let cells: Vec<Option<Spread>> =
                columns.iter().map(|column| sheet.spread(setting, level, column.id)).collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let level = sheet.level.map_or(String::new(), |_| format!("{level} | "));
            let cells: Vec<String> = cells.into_iter().map(spread_cell).collect();
            writeln!(text, "| {setting} | {level}{} |", cells.join(" | "))?;
        }
    }
    writeln!(text)
}

fn write_ratios(text: &mut String, sheet: &Sheet) -> std::fmt::Result {
    let compared = sheet.columns.iter().filter(|column| column.better != Better::Neither);
    let ratios: Vec<_> = compared.map(|column| (column, sheet.ratios(column.id))).collect();
    let settings = sheet.settings();
    let (Some(first), true) = (settings.first(), ratios.iter().any(|(_, ratios)| !ratios.is_empty())) else {
        return Ok(());
    };
    writeln!(text, "## Over {first}\n")?;
    writeln!(text, "Each setting's figure divided by that of `{first}`, round by round.\n")?;
    let level = sheet.level.map_or(String::new(), |(_, label)| format!("{label} | "));
    writeln!(text, "| figure | setting | {level}median | range | pairs | better is |")?;
    writeln!(text, "|---|---|{}---:|---|---:|---|", if level.is_empty() { "" } else { "---:|" })?;
    for (column, ratios) in ratios {
        let better = if column.better == Better::More { "more" } else { "less" };
        for one in ratios {
            let Spread { median, min, max, count } = one.ratio;
            let level = sheet.level.map_or(String::new(), |_| format!("{} | ", one.level));
            writeln!(
                text,
                "| {} | {} | {level}{median:.3} | {min:.3} to {max:.3} | {count} | {better} |",
                column.label, one.setting
            )?;
        }
    }
    writeln!(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::experiment::reading;
    use crate::experiment::sheet::tests::sample;

    pub(crate) fn heading() -> Heading {
        Heading {
            name: "probe",
            title: "A probe",
            question: "What is it?",
            date: "2026-01-31T00:00:00Z".to_owned(),
            command_line: "quern-bench experiment probe".to_owned(),
            versions: vec!["quern 1".to_owned(), "quern-bench 2".to_owned()],
            machine: Machine::read(),
            notes: vec!["cut short".to_owned()],
        }
    }

    pub(crate) fn findings() -> Findings {
        let mut findings = Findings::new(sample(), vec![Panel::Lines("decode_tok_per_s")]);
        findings.told.push("it works".to_owned());
        findings.not_measured.push("the weather".to_owned());
        findings.files.push(("extra.json", "{}".to_owned()));
        findings
    }

    #[test]
    fn the_csv_file_documents_its_columns_and_names_what_failed() {
        let text = csv_text(&heading(), &findings()).unwrap();
        assert!(text.contains("# decode_tok_per_s: Speed.\n"), "{text}");
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        let header = reader.headers().unwrap().iter().collect::<Vec<_>>().join(",");
        assert_eq!(header, "setting,length_tokens,round,decode_tok_per_s,file_mib,cores,failed");
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 9);
        assert_eq!((&records[0][0], &records[0][1], &records[0][3]), ("f16", "256", "25.000000"));
        assert_eq!((&records[8][0], &records[8][6]), ("q2_k", "no such format"));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut heading = heading();
        heading.notes.push("two\nlines".to_owned());
        let place = write(folder.path(), &heading, &findings()).unwrap();
        let read = reading::read(&place).unwrap();
        assert_eq!((read.head.name.as_str(), read.head.date.as_str()), ("probe", heading.date.as_str()));
        assert_eq!(read.head.command, Some(heading.command_line));
        assert_eq!(read.head.machine, Some(heading.machine.to_string()));
        assert_eq!(read.head.notes, ["cut short", "two lines"]);
        assert_eq!(read.converted, None);
        let sheet = sample();
        assert_eq!(read.settings(), sheet.settings());
        for (setting, level) in [("f16", 64.0), ("q8_0", 256.0)] {
            let cited = read.figure(setting, level, "decode_tok_per_s").unwrap();
            assert_eq!(Some(cited.spread), sheet.spread(setting, level, "decode_tok_per_s"));
            let text = std::fs::read_to_string(&read.path).unwrap();
            let line = text.lines().nth(cited.lines[0] as usize - 1).unwrap();
            assert!(line.starts_with(setting), "{line}");
        }
    }

    #[test]
    fn the_section_has_figures_ratios_failures_and_gaps() {
        let mut findings = findings();
        findings.tables.push(Table {
            title: "Parts",
            about: "Of a whole.",
            num_names: 1,
            columns: &["part", "%"],
            rows: vec![vec!["a|b\nc".to_owned(), "12".to_owned()]],
        });
        let text = markdown(&heading(), &findings);
        for part in [
            "# A probe",
            "quern 1; quern-bench 2",
            "Note: cut short.",
            "| q8_0 | 64 | 112 [75.0–150] |",
            "| decode tok/s | q8_0 | 64 | 1.500 | 1.500 to 1.500 | 2 | more |",
            "- `q2_k`: no such format",
            "- the weather",
            "## Parts\n\nOf a whole.\n\n| part | % |\n|---|---:|\n| a\\|b c | 12 |\n\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("file MiB"), "a figure that nobody measured has no column");
    }

    #[test]
    fn results_come_into_place_whole_and_replace_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let place = write(folder.path(), &heading(), &findings()).unwrap();
            for file in [CSV_FILE, PLOT_FILE, TABLE_FILE, "extra.json"] {
                assert!(place.join(file).is_file(), "{file}");
            }
        }
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["probe"], "nothing else stays");
    }

    #[test]
    fn results_that_cannot_be_written_leave_the_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &heading(), &findings()).unwrap();
        let mut broken = findings();
        broken.files.push(("no/such/folder", String::new()));
        assert!(write(folder.path(), &heading(), &broken).is_err());
        assert!(folder.path().join("probe").join(CSV_FILE).is_file());
    }
}
