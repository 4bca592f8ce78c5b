//! Classification on llama.cpp: labels' scores against tokens' own logprobs on a tiny
//! random model, and a merged head on the default model against transformers.

use std::path::{Path, PathBuf};

use quern_adapters::Head;
use serde_json::{Value, json};

use crate::eval::{WithHead, changed};
use crate::node::{Node, file, quern, tiny_model, told};

const LABELS: [&str; 6] = ["pay", "pay bill", "payment", "transfer money", "transfer", "zzz"];

async fn post(node: &Node, path: &str, body: Value) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(format!("{}{path}", node.public)).json(&body).send().await.unwrap();
    answer.json().await.unwrap()
}

async fn tokens(node: &Node, body: Value) -> Vec<u64> {
    let answer = post(node, "/tokenize", body).await;
    let tokens = answer["tokens"].as_array().unwrap_or_else(|| panic!("{answer}"));
    tokens.iter().map(|token| token.as_u64().unwrap()).collect()
}

/// The log-probability of `label` behind `prompt`, one forced token after the other.
async fn alone(node: &Node, prompt: &[u64], label: &[u64]) -> f64 {
    let (mut tokens, mut sum) = (prompt.to_vec(), 0.0);
    for &token in label {
        let body = json!({
            "model": "tiny", "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": 0,
            "logit_bias": { token.to_string(): 100 },
        });
        let answer = post(node, "/v1/completions", body).await;
        let logprob = answer["choices"][0]["logprobs"]["token_logprobs"][0].as_f64();
        sum += logprob.unwrap_or_else(|| panic!("{answer}"));
        tokens.push(token);
    }
    sum
}

