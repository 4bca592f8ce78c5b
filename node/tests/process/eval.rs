//! `quern eval`, `quern importance` and `quern quantize --calibration-text` on tiny models.

use std::fs;
use std::path::{Path, PathBuf};

use quern_adapters::{
    Change, FileType, Head, Importance, Plain, RowChange, Types, Unchanged, open_source, rewrite,
};
use quern_gguf::{Gguf, GgufWriter, TensorInfo, TensorType, Value};
use serde_json::Value as Json;

use crate::node::{file, quern, tiny_model, told};

/// Some hundreds of tokens for any vocabulary.
const TEXT: &str = "The miller pours grain between two stones, and the stones make flour of it. \
    One stone lies still and the other turns. What is ground too coarse goes back once more.\n";

#[track_caller]
fn said(args: &[&str]) -> String {
    let (code, out, err) = told(&quern(args));
    assert_eq!(code, 0, "{out}{err}");
    out
}

#[track_caller]
fn report(args: &[&str]) -> Json {
    let out = said(&[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[track_caller]
fn refused(args: &[&str], code: i32, part: &str) {
    let (found, out, err) = told(&quern(args));
    assert_eq!(found, code, "{out}{err}");
    assert!(err.contains(part), "{part} is not in\n{err}");
}

fn text(folder: &Path) -> String {
    file(folder, "text.txt", &TEXT.repeat(8))
}

/// Sets all of a matrix to zero.
struct Zeroed(&'static str);

impl Change for Zeroed {
    fn begin(
        &mut self,
        tensor: &TensorInfo,
    ) -> Result<Option<Box<dyn RowChange + '_>>, quern_adapters::PipelineError> {
        let zero: Box<dyn RowChange> = Box::new(Zero);
        Ok((tensor.name == self.0).then_some(zero))
    }
}

struct Zero;

impl RowChange for Zero {
    fn apply(&mut self, _: u64, _: usize, rows: &mut [f32]) {
        rows.fill(0.0);
    }
}

/// Gives a model a classification head.
pub struct WithHead(pub Head);

impl Change for WithHead {
    fn begin(
        &mut self,
        _: &TensorInfo,
    ) -> Result<Option<Box<dyn RowChange + '_>>, quern_adapters::PipelineError> {
        Ok(None)
    }

    fn entries(&self) -> Vec<(String, Value)> {
        self.0.entries().into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

pub fn changed(model: &Path, name: &str, change: &mut dyn Change) -> PathBuf {
    let out = model.with_file_name(name);
    let source = open_source(model).unwrap();
    rewrite(source.as_ref(), change, Types::Kept, &Plain, &out, &mut |_| {}).unwrap();
    out
}

#[test]
fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
    let (dir, model) = tiny_model();
    let text = text(dir.path());
    let flat = changed(&model, "flat.gguf", &mut Zeroed("output.weight"));
    let same = changed(&flat, "same.gguf", &mut Unchanged);
    let gguf = Gguf::open(&model).unwrap();
    let vocab_size = gguf.strings("tokenizer.ggml.tokens").unwrap().len() as f64;

    let paths = [&flat, &model, &same].map(|path| path.to_str().unwrap());
    let args = ["eval", paths[0], paths[1], paths[2], "--text", &text, "--context", "64", "--threads", "1"];
    let found = report(&args);
    assert_eq!(found["task"], "text");
    let models = found["models"].as_array().unwrap();
    let number = |value: &Json| value.as_f64().unwrap();
    let [flat, model, same] = &models[..] else { panic!("three models: {models:?}") };
    assert!((number(&flat["perplexity"]["mean"]) - vocab_size).abs() < 1e-2, "{flat}");
    assert!(number(&flat["perplexity"]["error"]) < 1e-3, "all tokens are equally likely: {flat}");
    assert_eq!(flat["against_first"], Json::Null);
    let (windows, judged) = (number(&flat["num_windows"]), number(&flat["num_judged"]));
    assert!(windows >= 2.0 && judged == windows * 31.0, "{flat}");
    // Random weights with wide logits are surer than nothing, and wrong.
    assert!(number(&model["perplexity"]["mean"]) > vocab_size, "{model}");
    let difference = number(&model["perplexity"]["mean"]) - number(&flat["perplexity"]["mean"]);
    assert!((number(&model["against_first"]["perplexity"]["mean"]) - difference).abs() < 1e-6);
    assert_eq!(same["against_first"]["perplexity"]["mean"], 0.0);
    assert_eq!(same["against_first"]["perplexity"]["error"], 0.0);
    assert_eq!(same["against_first"]["ratio"]["mean"], 1.0);

    let out = said(&["eval", paths[0], "--text", &text, "--context", "32", "--chunks", "2", "--stride", "8"]);
    assert!(out.contains("2 windows of 32 tokens, 16 tokens judged") && out.contains("perplexity "), "{out}");
}

/// A head that looks at nothing and prefers its second label by one.
fn biased() -> Head {
    let labels = ["no", "yes", "perhaps"].map(str::to_owned).to_vec();
    Head { weight: vec![0.0; 3 * 256], bias: Some(vec![0.0, 1.0, 0.0]), labels, hidden: 256 }
}

fn rows(folder: &Path) -> String {
    let texts = ["turn it", "stop", "what is it", "grind more of it, please", "go on", "yes", "a, b", "no"];
    let labels = ["yes", "no", "perhaps", "yes", "yes", "yes", "yes", "no"];
    let lines: String =
        texts.iter().zip(labels).map(|(text, label)| format!("\"{text}\",{label}\n")).collect();
    file(folder, "rows.csv", &format!("text,label\n{lines}"))
}

#[test]
fn a_head_labels_rows_and_what_it_said_can_be_compared() {
    let (dir, model) = tiny_model();
    let rows = rows(dir.path());
    let model = changed(&model, "merged.gguf", &mut WithHead(biased()));
    let model = model.to_str().unwrap();
    let [said_file, svg, counts] = ["said.csv", "confusion.svg", "confusion.csv"]
        .map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let args = ["eval", model, "--csv", &rows, "--threads", "1"];
    let files = ["--predictions", &said_file, "--confusion", &svg, "--confusion", &counts];
    let found = report(&[&args[..], &files].concat());
    let one = &found["models"][0];
    assert_eq!((&one["by"], &found["num_labels"]), (&Json::from("head"), &Json::from(3)));
    assert_eq!(one["accuracy"]["mean"], 5.0 / 8.0);
    // Only "yes" is ever said: 2 * 5 / (5 + 8), and nothing for the others.
    assert!((one["macro_f1"].as_f64().unwrap() - 10.0 / 13.0 / 3.0).abs() < 1e-9, "{one}");
    // It is as sure of "yes" in every row as exp(1) is of exp(1) + 2.
    let sure = 1f64.exp() / (1f64.exp() + 2.0);
    let error = one["calibration_error"].as_f64().unwrap();
    assert!((error - (sure - 5.0 / 8.0).abs()).abs() < 1e-5, "{error}");
    let first = fs::read_to_string(&said_file).unwrap();
    let first = first.lines().nth(1).unwrap().to_owned();
    assert_eq!(first, "turn it,yes,yes,0.211942,0.576117,0.211942");
    assert!(fs::read_to_string(&svg).unwrap().contains("rows: true label; columns: predicted label"));
    assert!(fs::read_to_string(&counts).unwrap().starts_with("label,no,yes,perhaps\nno,0,2,0\nyes,0,5,0\n"));

    let found = report(&[&args[..], &["--reference", &said_file]].concat());
    let agreement = &found["models"][0]["agreement"];
    assert_eq!((&agreement["num_same_label"], &agreement["num_close"]), (&Json::from(8), &Json::from(8)));
    let found = report(&[&args[..], &["--reference", &said_file, "--rows", "3"]].concat());
    assert_eq!(found["models"][0]["agreement"]["num_rows"], 3, "its first rows are enough");

    let out = said(&["eval", model, "--calibrate", &rows]);
    assert!(
        out.contains("merged.calibration.json: temperature ") && out.contains("fitted on 8 rows"),
        "{out}"
    );
    let calibrated = report(&args)["models"][0]["calibrated_error"].as_f64().unwrap();
    assert!(calibrated < 1e-3, "one temperature makes one confidence right: {calibrated}");
}

#[test]
fn a_model_without_a_head_is_judged_by_its_answers() {
    let (dir, model) = tiny_model();
    let (model, rows) = (model.to_str().unwrap(), rows(dir.path()));
    let args = ["eval", model, "--csv", &rows, "--system", "Answer.", "--threads", "1"];
    let found = report(&args);
    let one = &found["models"][0];
    assert_eq!((&one["by"], &found["num_rows"]), (&Json::from("spoken"), &Json::from(8)));
    // "perhaps" is the third row's: it may be said of the first two all the same.
    let few = report(&[&args[..], &["--rows", "2"]].concat());
    assert_eq!((&few["num_labels"], &few["num_rows"]), (&Json::from(3), &Json::from(2)));
    let labels = file(dir.path(), "labels.txt", "perhaps\nno\n\nyes\nnever\n");
    let more = report(&[&args[..], &["--labels", &labels, "--rows", "3"]].concat());
    assert_eq!((&more["num_labels"], &more["num_rows"]), (&Json::from(4), &Json::from(3)));
    assert_eq!(more["models"][0]["confusion"]["labels"][3], "never");
}

/// A GGUF LoRA on the first layer's queries, whose B is `b` everywhere.
fn adapter(path: &Path, b: f32) -> String {
    let mut writer = GgufWriter::new();
    for (key, value) in
        [("general.architecture", "qwen2"), ("general.type", "adapter"), ("adapter.type", "lora")]
    {
        writer.set(key, value).unwrap();
    }
    writer.set("adapter.lora.alpha", 4f32).unwrap();
    let names = ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"];
    writer.tensor(names[0], &[256, 4], TensorType::F32).unwrap();
    writer.tensor(names[1], &[4, 256], TensorType::F32).unwrap();
    let mut stream = writer.create(path).unwrap();
    for (name, value) in names.into_iter().zip([0.1, b]) {
        let bytes: Vec<u8> = (0..4 * 256).flat_map(|_| f32::to_le_bytes(value)).collect();
        stream.write(name, |out| out.write_all(&bytes)).unwrap();
    }
    stream.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_adapter_counts_where_it_changes_something() {
    let (dir, model) = tiny_model();
    let (model, text) = (model.to_str().unwrap(), text(dir.path()));
    let args = ["eval", model, "--text", &text, "--context", "64", "--threads", "1"];
    let perplexity = |args: &[&str]| report(args)["models"][0]["perplexity"]["mean"].as_f64().unwrap();
    let plain = perplexity(&args);
    let nothing = adapter(&dir.path().join("nothing.gguf"), 0.0);
    let something = adapter(&dir.path().join("something.gguf"), 0.5);
    assert!((perplexity(&[&args[..], &["--adapter", &nothing]].concat()) / plain - 1.0).abs() < 1e-4);
    assert!((perplexity(&[&args[..], &["--adapter", &something]].concat()) / plain - 1.0).abs() > 1e-3);
    refused(&[&args[..], &["--adapter", model]].concat(), 1, "no LoRA adapter");
}

#[test]
fn quantising_on_a_text_is_measuring_and_then_quantising() {
    let (dir, model) = tiny_model();
    let text = text(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, imatrix) = (model.to_str().unwrap(), path("imatrix.gguf"));
    let out =
        said(&["importance", model, "--text", &text, "--out", &imatrix, "--chunks", "1", "--context", "512"]);
    assert!(out.contains("14 matrices, measured on 1 windows of 512 tokens"), "{out}");
    let importance = Importance::read(Path::new(&imatrix)).unwrap();
    assert_eq!(importance.len(), 14);
    assert!(importance.of("blk.1.ffn_down.weight").unwrap().iter().all(|mean| *mean > 0.0));

    let [plain, read, measured] = ["plain.gguf", "read.gguf", "measured.gguf"].map(path);
    let kind = FileType::Q4_K_M.name();
    said(&["quantize", model, &plain, kind]);
    said(&["quantize", model, &read, kind, "--importance", &imatrix]);
    said(&["quantize", model, &measured, kind, "--calibration-text", &text, "--calibration-chunks", "1"]);
    let [plain, read, measured] = [plain, read, measured].map(|path| fs::read(path).unwrap());
    // The file holds sums in 32 bits and the other way keeps 64 until the means.
    let num_different = read.iter().zip(&measured).filter(|(a, b)| a != b).count();
    assert!(read.len() == measured.len() && num_different < read.len() / 1000, "{num_different}");
    let num_different = read.iter().zip(&plain).filter(|(a, b)| a != b).count();
    assert!(num_different > read.len() / 100, "importance changes what is written: {num_different}");
}

#[test]
fn mistakes_are_said() {
    let (dir, model) = tiny_model();
    let (text, rows) = (text(dir.path()), rows(dir.path()));
    let model = model.to_str().unwrap();
    refused(&["eval", model], 64, "--text <FILE>|--csv <FILE>|--calibrate <FILE>");
    refused(&["eval", "--text", &text], 64, "<MODEL>");
    refused(&["eval", model, "--text", &text, "--csv", &rows], 64, "cannot be used with");
    refused(&["eval", model, "--text", &text, "--context", "3"], 64, "--context");
    refused(&["eval", model, "--csv", &rows, "--stride", "3"], 64, "cannot be used with");
    refused(&["eval", "no/such.gguf", "--text", &text], 64, "no such file: no/such.gguf");
    refused(&["eval", model, "--text", "no/such.txt"], 1, "no/such.txt: ");
    refused(&["eval", model, "--text", &text, "--context", "4000"], 1, "and a window needs 4000");
    refused(&["eval", model, "--text", &text, "--context", "5000"], 1, "the model reads 4096 at most");
    refused(&["eval", model, "--csv", &rows, "--label-column", "intent"], 1, "there is no column \"intent\"");
    let two = ["eval", model, model, "--csv", &rows, "--confusion", "never.svg"];
    refused(&two, 64, "about one model");
    refused(&["eval", model, model, "--calibrate", &rows], 64, "about one model");
    let merged = changed(Path::new(model), "merged.gguf", &mut WithHead(biased()));
    let unknown = file(dir.path(), "unknown.csv", "text,label\na,yes\nb,never\n");
    let args = ["eval", merged.to_str().unwrap(), "--csv", &unknown];
    refused(&args, 1, "line 3: the model has no label \"never\"; it has \"no\", \"yes\", \"perhaps\"");
    let both = ["quantize", model, "never.gguf", "Q8_0", "--importance", "a", "--calibration-text", "b"];
    refused(&both, 64, "cannot be used with");
    let short = file(dir.path(), "short.txt", "too short");
    let args = ["quantize", model, "never.gguf", "Q8_0", "--calibration-text", &short];
    refused(&args, 1, "tokens, and a window needs 512");
    let args = ["importance", model, "--text", &short, "--out", "never.gguf"];
    refused(&args, 1, "and a window needs 512");
    assert!(!Path::new("never.gguf").exists() && !Path::new("never.svg").exists());
}
