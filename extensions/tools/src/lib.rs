//! The tools that policies are written with: `quern policy ...`.
//!
//! Each command is a file of its own: [`PolicyCommand`] says what can be typed,
//! [`run`] does it. `opened.rs` is how all of them load a policy; `simulate/`
//! judges policies before they serve, `record/` keeps what a live node asked.
//!
//! This crate knows snapshots, plans and the host of policies. It must not know
//! engines that compute, text, HTTP or an async runtime.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bench;
mod build;
mod chart;
mod check;
mod costs;
mod fit;
mod fuzz;
mod opened;
pub mod record;
mod replay;
mod scaffold;
mod scale;
pub mod simulate;
mod stats;

use std::process::ExitCode;

use clap::Subcommand;

pub use bench::{BenchArgs, Measured, bench as measure};
pub use build::{BuildArgs, build};
pub use check::{CheckArgs, Checked, check};
pub use costs::{Costs, Fit};
pub use fit::FitArgs;
pub use opened::OpenArgs;
pub use replay::{Compared, ReplayArgs, replay};
pub use scaffold::{Kind, NewArgs, create};
pub use scale::{ScaleArgs, Scaled, scale};
pub use simulate::SimulateArgs;

/// `quern policy`: what can be done with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Begin a policy: a crate that builds and passes its test.
    New(NewArgs),
    /// Make a component of a core module.
    Build(BuildArgs),
    /// Say what a policy is and wants, and try it on steps of all sorts.
    Check(CheckArgs),
    /// Measure what a call of a scheduler policy costs.
    Bench(BenchArgs),
    /// Judge policies by serving a trace in simulated time.
    Simulate(Box<SimulateArgs>),
    /// Ask a policy what recorded steps were asked, and compare.
    Replay(ReplayArgs),
    /// Fit what steps cost to a table of steps.
    Fit(FitArgs),
    /// Let an autoscaler see to the workers of a made-up hour.
    Scale(ScaleArgs),
}

/// Runs a command; what it has to say goes to standard output. The exit code is
/// 0 if all is well, 1 if something is wrong with what was looked at or with the
/// machine, and 64 if the command makes no sense.
#[must_use]
pub fn run(command: PolicyCommand) -> ExitCode {
    let done = match command {
        PolicyCommand::New(args) => scaffold::run(&args),
        PolicyCommand::Build(args) => build::run(&args),
        PolicyCommand::Check(args) => check::run(&args),
        PolicyCommand::Bench(args) => bench::run(&args),
        PolicyCommand::Simulate(args) => simulate::run(&args),
        PolicyCommand::Replay(args) => replay::run(&args),
        PolicyCommand::Fit(args) => fit::run(&args),
        PolicyCommand::Scale(args) => scale::run(&args),
    };
    match done {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 64 } else { 1 })
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Well,
    Wrong,
}

/// A command that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Prints a result as JSON, for other programs.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
