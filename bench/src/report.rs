//! Collects the runs of a folder into one Markdown file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::output::{PLOT_FILE, RESULTS_FILE, TABLE_FILE};
use crate::results;

/// The collected report.
pub const REPORT_FILE: &str = "REPORT.md";

/// Writes the report of all runs below `folder` (one level down, or the folder itself) and returns its path.
///
/// # Errors
/// When the folder cannot be read or holds no run, or when results in it are of a later version of this program.
pub fn write_report(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut runs: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join(TABLE_FILE).is_file() {
            runs.push(path);
        }
    }
    if folder.join(TABLE_FILE).is_file() {
        runs.push(folder.to_owned());
    }
    anyhow::ensure!(!runs.is_empty(), "{}: no run here (no {TABLE_FILE} one level down)", folder.display());
    runs.sort();
    let mut text = String::from("# Runs of this folder\n\n");
    let mut body = String::new();
    for run in &runs {
        let name = run.strip_prefix(folder).ok().and_then(Path::to_str).filter(|name| !name.is_empty());
        let place = name.unwrap_or(".");
        let table = std::fs::read_to_string(run.join(TABLE_FILE))?;
        let title = table.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or(place);
        writeln!(text, "- [{title}]({place}/{TABLE_FILE})")?;
        let results_file = run.join(RESULTS_FILE);
        // A folder may hold its table alone: results of many requests are large.
        let results = results_file.is_file().then(|| results::read(&results_file)).transpose()?;
        // Headings go one level down: the report has the only heading of the first level.
        for line in table.lines() {
            let deeper = if line.starts_with('#') { "#" } else { "" };
            writeln!(body, "{deeper}{line}")?;
        }
        if let Some(converted) = results.and_then(|results| results.converted) {
            writeln!(body, "\nThe results beside this table were {converted}.")?;
        }
        if run.join(PLOT_FILE).is_file() {
            writeln!(body, "\n![{title}]({place}/{PLOT_FILE})")?;
        }
        body.push('\n');
    }
    writeln!(text, "\n{body}")?;
    let path = folder.join(REPORT_FILE);
    std::fs::write(&path, text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_collected_in_order_and_an_empty_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_report(folder.path()).unwrap_err().to_string().contains("no run here"));
        for name in ["b", "a"] {
            let run = folder.path().join(name);
            std::fs::create_dir(&run).unwrap();
            std::fs::write(run.join(TABLE_FILE), format!("# Run {name}\n\n## 1 client\n")).unwrap();
        }
        std::fs::write(folder.path().join("a").join(PLOT_FILE), "<svg/>").unwrap();
        let text = std::fs::read_to_string(write_report(folder.path()).unwrap()).unwrap();
        let (a, b) = (text.find("## Run a").unwrap(), text.find("## Run b").unwrap());
        assert!(a < b && text.contains("### 1 client") && text.contains("![Run a](a/plot.svg)"), "{text}");
        assert!(!text.contains("b/plot.svg"));
    }
}
