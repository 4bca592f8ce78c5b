//! `quantization`: every format that the pipeline writes, by size, memory, speed and quality.

use std::path::{Path, PathBuf};

use clap::Args;

use super::About;
use super::chart::Panel;
use super::lab::Lab;
use super::quality::{self, ACCURACY, MACRO_F1, NUM_ROWS, PERPLEXITY, PERPLEXITY_ERROR};
use super::section::Findings;
use super::sheet::{Column, Sheet, less};
use super::speed::{self, ANONYMOUS, Amounts, DECODE, PREFILL, PROMPT, READY, RESIDENT, TTFT};

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "quantization",
    title: "Quantisation: size, memory, speed and quality of every format",
    question: "What does each format of the model cost and give, on this machine?",
};

/// Every format that `quern quantize` writes, the largest first.
const FORMATS: &str = "F32,BF16,F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M,Q2_K";

/// The model's own file beside its formats.
pub(super) const AS_GIVEN: &str = "as given";

/// Its own flags.
#[derive(Debug, Args)]
pub struct QuantizationArgs {
    /// Formats to make.
    #[arg(long, value_name = "TYPES", value_delimiter = ',', default_value = FORMATS)]
    formats: Vec<String>,
    /// An importance matrix for the formats that use one.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
}

/// Size of a model's file.
pub(super) const FILE: Column = less("file_mib", "file MiB", "size of the model's file");

const COLUMNS: &[Column] = &[
    FILE,
    RESIDENT,
    ANONYMOUS,
    READY,
    PREFILL,
    DECODE,
    TTFT,
    PROMPT,
    PERPLEXITY,
    PERPLEXITY_ERROR,
    ACCURACY,
    MACRO_F1,
    NUM_ROWS,
];

pub(super) fn quantization(lab: &Lab, args: &QuantizationArgs) -> anyhow::Result<Findings> {
    lab.expect_steps((args.formats.len() + 1) * (1 + lab.wish.rounds));
    let mut sheet = Sheet::new(None, COLUMNS);
    let mut files = Vec::new();
    for name in std::iter::once(AS_GIVEN).chain(args.formats.iter().map(String::as_str)) {
        lab.say(format!("{name}: making and judging"));
        let made = lab.attempt(&mut sheet, name, |sheet| {
            let file = if name == AS_GIVEN { lab.wish.model.clone() } else { quantize(lab, args, name)? };
            judge(lab, sheet, name, &file)?;
            Ok(file)
        })?;
        files.extend(made.map(|file| (name.to_owned(), file)));
    }
    measure_speeds(lab, &mut sheet, &files)?;
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

/// Size and quality, which need no rounds.
pub(super) fn judge(lab: &Lab, sheet: &mut Sheet, name: &str, file: &Path) -> anyhow::Result<()> {
    let size_mib = std::fs::metadata(file)?.len() as f64 / 1024.0 / 1024.0;
    let mut figures = vec![(FILE.id, Some(size_mib))];
    figures.extend(quality::perplexity(lab, file, None)?);
    figures.extend(quality::accuracy(lab, file, None)?);
    sheet.add(name, 0.0, 0, figures);
    Ok(())
}

/// Speed and memory of each file, in turn.
pub(super) fn measure_speeds(
    lab: &Lab,
    sheet: &mut Sheet,
    files: &[(String, PathBuf)],
) -> anyhow::Result<()> {
    lab.rounds(sheet, files, |sheet, (name, file), round| {
        let served = lab.start(&lab.settings(file))?;
        let figures = speed::measure(lab, &served, Amounts::of(lab), None, false)?;
        sheet.add(name, 0.0, round, figures);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_speed_and_quality_has_a_column() {
        let ids: Vec<&str> = COLUMNS.iter().map(|column| column.id).collect();
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(FORMATS.split(',').count(), 10);
    }
}
