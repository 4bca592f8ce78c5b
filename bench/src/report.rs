//! `quern-bench report`: turns results into one Markdown file and one HTML page that needs nothing beside it.
//!
//! `section.rs` reads what each folder holds, `markdown.rs` and `page.rs` write. Results come from files that anybody
//! may have written: the page escapes all text of theirs, shows plots as images, which run no script, and forbids the
//! browser to load anything.

mod markdown;
mod page;
mod section;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use crate::experiment;
use crate::experiment::reading::ReadingError;
use crate::found;
use crate::machine::now_utc;
use crate::results::ResultsError;
use section::Section;

/// The Markdown file.
pub const MARKDOWN_FILE: &str = "REPORT.md";
/// The HTML page.
pub const PAGE_FILE: &str = "report.html";

/// `quern-bench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The folder with results, in itself or in folders below it. REPORT.md and report.html are written into it.
    pub folder: PathBuf,
    /// Title of the report; the folder's name without it.
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is nothing to report.
    #[error("{}: no results here or up to three folders below: make them with `run --out` or `experiment`", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A run's results are of another version, or broken.
    #[error(transparent)]
    Run(#[from] ResultsError),
    /// An experiment's results are of another version, or broken.
    #[error(transparent)]
    Experiment(#[from] ReadingError),
    /// The page's template does not fit what is filled into it.
    #[error("the page cannot be made: {0}")]
    Page(#[from] minijinja::Error),
}

/// What a report says.
#[derive(Debug, Serialize)]
struct Report {
    title: String,
    /// When it was made, UTC.
    made: String,
    /// This program's version.
    version: String,
    sections: Vec<Section>,
    /// Experiments of this program that have no results here.
    absent: Vec<&'static str>,
}

/// Writes both files and returns their paths.
///
/// # Errors
/// When the folder cannot be read or holds no results, when results in it are of a later version of this program, or
/// when the files cannot be written. Nothing is written then.
pub fn write_report(args: &ReportArgs) -> Result<[PathBuf; 2], ReportError> {
    let report = read(args, now_utc())?;
    let texts = [(MARKDOWN_FILE, markdown::text(&report)), (PAGE_FILE, page::text(&report)?)];
    let mut paths = Vec::new();
    for (name, text) in texts {
        let path = args.folder.join(name);
        std::fs::write(&path, text).map_err(|source| ReportError::File { path: path.clone(), source })?;
        paths.push(path);
    }
    Ok(paths.try_into().expect("there are two files"))
}

fn read(args: &ReportArgs, made: String) -> Result<Report, ReportError> {
    let folder = &args.folder;
    let found = found::below(folder);
    let found = found.map_err(|source| ReportError::File { path: folder.clone(), source })?;
    if found.is_empty() {
        return Err(ReportError::Empty { path: folder.clone() });
    }
    let sections: Vec<Section> = found.iter().map(Section::read).collect::<Result<_, _>>()?;
    let is_absent = |name: &&str| sections.iter().all(|section| section.experiment.as_deref() != Some(*name));
    let absent = experiment::NAMES.iter().copied().filter(is_absent).collect();
    let title = args.title.clone().unwrap_or_else(|| format!("Results: {}", name_of(folder)));
    Ok(Report { title, made, version: env!("CARGO_PKG_VERSION").to_owned(), sections, absent })
}

/// A folder's name, also where it is named `.`.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
