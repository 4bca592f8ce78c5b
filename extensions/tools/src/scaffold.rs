//! `policy new`: a crate of a policy that builds and passes its test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::{Outcome, Usage};

/// `quern policy new`.
#[derive(Debug, Clone, Args)]
pub struct NewArgs {
    /// The policy's name, and that of its folder: small letters, digits and hyphens.
    pub name: String,
    /// What it decides.
    #[arg(long, value_enum, default_value_t = Kind::Scheduler)]
    pub hook: Kind,
    /// The folder of the SDK, `extensions/sdk` of Quern's sources; looked for from
    /// here upwards without it.
    #[arg(long, value_name = "FOLDER")]
    pub sdk: Option<PathBuf>,
    /// Where the new folder goes.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub at: PathBuf,
}

/// Hooks that there is a beginning for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Whom to run in the next step.
    Scheduler,
    /// Whether to take a request.
    Admission,
}

impl Kind {
    fn source(self) -> &'static str {
        match self {
            Kind::Scheduler => include_str!("../templates/scheduler.rs.txt"),
            Kind::Admission => include_str!("../templates/admission.rs.txt"),
        }
    }
}

pub(crate) fn run(args: &NewArgs) -> anyhow::Result<Outcome> {
    let folder = create(args)?;
    println!("{}: see its README.md. Its test runs with `cargo test` there.", folder.display());
    Ok(Outcome::Well)
}

/// Writes the crate, and gives back its folder.
///
/// # Errors
/// When the name is none, the folder is there, or the SDK is not.
pub fn create(args: &NewArgs) -> anyhow::Result<PathBuf> {
    let name = &args.name;
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !letters
        || !name.starts_with(|first: char| first.is_ascii_lowercase())
        || name.ends_with('-')
        || name.len() > 64
    {
        return Err(
            Usage(format!("`{name}` is no name: small letters, digits and hyphens, a letter first")).into()
        );
    }
    let sdk = match &args.sdk {
        Some(sdk) => sdk.clone(),
        None => find_sdk(&args.at)
            .ok_or_else(|| Usage("there is no extensions/sdk above: say where with --sdk".into()))?,
    };
    let sdk = fs::canonicalize(&sdk).ok().filter(|sdk| sdk.join("Cargo.toml").exists());
    let sdk = sdk.ok_or_else(|| Usage("--sdk is no folder of a crate".to_owned()))?;
    let folder = args.at.join(name);
    fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    fs::create_dir(folder.join("src"))?;
    let fill = |template: &str| {
        template
            .replace("{name}", name)
            .replace("{crate}", &name.replace('-', "_"))
            .replace("{type}", &type_name(name))
            .replace("{sdk}", &sdk.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
            .replace("{build}", &sdk.with_file_name("build-guests").display().to_string())
    };
    fs::write(folder.join("Cargo.toml"), fill(include_str!("../templates/Cargo.toml.txt")))?;
    fs::write(folder.join("README.md"), fill(include_str!("../templates/README.md.txt")))?;
    fs::write(folder.join("src/lib.rs"), fill(args.hook.source()))?;
    Ok(folder)
}

fn find_sdk(from: &Path) -> Option<PathBuf> {
    let from = fs::canonicalize(from).ok()?;
    let candidates = from.ancestors().map(|folder| folder.join("extensions/sdk"));
    candidates.into_iter().find(|sdk| sdk.join("Cargo.toml").exists())
}

/// `my-policy` becomes `MyPolicy`.
fn type_name(name: &str) -> String {
    let upper = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    name.split('-').map(upper).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn args(name: &str, hook: Kind, at: &Path) -> NewArgs {
        let sdk = std::env::var_os("QUERN_TEST_SDK").map(PathBuf::from);
        let sdk = sdk.or_else(|| Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk")));
        NewArgs { name: name.to_owned(), hook, sdk, at: at.to_owned() }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "Upper", "1st", "a/b", "..", "under_score", "end-"] {
            let error = create(&args(name, Kind::Scheduler, folder.path())).unwrap_err();
            assert!(error.is::<Usage>(), "{name}: {error}");
        }
        assert_eq!(type_name("my-first-policy2"), "MyFirstPolicy2");
    }

    /// The new crates' own tests, as an author would run them.
    #[test]
    fn new_crates_pass_their_tests() {
        let folder = tempfile::tempdir().unwrap();
        for (name, hook) in [("patient", Kind::Scheduler), ("door-keeper", Kind::Admission)] {
            let args = args(name, hook, folder.path());
            if !args.sdk.as_ref().unwrap().exists() {
                eprintln!("SKIPPED: there is no SDK beside this crate");
                return;
            }
            let made = create(&args).unwrap();
            assert!(create(&args).is_err(), "a folder is not replaced");
            let tested = Command::new(env!("CARGO"))
                .args(["test", "--offline", "--quiet"])
                .current_dir(&made)
                .env("CARGO_TARGET_DIR", folder.path().join("target"))
                .env_remove("RUSTFLAGS")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&tested.stderr) + String::from_utf8_lossy(&tested.stdout);
            assert!(tested.status.success(), "{said}");
            assert!(said.contains("2 passed"), "{said}");
        }
    }
}
