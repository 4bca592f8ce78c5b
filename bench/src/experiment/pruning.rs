//! `pruning`: the model without its smallest weights, by share, against quality and speed.

use std::path::PathBuf;

use clap::Args;

use super::About;
use super::chart::Panel;
use super::lab::Lab;
use super::model_files::{self, AS_GIVEN, FILE};
use super::quality::{self, ACCURACY, PERPLEXITY};
use super::section::Findings;
use super::speed::{DECODE, PREFILL};

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "pruning",
    title: "Pruning: quality and speed by share of weights set to zero",
    question: "How many of the smallest weights can go before the model is worse, and does anything get faster?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct PruningArgs {
    /// Shares of the weights that become 0; 0.1,0.3,0.5 with --quick.
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    fractions: Vec<f64>,
    /// Among which weights the smallest are sought: global, layer, tensor.
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', default_value = "global")]
    by: Vec<String>,
    /// What pruned models are stored as; each tensor as it was without it.
    #[arg(long = "type", value_name = "TYPE")]
    file_type: Option<String>,
}

pub(super) fn pruning(lab: &Lab, args: &PruningArgs) -> anyhow::Result<Findings> {
    let fractions = match (&args.fractions[..], lab.wish.is_quick) {
        ([], true) => vec![0.1, 0.3, 0.5],
        ([], false) => vec![0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7],
        (given, _) => given.to_vec(),
    };
    lab.expect_steps((1 + fractions.len() * args.by.len()) * (1 + lab.wish.rounds));
    let mut sheet = model_files::sheet();
    let pruned = args.by.iter().flat_map(|by| fractions.iter().map(move |fraction| (by, *fraction)));
    let pruned = pruned.map(|(by, share)| (format!("{} % by {by}", share * 100.0), Some((by, share))));
    let wanted = std::iter::once((AS_GIVEN.to_owned(), None)).chain(pruned);
    let files = model_files::make_and_judge(lab, &mut sheet, wanted, |wanted| match wanted {
        Some((by, fraction)) => prune(lab, args, by, fraction),
        None => Ok(lab.wish.model.clone()),
    })?;
    model_files::measure_speeds(lab, &mut sheet, &files)?;
    let panels = vec![
        Panel::Bars(PERPLEXITY.id, 0.0),
        Panel::Bars(ACCURACY.id, 0.0),
        Panel::Bars(DECODE.id, 0.0),
        Panel::Bars(PREFILL.id, 0.0),
        Panel::Bars(FILE.id, 0.0),
    ];
    let mut findings = Findings::new(sheet, panels);
    findings.method = vec![
        "Every file is made of the model's by `quern prune`: the smallest weights of the layers' matrices become 0, \
         without training after it. Block formats with minima (Q4_K and its kin) keep zeros only about."
            .to_owned(),
        quality::method(lab),
        "Speed: a node of each file in turn, round by round, asked by one client. Nothing here skips zeros, so speed and \
         size are expected to stay."
            .to_owned(),
    ];
    findings.not_measured = vec![
        "Pruning with training after it, which loses less.".to_owned(),
        "Kernels that skip zeros: there are none here.".to_owned(),
    ];
    Ok(findings)
}

fn prune(lab: &Lab, args: &PruningArgs, by: &str, fraction: f64) -> anyhow::Result<PathBuf> {
    let file = lab.scratch(&format!("{by}-{fraction}.gguf"));
    let mut words = vec!["prune".to_owned()];
    words.extend([&lab.wish.model, &file].map(|path| path.display().to_string()));
    words.extend(["--fraction".to_owned(), fraction.to_string(), "--by".to_owned(), by.to_owned()]);
    words.extend(args.file_type.iter().flat_map(|kind| ["--type".to_owned(), kind.clone()]));
    lab.quern(words)?;
    Ok(file)
}