fn probs(object: &Value) -> Vec<f64> {
    let probs = object["probs"].as_array().unwrap_or_else(|| panic!("{object}"));
    probs.iter().map(|prob| prob.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn labels_score_what_their_tokens_do() {
    let dir = tempfile::tempdir().unwrap();
    let labels = file(dir.path(), "labels.txt", &format!("{}\n", LABELS.join("\n")));
    let config = format!(
        "[[classifier]]\nname = \"intents\"\nlabels_file = {labels:?}\nend_token = false\n\
         messages = [{{ role = \"user\", content = \"{{text}}\" }}]\n"
    );
    let config = file(dir.path(), "quern.toml", &config);
    let engine = ["--kv-capacity", "512", "--max-sequences", "5", "--threads", "1", "--threads-prefill", "1"];
    let node = Node::start("llama", &[&engine[..], &["--kv-type", "f32", "--config", &config]].concat());

    let texts = ["move my money", "what do i owe", "x"];
    let ask = |input: Value| json!({"model": "intents", "input": input});
    let together = post(&node, "/v1/classify", ask(json!(texts))).await;
    for (text, object) in texts.iter().zip(together["data"].as_array().unwrap()) {
        let prompt = json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
        let prompt = tokens(&node, prompt).await;
        let mut scores = Vec::new();
        for label in LABELS {
            let label = tokens(&node, json!({"model": "tiny", "prompt": label})).await;
            scores.push(alone(&node, &prompt, &label).await);
        }
        let total: f64 = scores.iter().map(|score| score.exp()).sum();
        for (found, score) in probs(object).into_iter().zip(&scores) {
            let wanted = score.exp() / total;
            assert!((found - wanted).abs() < 2e-4, "{text}: {object} is not {scores:?}");
        }
    }
}

/// What `quern eval` says of each text and label, with a classifier's settings as flags.
fn judged(model: &Path, texts: &[&str], labels: &str, end_token: Option<bool>) -> Vec<Vec<f64>> {
    let dir = model.parent().unwrap();
    let first = std::fs::read_to_string(labels).unwrap().lines().next().unwrap().to_owned();
    let rows: String = texts.iter().map(|text| format!("{text},{first}\n")).collect();
    let rows = file(dir, "rows.csv", &format!("text,label\n{rows}"));
    let said = dir.join("said.csv");
    let [model, said] = [model, &said].map(|path| path.to_str().unwrap());
    let args = ["eval", model, "--csv", &rows, "--labels", labels, "--system", SYSTEM];
    // With keys and values in 16 bits, ggml's fused attention rounds steps of 64 rows and more otherwise than
    // smaller ones, by 5e-3 of a probability.
    let engine = ["--threads", "1", "--kv-type", "f32"];
    let end_token = end_token.map(|end_token| ["--end-token".to_owned(), end_token.to_string()]);
    let end_token: Vec<&str> = end_token.iter().flatten().map(String::as_str).collect();
    let (code, _, errors) =
        told(&quern(&[&args[..], &engine, &["--predictions", said], &end_token].concat()));
    assert_eq!(code, 0, "{errors}");
    let said = std::fs::read_to_string(said).unwrap();
    let probs = |line: &str| line.split(',').skip(3).map(|prob| prob.parse().unwrap()).collect();
    said.lines().skip(1).map(probs).collect()
}

const SYSTEM: &str = "Name what they want.";

#[tokio::test]
async fn labels_are_as_likely_when_judged_as_when_served() {
    let (dir, model) = tiny_model();
    let apart = ["pay", "transfer money", "zzz"];
    let cases: [(&str, &[&str], Option<bool>); 4] = [
        ("nested", &LABELS, None),
        ("nested-open", &LABELS, Some(false)),
        ("apart", &apart, None),
        ("apart-ended", &apart, Some(true)),
    ];
    let (mut config, mut files) = (String::new(), Vec::new());
    for (name, labels, end_token) in cases {
        let labels = file(dir.path(), &format!("{name}.txt"), &format!("{}\n", labels.join("\n")));
        let end = end_token.map_or_else(String::new, |end_token| format!("end_token = {end_token}\n"));
        config.push_str(&format!(
            "[[classifier]]\nname = \"{name}\"\nlabels_file = {labels:?}\n{end}messages = [\
             {{ role = \"system\", content = {SYSTEM:?} }}, {{ role = \"user\", content = \"{{text}}\" }}]\n"
        ));
        files.push(labels);
    }
    let config = file(dir.path(), "quern.toml", &config);
    let engine = ["--kv-capacity", "512", "--threads", "1", "--kv-type", "f32"];
    let node = Node::serve(&model, "llama", &[&engine[..], &["--config", &config]].concat());

    let texts = ["move my money", "what do i owe", "x"];
    let mut all = Vec::new();
    for ((name, _, end_token), labels) in cases.into_iter().zip(&files) {
        let served = post(&node, "/v1/classify", json!({"model": name, "input": texts})).await;
        let served = served["data"].as_array().unwrap_or_else(|| panic!("{served}")).iter().map(probs);
        let judged = judged(&model, &texts, labels, end_token);
        for (served, judged) in served.zip(&judged) {
            assert_eq!(served.len(), judged.len());
            let close = |(one, other): (&f64, &f64)| (one - other).abs() < 2e-4;
            assert!(served.iter().zip(judged).all(close), "{name}: {served:?} is not {judged:?}");
        }
        all.push(judged);
    }
    let differ = |one: &[Vec<f64>], other: &[Vec<f64>]| {
        one.concat().iter().zip(other.concat()).any(|(one, other)| (one - other).abs() > 1e-2)
    };
    assert!(
        differ(&all[0], &all[1]) && differ(&all[2], &all[3]),
        "the end token makes a difference: {all:?}"
    );
}

#[test]
fn a_classifier_that_cannot_serve_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_model_dir, model) = tiny_model();
    let labels = file(dir.path(), "labels.txt", "a\nb\na\n");
    let check = |entry: &str| {
        let config = file(dir.path(), "quern.toml", &format!("[[classifier]]\nname = \"intents\"\n{entry}"));
        let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let model = ["check", "--config", &config, "--model", model.to_str().unwrap()];
        told(&quern(&[model.as_slice(), listen.as_slice()].concat()))
    };
    let no_head = check("abstain_below = 0.5\n");
    assert_eq!(no_head.0, 1);
    assert!(
        no_head.2.contains("classifier `intents`") && no_head.2.contains("no classification head"),
        "{no_head:?}"
    );
    let twice = check(&format!("labels_file = {labels:?}\ntemplate = \"{{text}}:\"\n"));
    assert_eq!(twice.0, 1);
    assert!(twice.2.contains("\"a\" occurs twice"), "{twice:?}");
    let no_text = check("labels = [\"a\", \"b\"]\ntemplate = \"Topic:\"\n");
    assert_eq!(no_text.0, 64);
    assert!(no_text.2.contains("classifier[0].template: it has no {text}"), "{no_text:?}");
}

