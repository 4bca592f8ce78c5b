//! `policy build`: a component of a core module, so that no other tool is needed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use quern_extensions::inspect::{self, Kind};

use crate::{Outcome, Usage};

/// `quern policy build`.
#[derive(Debug, Clone, Args)]
pub struct BuildArgs {
    /// A core module that was built against the contract.
    pub module: PathBuf,
    /// Where the component goes; NAME.component.wasm beside the module without it.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

pub(crate) fn run(args: &BuildArgs) -> anyhow::Result<Outcome> {
    let output = args.output.clone().unwrap_or_else(|| args.module.with_extension("component.wasm"));
    let size = build(&args.module, &output)?;
    println!("{}: {size} bytes", output.display());
    Ok(Outcome::Well)
}

/// Writes the component, and gives back its size.
///
/// # Errors
/// When it is no core module, or does not fit the contract.
pub fn build(module: &Path, output: &Path) -> anyhow::Result<usize> {
    let bytes = std::fs::read(module).with_context(|| format!("{} cannot be read", module.display()))?;
    if inspect::kind(&bytes)? == Kind::Component {
        return Err(Usage(format!("{} is a component already", module.display())).into());
    }
    let component = inspect::componentize(&bytes)?;
    // What cannot be loaded is not worth writing.
    inspect::outline(&component)?;
    std::fs::write(output, &component).with_context(|| format!("{} cannot be written", output.display()))?;
    Ok(component.len())
}
