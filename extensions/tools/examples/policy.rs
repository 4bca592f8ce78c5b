//! `quern policy` without the node, which takes a quarter of an hour to build.
//!
//! `cargo run --release -p quern-policy-tools --example policy -- check POLICY.wasm`

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "policy", about = "The author's tools for policies.")]
struct Cli {
    #[command(subcommand)]
    command: quern_policy_tools::PolicyCommand,
}

fn main() -> ExitCode {
    quern_policy_tools::run(Cli::parse().command)
}
