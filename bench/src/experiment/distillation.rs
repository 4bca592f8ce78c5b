//! `distillation`, as far as it needs no training: small models beside a big one on the big one's labels.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use super::About;
use super::chart::Panel;
use super::lab::Lab;
use super::load::Ask;
use super::model_files::{FILE, size_mib};
use super::quality::{self, ACCURACY, MACRO_F1, NUM_ROWS};
use super::section::Findings;
use super::sheet::{Column, Sheet, more};
use super::speed::{ANONYMOUS, RESIDENT};
use super::texts;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "distillation",
    title: "A big model's labels served by smaller ones",
    question: "How often do smaller models name the label that a big one names, and how many more texts do they label?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct DistillationArgs {
    /// The big model's GGUF file, whose labels count. `--model` is the first of the small ones.
    #[arg(long, value_name = "FILE")]
    teacher: PathBuf,
    /// Further small models' GGUF files.
    #[arg(long = "student", value_name = "FILE")]
    students: Vec<PathBuf>,
}

const AGREEMENT: Column = more(
    "agreement",
    "agreement with the teacher",
    "share of the labelled rows with the label that the big model names",
);
const TEXTS: Column = more(
    "texts_per_s",
    "texts/s",
    "texts per second that a node labels through /v1/classify, 8 at once, by how likely it is to answer with each label",
);

const COLUMNS: &[Column] = &[FILE, AGREEMENT, ACCURACY, MACRO_F1, NUM_ROWS, TEXTS, RESIDENT, ANONYMOUS];
/// The classifier's name in the node's configuration.
pub(super) const CLASSIFIER: &str = "experiment-labels";
/// Texts that are labelled at once.
const NUM_AT_ONCE: usize = 8;

pub(super) fn distillation(lab: &Lab, args: &DistillationArgs) -> anyhow::Result<Findings> {
    let all = std::iter::once(&args.teacher).chain([&lab.wish.model]).chain(&args.students);
    let named = |(idx, file): (usize, &PathBuf)| {
        anyhow::ensure!(file.is_file(), "{}: there is no such file", file.display());
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        Ok((format!("{}: {stem}", if idx == 0 { "teacher" } else { "student" }), file.clone()))
    };
    let models: Vec<(String, PathBuf)> = all.enumerate().map(named).collect::<Result<_, _>>()?;
    lab.expect_steps(models.len() * (1 + lab.wish.rounds));
    let rows = texts::rows(&std::fs::read_to_string(lab.rows_file()?)?)?;
    let mut sheet = Sheet::new(None, COLUMNS);
    let (taught, all_labels) = (lab.scratch("taught.csv"), lab.scratch("labels.txt"));
    std::fs::write(&all_labels, labels_of(&rows).join("\n"))?;
    for (name, model) in &models {
        lab.say(format!("{name}: judging"));
        lab.attempt(&mut sheet, name, |sheet| {
            if *model == args.teacher {
                std::fs::write(&taught, taught_rows(lab, model)?)?;
            }
            sheet.add(name, 0.0, 0, [(FILE.id, Some(size_mib(model)?))]);
            sheet.add(name, 0.0, 0, quality::accuracy(lab, model, None)?);
            let agreed = quality::accuracy_on(lab, model, None, (&taught, Some(&all_labels)))?;
            let agreed = agreed.into_iter().find_map(|(id, value)| value.filter(|_| id == ACCURACY.id));
            sheet.add(name, 0.0, 0, [(AGREEMENT.id, agreed)]);
            Ok(())
        })?;
    }
    lab.rounds(&mut sheet, &models, |sheet, (name, model), round| {
        let mut settings = lab.settings(model);
        settings.config = classifier_config(lab, &rows)?;
        let served = lab.start(&settings)?;
        let asks = |from: usize, count: usize| -> Vec<Ask> {
            let texts = rows.iter().cycle().skip(from).take(count);
            texts.map(|(text, _)| Ask::label(text.clone()).of(CLASSIFIER)).collect()
        };
        lab.ask(&served, &asks(0, 1))?;
        let num_texts = if lab.wish.is_quick { NUM_AT_ONCE } else { NUM_AT_ONCE * 8 };
        let begun = Instant::now();
        for batch in asks(1, num_texts).chunks(NUM_AT_ONCE) {
            lab.ask(&served, batch)?;
        }
        let rate = num_texts as f64 / begun.elapsed().as_secs_f64();
        let memory = served.node.memory();
        sheet.add(
            name,
            0.0,
            round,
            [
                (TEXTS.id, Some(rate)),
                (RESIDENT.id, memory.map(|memory| memory.resident_mib)),
                (ANONYMOUS.id, memory.map(|memory| memory.anonymous_mib)),
            ],
        );
        Ok(())
    })?;
    let bars = [AGREEMENT, ACCURACY, TEXTS, FILE].map(|column| Panel::Bars(column.id, 0.0));
    let panels = bars.into_iter().chain([Panel::Points(TEXTS.id, AGREEMENT.id)]).collect();
    let mut findings = Findings::new(sheet, panels);
    findings.method = vec![
        "The big model labels the rows (`quern eval --predictions`); every model is judged on these labels and on the rows' \
         own. Speed: a node of each model in turn that classifies by the same labels."
            .to_owned(),
        quality::method(lab),
    ];
    findings.not_measured =
        vec!["Small models after training on the big one's labels: nothing is trained here.".to_owned()];
    Ok(findings)
}

