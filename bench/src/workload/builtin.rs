//! Workloads that are part of the binary, and where the files lie that a workload names.

use std::path::Path;

/// Workloads that are part of the binary, with the files they name.
const BUILTIN: &[(&str, &str)] = &[
    ("chat.toml", include_str!("../../workloads/chat.toml")),
    ("classify.toml", include_str!("../../workloads/classify.toml")),
    ("intents.toml", include_str!("../../workloads/intents.toml")),
    ("intents.csv", include_str!("../../workloads/intents.csv")),
    ("long-prompt.toml", include_str!("../../workloads/long-prompt.toml")),
    ("harbour-log.txt", include_str!("../../workloads/harbour-log.txt")),
    ("mixed-adapters.toml", include_str!("../../workloads/mixed-adapters.toml")),
    ("ramp.toml", include_str!("../../workloads/ramp.toml")),
    ("replay.toml", include_str!("../../workloads/replay.toml")),
    ("replay.csv", include_str!("../../workloads/replay.csv")),
    ("speculative.toml", include_str!("../../workloads/speculative.toml")),
];

/// Names of the workloads that are part of the binary.
pub fn names() -> Vec<&'static str> {
    BUILTIN.iter().filter_map(|(file, _)| file.strip_suffix(".toml")).collect()
}

pub(super) fn file(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(file, _)| *file == name).map(|(_, text)| *text)
}

/// Reads a file that a workload names. A built-in workload's own files are part of the binary; any other path,
/// one from the command line for example, is the user's.
pub(super) fn read_beside(folder: Option<&Path>, name: &str) -> std::io::Result<String> {
    match (folder, file(name)) {
        (None, Some(text)) => Ok(text.to_owned()),
        (None, None) => std::fs::read_to_string(name),
        (Some(folder), _) => {
            let beside = folder.join(name);
            std::fs::read_to_string(if beside.is_file() { &beside } else { Path::new(name) })
        }
    }
}
