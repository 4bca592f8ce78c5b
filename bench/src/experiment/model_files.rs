//! What experiments on a model's files share: each file is made and judged by its quality, then served in turn and
//! measured by its speed and memory.

use std::path::{Path, PathBuf};

use super::lab::Lab;
use super::quality::{self, ACCURACY, MACRO_F1, NUM_ROWS, PERPLEXITY, PERPLEXITY_ERROR};
use super::sheet::{Column, Sheet, less};
use super::speed::{self, ANONYMOUS, Amounts, DECODE, PREFILL, PROMPT, READY, RESIDENT, TTFT};

/// The model's own file beside those that are made of it.
pub const AS_GIVEN: &str = "as given";

/// Size of a model's file.
pub const FILE: Column = less("file_mib", "file MiB", "size of the model's file");

/// Everything that [`speed::measure`] and [`quality`] give.
pub const SPEED_AND_QUALITY: [Column; 12] = [
    RESIDENT,
    ANONYMOUS,
    READY,
    PREFILL,
    DECODE,
    TTFT,
    PROMPT,
    PERPLEXITY,
    PERPLEXITY_ERROR,
    ACCURACY,
    MACRO_F1,
    NUM_ROWS,
];

/// A sheet for files: their size, and what else they are measured by.
pub fn sheet() -> Sheet {
    Sheet::new(None, &[&[FILE][..], &SPEED_AND_QUALITY].concat())
}

/// Makes each named file, and adds its size and its quality, which need no rounds. Leaves out files that fail.
///
/// # Errors
/// Only that the experiment was stopped.
pub fn make_and_judge<W>(
    lab: &Lab,
    sheet: &mut Sheet,
    wanted: impl IntoIterator<Item = (String, W)>,
    make: impl Fn(W) -> anyhow::Result<PathBuf>,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for (name, wanted) in wanted {
        lab.say(format!("{name}: making and judging"));
        let made = lab.attempt(sheet, &name, |sheet| {
            let file = make(wanted)?;
            sheet.add(&name, 0.0, 0, [(FILE.id, Some(size_mib(&file)?))]);
            sheet.add(&name, 0.0, 0, quality::perplexity(lab, &file, None)?);
            sheet.add(&name, 0.0, 0, quality::accuracy(lab, &file, None)?);
            Ok(file)
        })?;
        files.extend(made.map(|file| (name, file)));
    }
    Ok(files)
}

/// Adds speed and memory of each file, served in turn.
///
/// # Errors
/// Only that the experiment was stopped.
pub fn measure_speeds(lab: &Lab, sheet: &mut Sheet, files: &[(String, PathBuf)]) -> anyhow::Result<()> {
    lab.rounds(sheet, files, |sheet, (name, file), round| {
        let served = lab.start(&lab.settings(file))?;
        let figures = speed::measure(lab, &served, Amounts::of(lab), None, false)?;
        sheet.add(name, 0.0, round, figures);
        Ok(())
    })
}

/// A file's size in MiB.
///
/// # Errors
/// When it is not there.
pub fn size_mib(file: &Path) -> std::io::Result<f64> {
    Ok(std::fs::metadata(file)?.len() as f64 / 1024.0 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_a_file_has_a_column_of_its_own() {
        let sheet = sheet();
        let mut ids: Vec<&str> = sheet.columns.iter().map(|column| column.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), sheet.columns.len());
        assert!(ids.contains(&FILE.id) && ids.contains(&PERPLEXITY.id) && ids.contains(&DECODE.id));
    }
}
