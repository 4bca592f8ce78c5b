//! Reads the results that a run left, of this version of the program or of an earlier one.
//!
//! The first line of a results file says in which format the rest is. A file of an earlier format is converted, and
//! says what it lacks; one of a later format is refused, because what its fields mean is not known here.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use crate::output::RunHeader;
use crate::ramp::RampEnd;
use crate::stats::{PhaseSummary, Ratio};

/// The format that this version writes. It rises when a field gets another meaning, or when a reader of an earlier
/// version would misunderstand what it reads.
pub const FORMAT: u32 = 2;

/// What each earlier format lacks, from format 1 on.
const LACKS: [&str; 1] =
    ["it has no goodput, no times from sending, no tenants and no processor time of the client"];

/// Why a results file cannot be used.
#[derive(Debug, Error)]
pub enum ResultsError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{}: line {line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// One-based.
        line: usize,
        /// Names the field.
        source: serde_json::Error,
    },
    /// The first line does not say what the file is.
    #[error("{}: line 1 is no head of results: quern-bench did not write this file", path.display())]
    NoHead {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a later version.
    #[error(
        "{}: written by quern-bench {version} in format {format}, but this version reads formats 1 to {FORMAT}: use \
         the version that wrote it, or a later one",
        path.display()
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// The format that it says.
        format: u32,
        /// The version that wrote it.
        version: String,
    },
}

/// A run's results.
#[derive(Debug)]
pub struct RunResults {
    /// What the run was.
    pub header: RunHeader,
    /// Its phases.
    pub phases: Vec<PhaseSummary>,
    /// Ratios between its servers.
    pub ratios: Vec<Ratio>,
    /// Where its ramps ended.
    pub ramp_ends: Vec<RampEnd>,
}

/// What a results file holds.
#[derive(Debug)]
pub struct Results {
    /// The run; none for the results of cold starts.
    pub run: Option<RunResults>,
    /// Says that it was converted, from which version, and what it lacks.
    pub converted: Option<String>,
}

/// As much of the first line as tells how to read the rest.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default = "first_format")]
    format: u32,
    #[serde(default)]
    bench_version: String,
    /// The first field of a cold start in format 1, which had no head.
    ready_s: Option<IgnoredAny>,
}

fn first_format() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Run(Box<RunHeader>),
    Request(IgnoredAny),
    Phase(Box<PhaseSummary>),
    Ratio(Ratio),
    Ramp(RampEnd),
}

/// Reads a results file.
///
/// # Errors
/// When it cannot be read, is of a later format, or holds a line that is not what it should be.
pub fn read(path: &Path) -> Result<Results, ResultsError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ResultsError::Read { path: path.to_owned(), source })?;
    let first = text.lines().next().unwrap_or_default();
    let no_head = || ResultsError::NoHead { path: path.to_owned() };
    let head: Head = serde_json::from_str(first).map_err(|_| no_head())?;
    let (format, version) = (head.format, head.bench_version);
    if format > FORMAT {
        return Err(ResultsError::Later { path: path.to_owned(), format, version });
    }
    let is_run = match (head.kind.as_deref(), head.ready_s) {
        (Some("run"), _) => true,
        (Some("cold_start"), _) | (None, Some(_)) => false,
        _ => return Err(no_head()),
    };
    let lacks = (format as usize).checked_sub(1).and_then(|idx| LACKS.get(idx));
    let version =
        if version.is_empty() { "an early version".to_owned() } else { format!("quern-bench {version}") };
    let converted = lacks
        .map(|lacks| format!("converted from format {format} to {FORMAT}, written by {version}: {lacks}"));
    let run = is_run.then(|| read_run(path, &text)).transpose()?;
    Ok(Results { run, converted })
}