#[tokio::test]
async fn a_merged_head_is_calibrated_while_it_serves() {
    let (dir, model) = tiny_model();
    let labels = ["no", "yes", "perhaps"].map(str::to_owned).to_vec();
    let bias = Some(vec![0.0, 1.0, 0.0]);
    let head = Head { weight: vec![0.0; 3 * 256], bias, labels, hidden: 256 };
    let model = changed(&model, "merged.gguf", &mut WithHead(head));
    let mut node = Node::serve(&model, "llama", &["--set", "adapters.watch_interval=10ms"]);
    for temperature in [1.0_f64, 2.5] {
        if temperature != 1.0 {
            let partial = file(dir.path(), "partial", &format!("{{\"temperature\": {temperature}}}"));
            std::fs::rename(partial, dir.path().join("merged.calibration.json")).unwrap();
            node.wait_for("calibration changed");
        }
        let answer = post(&node, "/v1/classify", json!({"model": "merged", "input": "what is it"})).await;
        let yes = (1.0 / temperature).exp();
        let found = probs(&answer["data"][0]);
        assert!((found[1] - yes / (yes + 2.0)).abs() < 1e-5, "{temperature}: {answer}");
    }
}

/// What transformers says of a row: the text, the label, all probabilities.
struct Reference {
    text: String,
    label: String,
    probs: Vec<f64>,
}

/// The default model and an adapter, where this machine has both.
fn real() -> Option<(PathBuf, PathBuf)> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    let found = variable("QUERN_TEST_MODEL").zip(variable("QUERN_TEST_ADAPTERS"));
    if found.is_none() {
        eprintln!("SKIPPED: QUERN_TEST_MODEL and QUERN_TEST_ADAPTERS name no model and no adapters");
    }
    found.map(|(model, adapters)| (model, adapters.join("banking-classifier")))
}

/// The first rows of `reference.csv`; its texts have no quoted commas, which is checked.
fn reference(adapter: &Path, num_rows: usize) -> Vec<Reference> {
    let csv = std::fs::read_to_string(adapter.join("reference.csv")).unwrap();
    let mut lines = csv.lines();
    let num_columns = lines.next().unwrap().split(',').count();
    let rows = lines.filter(|line| !line.contains('"')).map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), num_columns, "{line}");
        let probs = fields[3..].iter().map(|prob| prob.parse().unwrap()).collect();
        Reference { text: fields[0].to_owned(), label: fields[2].to_owned(), probs }
    });
    rows.take(num_rows).collect()
}

#[tokio::test]
async fn a_merged_head_says_what_transformers_says() {
    let Some((base, adapter)) = real() else { return };
    let dir = tempfile::tempdir().unwrap();
    let merged = dir.path().join("banking.gguf");
    let paths = [&base, &adapter, &merged].map(|path| path.to_str().unwrap());
    let (code, _, errors) =
        told(&quern(&["adapter", "merge", paths[0], paths[1], "-o", paths[2], "--type", "F16"]));
    assert_eq!(code, 0, "{errors}");
    let node = Node::serve(&merged, "llama", &["--kv-capacity", "4096"]);

    let rows = reference(&adapter, 100);
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let answer = post(&node, "/v1/classify", json!({"model": "banking", "input": texts})).await;
    let objects = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let mut same = 0;
    for (row, object) in rows.iter().zip(objects) {
        same += usize::from(object["label"] == row.label.as_str());
        for (found, wanted) in probs(object).into_iter().zip(&row.probs) {
            assert!((found - wanted).abs() < 0.02, "{}: {object} is not {:?}", row.text, row.probs);
        }
    }
    assert!(same * 1000 >= rows.len() * 995, "{same} of {}", rows.len());
}
