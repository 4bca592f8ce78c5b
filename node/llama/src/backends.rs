//! Finding ggml's plug-ins: one library an instruction set for the CPU, and
//! one a kind of GPU.
//!
//! Folders are searched in this order: the environment variable
//! [`BACKENDS_DIR_VARIABLE`], the folder of the executable, `backends` in it,
//! and the folder above it (test binaries and examples lie one folder deeper).
//! The CPU's plug-ins come from the first folder that has any, and so do the
//! GPUs'; a kind of GPU that is missing there is taken from wherever it lies, so
//! that a plug-in can be dropped beside the binary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::ffi;

/// Names a folder that is searched for ggml's plug-ins before all others.
pub const BACKENDS_DIR_VARIABLE: &str = "QUERN_BACKENDS_DIR";

/// Kinds of plug-ins, beside the CPU's, that are loaded when they are there.
const GPU_KINDS: [&str; 6] = ["cuda", "hip", "metal", "musa", "sycl", "vulkan"];

/// Loads the plug-ins and prepares llama.cpp, once a process.
///
/// Gives back the folders that were searched when there is no plug-in for
/// this machine's CPU.
pub(crate) fn load_once() -> Result<(), Vec<PathBuf>> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    // A panic while loading leaves `false` behind, and the next call tries again.
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*loaded {
        load(&folders())?;
        ffi::init();
        *loaded = true;
    }
    Ok(())
}

fn load(folders: &[PathBuf]) -> Result<(), Vec<PathBuf>> {
    let cpu_folder = folders.iter().find(|folder| !plugins(folder, "cpu").is_empty());
    for kind in GPU_KINDS {
        if cpu_folder.is_some_and(|folder| !plugins(folder, kind).is_empty()) {
            continue; // Loaded below, with the rest of that folder.
        }
        if let Some(file) = folders.iter().flat_map(|folder| plugins(folder, kind)).next() {
            // A plug-in whose driver is missing is no error: the CPU serves.
            let loaded = ffi::load_plugin(&file);
            tracing::info!(plugin = %file.display(), loaded, "gpu plug-in");
        }
    }
    if let Some(folder) = cpu_folder {
        ffi::load_plugins_in(folder);
    }
    if ffi::has_cpu() { Ok(()) } else { Err(folders.to_vec()) }
}

fn folders() -> Vec<PathBuf> {
    let from_variable = std::env::var_os(BACKENDS_DIR_VARIABLE).map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let above = beside.as_ref().and_then(|folder| folder.parent().map(Path::to_path_buf));
    let inside = beside.as_ref().map(|folder| folder.join("backends"));
    let mut seen = BTreeSet::new();
    let all = [from_variable, beside, inside, above];
    all.into_iter().flatten().filter(|folder| seen.insert(folder.clone())).collect()
}

/// The plug-ins of one kind in a folder: `libggml-cuda.so`, `libggml-cpu-haswell.so`.
fn plugins(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let prefix = format!("{}ggml-{kind}", std::env::consts::DLL_PREFIX);
    // ggml builds plug-ins as modules, which end in `.so` on macOS too.
    let suffix = if cfg!(windows) { ".dll" } else { ".so" };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let rest = name.and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(suffix));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_plugins_from_other_libraries() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libggml-cpu-haswell.so",
            "libggml-cpu.so",
            "libggml-base.so",
            "libggml-cpux.so",
            "libggml-cuda.so.1",
        ] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let names = |kind| -> Vec<_> {
            plugins(folder.path(), kind).iter().map(|path| path.file_name().unwrap().to_owned()).collect()
        };
        assert_eq!(names("cpu"), ["libggml-cpu-haswell.so", "libggml-cpu.so"]);
        assert!(names("cuda").is_empty());
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        if ffi::has_cpu() {
            return; // Another test of this process has loaded the real ones already.
        }
        assert_eq!(load(&[folder.path().to_path_buf()]), Err(vec![folder.path().to_path_buf()]));
    }
}
