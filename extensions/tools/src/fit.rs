//! `policy fit`: costs from a table of steps, however they were measured.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use crate::costs::{Fit, Sample, fit};
use crate::{Outcome, print_json};

/// Steps that are read.
const MAX_STEPS: usize = 1 << 20;

/// `quern policy fit`.
#[derive(Debug, Clone, Args)]
pub struct FitArgs {
    /// Steps as CSV with the columns `rows`, `outputs` and `took_us`; others are left alone.
    pub steps: PathBuf,
    /// Write the costs, for `quern policy simulate --costs`.
    #[arg(long, value_name = "FILE.json")]
    pub costs_out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Deserialize)]
struct Line {
    rows: u32,
    outputs: u32,
    took_us: f64,
}

pub(crate) fn run(args: &FitArgs) -> anyhow::Result<Outcome> {
    let file = &args.steps;
    let samples = read(file).with_context(|| format!("{} is no table of steps", file.display()))?;
    let found = fit(&samples).with_context(|| format!("{} has no steps that tell costs", file.display()))?;
    if let Some(path) = &args.costs_out {
        std::fs::write(path, serde_json::to_string_pretty(&found.costs)?)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        print_json(&found)?;
    } else {
        let Fit { costs, steps, error_p50, error_p95 } = found;
        println!(
            "fixed {:.0} us, a row {:.0} us, an output {:.0} us",
            costs.fixed_us, costs.row_us, costs.output_us
        );
        println!(
            "{steps} steps; half of them took within {:.1} % of that, all but a twentieth within {:.1} %",
            100.0 * error_p50,
            100.0 * error_p95
        );
    }
    Ok(Outcome::Well)
}

fn read(path: &Path) -> anyhow::Result<Vec<Sample>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
    let lines = reader.deserialize().take(MAX_STEPS);
    let sample = |line: Result<Line, csv::Error>| {
        line.map(|Line { rows, outputs, took_us }| Sample { rows, outputs, took_us })
    };
    Ok(lines.map(sample).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_steps_gives_the_costs_it_was_made_with() {
        let folder = tempfile::tempdir().unwrap();
        let (steps, costs) = (folder.path().join("steps.csv"), folder.path().join("costs.json"));
        let line = |(rows, outputs): (u32, u32)| {
            format!("x,{rows},{outputs},{}\n", 1000 + 100 * rows + 50 * outputs)
        };
        let lines: String = [(1, 1), (9, 3), (64, 1), (40, 8)].map(line).concat();
        std::fs::write(&steps, format!("note,rows,outputs,took_us\n{lines}")).unwrap();
        let args = FitArgs { steps: steps.clone(), costs_out: Some(costs.clone()), json: false };
        assert_eq!(run(&args).unwrap(), Outcome::Well);
        let found = crate::Costs::read(&costs).unwrap();
        for (found, made) in [(found.fixed_us, 1000.0), (found.row_us, 100.0), (found.output_us, 50.0)] {
            assert!((found - made).abs() < 1e-3, "{found} for {made}");
        }
        std::fs::write(&steps, "rows,outputs\n1,1\n").unwrap();
        assert!(run(&args).is_err());
    }
}
