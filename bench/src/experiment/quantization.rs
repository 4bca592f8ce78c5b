//! `quantization`: every format that the pipeline writes, by size, memory, speed and quality.

use std::path::{Path, PathBuf};

use clap::Args;

use super::About;
use super::chart::Panel;
use super::lab::Lab;
use super::model_files::{self, AS_GIVEN, FILE};
use super::quality::{self, ACCURACY, PERPLEXITY};
use super::section::Findings;
use super::speed::{ANONYMOUS, DECODE, PREFILL};

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "quantization",
    title: "Quantisation: size, memory, speed and quality of every format",
    question: "What does each format of the model cost and give, on this machine?",
};

/// Every format that `quern quantize` writes, the largest first.
const FORMATS: [&str; 10] =
    ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"];
/// Those of them that a quick look leaves out: F16 stands for whole numbers.
const SLOW_FORMATS: [&str; 2] = ["F32", "BF16"];

/// Its own flags.
#[derive(Debug, Args)]
pub struct QuantizationArgs {
    /// Formats to make; all that there are, but for F32 and BF16 with --quick.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    formats: Vec<String>,
    /// An importance matrix for the formats that use one.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
}

pub(super) fn quantization(lab: &Lab, args: &QuantizationArgs) -> anyhow::Result<Findings> {
    let is_left_out = |format: &&str| lab.wish.is_quick && SLOW_FORMATS.contains(format);
    let formats: Vec<String> = match &args.formats[..] {
        [] => {
            FORMATS.iter().filter(|format| !is_left_out(format)).map(|format| (*format).to_owned()).collect()
        }
        given => given.to_vec(),
    };
    lab.expect_steps((formats.len() + 1) * (1 + lab.wish.rounds));
    let mut sheet = model_files::sheet();
    let made = formats.iter().map(|format| (format.clone(), Some(format)));
    let wanted = std::iter::once((AS_GIVEN.to_owned(), None)).chain(made);
    let files = model_files::make_and_judge(lab, &mut sheet, wanted, |format| match format {
        Some(format) => quantize(lab, args, format),
        None => Ok(lab.wish.model.clone()),
    })?;
    model_files::measure_speeds(lab, &mut sheet, &files)?;
    let panels = vec![
        Panel::Bars(FILE.id, 0.0),
        Panel::Bars(PREFILL.id, 0.0),
        Panel::Bars(DECODE.id, 0.0),
        Panel::Points(FILE.id, PERPLEXITY.id),
        Panel::Bars(ACCURACY.id, 0.0),
        Panel::Bars(ANONYMOUS.id, 0.0),
    ];
    let mut findings = Findings::new(sheet, panels);
    findings.method = vec![
        "Every format is made of the model's file by `quern quantize`. A file that is quantised already cannot gain: its \
         larger formats repeat its own errors, its smaller ones lose a second time."
            .to_owned(),
        quality::method(lab),
        "Speed: a node of each format in turn, round by round, asked by one client.".to_owned(),
    ];
    findings.not_measured = vec![
        "Speed with many clients at once: see `profile`.".to_owned(),
        "Quality on long texts.".to_owned(),
    ];
    let left_out: Vec<&str> =
        FORMATS.into_iter().filter(|format| !formats.iter().any(|other| other == format)).collect();
    if !left_out.is_empty() {
        findings.not_measured.push(format!("Formats that were left out: {}.", left_out.join(", ")));
    }
    Ok(findings)
}

fn quantize(lab: &Lab, args: &QuantizationArgs, format: &str) -> anyhow::Result<PathBuf> {
    let file = lab.scratch(&format!("{format}.gguf"));
    let path = |path: &Path| path.display().to_string();
    let mut words = vec!["quantize".to_owned(), path(&lab.wish.model), path(&file), format.to_owned()];
    words.extend(args.importance.iter().flat_map(|file| ["--importance".to_owned(), path(file)]));
    lab.quern(words)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_named_once() {
        let mut formats = FORMATS.to_vec();
        formats.sort_unstable();
        formats.dedup();
        assert_eq!(formats.len(), 10);
        assert!(SLOW_FORMATS.iter().all(|slow| formats.contains(slow)));
    }
}
