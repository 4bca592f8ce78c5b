//! Finds results below a folder: every folder that holds a table or figures of a run or of an experiment.

use std::io;
use std::path::{Path, PathBuf};

use crate::experiment::section::CSV_FILE;
use crate::output::{RESULTS_FILE, TABLE_FILE};

/// Folders inside folders that are looked into.
const MAX_DEPTH: usize = 3;

/// A folder with results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The folder.
    pub path: PathBuf,
    /// Its path from the folder where the search began, with `/`; `.` for that one itself.
    pub place: String,
}

/// Finds all results in a folder and below it, by name. Hidden folders, where results are being made, and links are
/// left out.
///
/// # Errors
/// When a folder cannot be read.
pub fn below(root: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    look_into(root, ".", 0, &mut found)?;
    found.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(found)
}

fn look_into(folder: &Path, place: &str, depth: usize, found: &mut Vec<Found>) -> io::Result<()> {
    if [TABLE_FILE, CSV_FILE, RESULTS_FILE].iter().any(|file| folder.join(file).is_file()) {
        found.push(Found { path: folder.to_owned(), place: place.to_owned() });
    }
    if depth == MAX_DEPTH {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            let place = if depth == 0 { name } else { format!("{place}/{name}") };
            look_into(&entry.path(), &place, depth + 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_at_every_depth_but_not_in_hidden_folders() {
        let root = tempfile::tempdir().unwrap();
        for (folder, file) in [
            ("b", TABLE_FILE),
            ("a/x", CSV_FILE),
            ("a/y/z", RESULTS_FILE),
            (".new", TABLE_FILE),
            ("c", "other"),
        ] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join(file), "").unwrap();
        }
        let places = || below(root.path()).unwrap().into_iter().map(|found| found.place).collect::<Vec<_>>();
        assert_eq!(places(), ["a/x", "a/y/z", "b"]);
        std::fs::write(root.path().join(TABLE_FILE), "").unwrap();
        assert_eq!(places()[0], ".");
        assert!(below(&root.path().join("nowhere")).is_err());
    }
}
