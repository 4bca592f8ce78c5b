//! What a folder with results gives to a report.

use std::path::Path;

use serde::Serialize;

use super::ReportError;
use crate::experiment::reading;
use crate::experiment::section::CSV_FILE;
use crate::found::Found;
use crate::output::{PHASES_FILE, PLOT_FILE, RESULTS_FILE, TABLE_FILE};
use crate::results;

/// Results of one run or experiment.
#[derive(Debug, Default, Serialize)]
pub(super) struct Section {
    /// The folder, from that of the report.
    pub place: String,
    /// For people.
    pub title: String,
    /// The experiment's name; none for a run.
    pub experiment: Option<String>,
    /// When it began.
    pub date: String,
    /// Where it was made.
    pub machine: String,
    /// Versions of what took part, and what else was noted.
    pub versions: Vec<String>,
    /// How it was called.
    pub command: String,
    /// The whole section in Markdown, with a title of the first level.
    pub table: String,
    /// The plot's text.
    pub plot: Option<String>,
    /// What was not measured, in its own words.
    pub not_measured: Vec<String>,
    /// What a reader must know of its files: converted, or not there.
    pub remarks: Vec<String>,
}

impl Section {
    /// Reads what a folder holds. Files that are not there are remarked upon.
    pub fn read(found: &Found) -> Result<Self, ReportError> {
        let mut section = Self { place: found.place.clone(), title: found.place.clone(), ..Self::default() };
        let table = text_of(&found.path.join(TABLE_FILE))?;
        match table {
            Some(table) => section.take_table(table),
            None => {
                section.remarks.push(format!("{TABLE_FILE} is missing, so there is nothing to show here."))
            }
        }
        section.take_figures(&found.path)?;
        let plot = text_of(&found.path.join(PLOT_FILE))?;
        section.plot = plot.filter(|text| text.contains("<svg"));
        if section.plot.is_none() && !section.is_cold_start() {
            section.remarks.push(format!("{PLOT_FILE} is missing or is no SVG, so there is no plot."));
        }
        Ok(section)
    }

    /// The lines that every table of this program begins with, and the list of what was not measured.
    fn take_table(&mut self, table: String) {
        let mut is_in_list = false;
        for line in table.lines() {
            let line = line.trim_end();
            if let Some(title) = line.strip_prefix("# ") {
                title.clone_into(&mut self.title);
            } else if let Some(rest) = line.strip_prefix("Experiment `").or(line.strip_prefix("Workload `")) {
                let mut parts = rest.trim_end_matches('.').split("`, ").flat_map(|part| part.split(", "));
                let name = parts.next().unwrap_or_default();
                self.experiment = line.starts_with("Experiment").then(|| name.to_owned());
                self.date = parts.next().unwrap_or_default().to_owned();
                self.versions.extend(parts.filter(|part| part.starts_with("quern-bench")).map(str::to_owned));
            } else if let Some(machine) = line.strip_prefix("Machine: ") {
                machine.trim_end_matches('.').clone_into(&mut self.machine);
            } else if let Some(versions) = line.strip_prefix("Versions: ").or(line.strip_prefix("Note: ")) {
                self.versions.push(versions.trim_end_matches('.').to_owned());
            } else if let Some(command) = line.strip_prefix("Command: ") {
                command.trim_matches('`').clone_into(&mut self.command);
            } else if line.starts_with('#') {
                is_in_list = line == "## Not measured";
            } else if let Some(item) = line.strip_prefix("- ").filter(|_| is_in_list) {
                self.not_measured.push(item.to_owned());
            }
        }
        self.table = table;
    }

    /// Figures are not shown, the table has them; but a file that another version wrote must not pass unseen.
    fn take_figures(&mut self, folder: &Path) -> Result<(), ReportError> {
        let (lines, csv) = (folder.join(RESULTS_FILE), folder.join(CSV_FILE));
        let converted = if csv.is_file() {
            let measured = reading::read(&csv)?;
            self.experiment.get_or_insert(measured.head.name);
            measured.converted
        } else if lines.is_file() {
            results::read(&lines)?.converted
        } else {
            let name = if self.experiment.is_some() { CSV_FILE } else { RESULTS_FILE };
            let phases = folder.join(PHASES_FILE).is_file();
            let rest =
                if phases { format!("; {PHASES_FILE} has the figures of its phases") } else { String::new() };
            self.remarks.push(format!("{name} is not beside this table{rest}."));
            None
        };
        self.remarks.extend(converted.map(|how| format!("The results beside this table were {how}.")));
        Ok(())
    }

    fn is_cold_start(&self) -> bool {
        self.title.starts_with("Cold start")
    }
}

/// A file's text; none if it is not there. Bytes that are no text become signs that say so.
fn text_of(path: &Path) -> Result<Option<String>, ReportError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::File { path: path.to_owned(), source }),
    }
}