fn read_run(path: &Path, text: &str) -> Result<RunResults, ResultsError> {
    let mut header = None;
    let (mut phases, mut ratios, mut ramp_ends) = (Vec::new(), Vec::new(), Vec::new());
    for (idx, line) in text.lines().enumerate() {
        let read = serde_json::from_str(line);
        match read.map_err(|source| ResultsError::Line { path: path.to_owned(), line: idx + 1, source })? {
            Line::Run(run) => header = Some(*run),
            Line::Phase(phase) => phases.push(*phase),
            Line::Ratio(ratio) => ratios.push(ratio),
            Line::Ramp(end) => ramp_ends.push(end),
            Line::Request(_) => {}
        }
    }
    let header = header.ok_or_else(|| ResultsError::NoHead { path: path.to_owned() })?;
    Ok(RunResults { header, phases, ratios, ramp_ends })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"type":"run","name":"chat","workload":"chat","about":"","date":"","command_line":"","bench_version":"0.1.0","servers":[],"seed":1,"machine":{"cpu":"","num_cores":2,"memory_mib":1,"kernel":"","load_before":""},"notes":[]}"#;
    const PHASE: &str = r#"{"type":"phase","server":"a","level":"1 client","level_value":1.0,"round":0,"num_ok":6,"num_failed":0,"num_wrong":0,"failures":{},"wrong":{},"num_with_expected":0,"num_as_expected":0,"wall_s":2.0,"prompt_tokens":7,"tokens":64,"is_counted_by_server":true,"tokens_per_s":32.0,"requests_per_s":3.0,"ttft":null,"tbt":null,"tpot":null,"longest_gap":null,"e2e":null,"send_lateness":null,"client_cpu_share":0.02}"#;

    fn read_text(text: &str) -> Result<Results, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn an_earlier_format_is_converted_and_says_what_it_lacks() {
        let results = read_text(&format!("{HEAD}\n{{\"type\":\"request\",\"x\":[1]}}\n{PHASE}\n")).unwrap();
        let run = results.run.unwrap();
        assert_eq!((run.phases.len(), run.phases[0].num_ok, run.header.name.as_str()), (1, 6, "chat"));
        assert!(run.phases[0].objective.is_none());
        let converted = results.converted.unwrap();
        assert!(converted.contains("from format 1 to 2") && converted.contains("0.1.0"), "{converted}");
        assert!(converted.contains("no goodput"), "{converted}");
    }

    #[test]
    fn a_later_format_is_refused_with_the_reason() {
        let head = HEAD.replace("\"seed\":1", "\"seed\":1,\"format\":3");
        let error = read_text(&format!("{head}\n{{\"type\":\"unheard-of\"}}\n")).unwrap_err();
        assert!(error.contains("0.1.0 in format 3") && error.contains("reads formats 1 to 2"), "{error}");
    }

    #[test]
    fn the_present_format_needs_no_conversion() {
        let head = HEAD.replace("\"seed\":1", "\"seed\":1,\"format\":2");
        assert_eq!(read_text(&format!("{head}\n{PHASE}\n")).unwrap().converted, None);
    }

    #[test]
    fn cold_starts_are_told_from_runs_in_both_formats() {
        let old = read_text("{\"ready_s\":1.0,\"first_token_s\":2.0}\n").unwrap();
        assert!(old.run.is_none() && old.converted.unwrap().contains("an early version"));
        let new = read_text("{\"type\":\"cold_start\",\"format\":2}\n{\"ready_s\":1.0}\n").unwrap();
        assert!(new.run.is_none() && new.converted.is_none());
    }

    #[test]
    fn other_files_and_broken_lines_are_refused_with_their_place() {
        for text in ["", "{}\n", "name,value\n", "{\"type\":\"poem\"}\n"] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains("line 1 is no head"), "{text:?} gave {error}");
        }
        let torn = read_text(&format!("{HEAD}\n{}\n", &PHASE[..100])).unwrap_err();
        assert!(torn.contains("line 2"), "{torn}");
        let lacking = read_text(&format!("{HEAD}\n{}\n", PHASE.replace("\"num_ok\":6,", ""))).unwrap_err();
        assert!(lacking.contains("line 2") && lacking.contains("num_ok"), "{lacking}");
    }
}
