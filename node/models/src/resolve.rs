//! From what a person typed to a file on this machine.

use std::path::{Path, PathBuf};

use crate::cache::Slot;
use crate::catalog::catalog;

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// Its GGUF file.
    pub path: PathBuf,
    /// What to serve it as: the catalogue's name, or the file's stem.
    pub id: String,
}

/// Why there is no file for a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The catalogue knows it, and it is not here yet, or not whole.
    #[error("{name} has not been fetched yet; run: quern pull {name}")]
    NotPulled {
        /// The catalogue's name.
        name: String,
    },
    /// It looks like a path, and there is no such file.
    #[error("no such file: {}", .0.display())]
    NoSuchFile(PathBuf),
    /// Neither a name nor a file.
    #[error("no model is called {name}, and no file either{}; quern pull --list shows all names", meant(.near))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that may have been meant, nearest first.
        near: Vec<String>,
    },
}

/// Finds the file of a catalogue name or a GGUF path. A name is looked up in
/// `cache_dir`; nothing is fetched. Blocks on the file system alone.
///
/// # Errors
/// [`ResolveError`] saying what to do about it.
pub fn resolve(name_or_path: &str, cache_dir: &Path) -> Result<ResolvedModel, ResolveError> {
    if let Some(entry) = catalog().get(name_or_path) {
        let slot = Slot::new(cache_dir, &entry.file_name());
        // Without its marker the file may be half of another day's pull, or changed
        // since; pulling again settles it, and is quick when all is well.
        let Ok(Some(marker)) = slot.marker() else {
            return Err(ResolveError::NotPulled { name: entry.name.clone() });
        };
        if entry.sha256.as_ref().is_some_and(|pinned| *pinned != marker.sha256) {
            return Err(ResolveError::NotPulled { name: entry.name.clone() });
        }
        return Ok(ResolvedModel { path: slot.file, id: entry.name.clone() });
    }
    let path = PathBuf::from(name_or_path);
    if path.is_file() {
        let id = path.file_stem().map_or_else(|| name_or_path.into(), |stem| stem.to_string_lossy());
        return Ok(ResolvedModel { id: id.into_owned(), path });
    }
    let near: Vec<String> = catalog().near(name_or_path).into_iter().map(str::to_owned).collect();
    if near.is_empty() && (name_or_path.contains('/') || name_or_path.ends_with(".gguf")) {
        return Err(ResolveError::NoSuchFile(path));
    }
    Err(ResolveError::Unknown { name: name_or_path.to_owned(), near })
}

fn meant(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (near it: {})", near.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m";

    #[test]
    fn a_name_needs_its_marker() {
        let cache = tempfile::tempdir().expect("a folder");
        let slot = Slot::new(cache.path(), &format!("{DEFAULT}.gguf"));
        let not_pulled = ResolveError::NotPulled { name: DEFAULT.into() };
        assert_eq!(resolve(DEFAULT, cache.path()), Err(not_pulled.clone()));
        assert!(not_pulled.to_string().contains(&format!("quern pull {DEFAULT}")));

        std::fs::create_dir_all(&slot.dir).expect("made");
        std::fs::write(&slot.file, "half").expect("written");
        assert_eq!(resolve(DEFAULT, cache.path()), Err(not_pulled.clone()));

        slot.mark("another digest").expect("marked");
        assert_eq!(resolve(DEFAULT, cache.path()), Err(not_pulled.clone()));

        slot.mark("1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32").expect("marked");
        let found = resolve(DEFAULT, cache.path()).expect("resolved");
        assert_eq!(found, ResolvedModel { path: slot.file.clone(), id: DEFAULT.into() });

        std::fs::write(&slot.file, "changed").expect("written");
        assert_eq!(resolve(DEFAULT, cache.path()), Err(not_pulled));
    }

    #[test]
    fn a_path_is_served_under_its_stem() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("My-Model.Q8_0.gguf");
        std::fs::write(&path, "x").expect("written");
        let found = resolve(&path.to_string_lossy(), dir.path()).expect("resolved");
        assert_eq!(found, ResolvedModel { path, id: "My-Model.Q8_0".into() });
    }

    #[test]
    fn unknown_names_get_help() {
        let dir = tempfile::tempdir().expect("a folder");
        let message = |name| resolve(name, dir.path()).expect_err("refused").to_string();
        assert!(message("qwen3-0.6b").contains("near it: qwen3-0.6b-q8_0"), "{}", message("qwen3-0.6b"));
        assert!(message("gpt-9").contains("quern pull --list"));
        assert_eq!(message("/no/such.gguf"), "no such file: /no/such.gguf");
    }
}