/// The rows with the big model's labels in place of their own.
fn taught_rows(lab: &Lab, teacher: &Path) -> anyhow::Result<String> {
    let predictions = lab.scratch("predictions.csv");
    let path = |path: &Path| path.display().to_string();
    let mut words = vec!["eval".to_owned(), path(teacher), "--csv".to_owned(), path(&lab.rows_file()?)];
    words.extend(["--predictions".to_owned(), path(&predictions)]);
    words.extend(["--rows".to_owned(), quality::max_rows(lab).to_string()]);
    words.extend(["--threads".to_owned(), lab.wish.threads.to_string()]);
    words.extend(quality::system(lab).into_iter().flat_map(|text| ["--system".to_owned(), text.to_owned()]));
    lab.quern(words)?;
    relabelled(&std::fs::read_to_string(&predictions)?)
}

/// From a file of predictions (`text`, `label`, `predicted`, …) to rows whose label is the predicted one.
fn relabelled(predictions: &str) -> anyhow::Result<String> {
    let mut reader = csv::Reader::from_reader(predictions.as_bytes());
    let header = reader.headers()?.clone();
    let find = |name: &str| {
        header
            .iter()
            .position(|column| column == name)
            .with_context(|| format!("predictions without {name:?}"))
    };
    let (text, predicted) = (find("text")?, find("predicted")?);
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(["text", "label"])?;
    for record in reader.records() {
        let record = record?;
        csv.write_record([&record[text], &record[predicted]])?;
    }
    Ok(String::from_utf8(csv.into_inner()?)?)
}

fn labels_of(rows: &[(String, String)]) -> Vec<&str> {
    let mut labels: Vec<&str> = rows.iter().map(|(_, label)| label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

/// A configuration with a classifier by the rows' labels.
pub(super) fn classifier_config(lab: &Lab, rows: &[(String, String)]) -> anyhow::Result<String> {
    let labels = labels_of(rows);
    let system = quality::system(lab).map(|text| serde_json::json!({"role": "system", "content": text}));
    let user = serde_json::json!({"role": "user", "content": "{text}"});
    let messages: Vec<_> = system.into_iter().chain([user]).collect();
    let config =
        serde_json::json!({"classifier": [{"name": CLASSIFIER, "labels": labels, "messages": messages}]});
    Ok(toml::to_string(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_become_labels() {
        let predictions = "text,label,predicted,a,b\n\"x, y\",a,b,0.1,0.9\n";
        assert_eq!(relabelled(predictions).unwrap(), "text,label\n\"x, y\",b\n");
        assert!(relabelled("text,label\n").unwrap_err().to_string().contains("predicted"));
    }
}
