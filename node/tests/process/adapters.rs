//! Adapters from the command line to an answer: on a tiny random model, and real ones
//! on the default model where they are there.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::node::{Node, file, quern, told};
use crate::peft::Peft;

/// The default model and the folder of its adapters; `None`, said loudly, without them.
fn real() -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    let found = path("QUERN_TEST_MODEL").zip(path("QUERN_TEST_ADAPTERS"));
    if found.is_none() {
        eprintln!("SKIPPED: QUERN_TEST_MODEL and QUERN_TEST_ADAPTERS do not name the model and its adapters");
    }
    found
}

async fn post(node: &Node, path: &str, body: Value) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(format!("{}{path}", node.public)).json(&body).send().await.unwrap();
    answer.json().await.unwrap()
}

#[tokio::test]
async fn an_adapter_changes_what_a_model_says_and_leaves_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let folders = [1, 2].map(|seed| Peft::new(seed).write(&dir.path().join(seed.to_string())));
    let flags = folders
        .iter()
        .zip(["one", "two"])
        .flat_map(|(folder, name)| ["--adapter".to_owned(), format!("{name}={}", folder.display())]);
    let flags: Vec<String> = flags.collect();
    let small = ["--kv-capacity", "1024", "--max-sequences", "4", "--threads", "1", "--threads-prefill", "1"];
    let more = ["--set", "adapters.max_resident=1", "--set", "adapters.quantum=2"];
    let args: Vec<&str> = flags.iter().map(String::as_str).chain(small).chain(more).collect();
    let node = Node::start("llama", &args);
    let ask = |name: &str| {
        let body = json!({"model": name, "prompt": "fn main() {", "max_tokens": 24, "temperature": 0});
        post(&node, "/v1/completions", body)
    };
    let say =
        |body: &Value| body["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
    let mut alone = Vec::new();
    for name in ["tiny", "one", "two"] {
        alone.push(say(&ask(name).await));
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    // Together they take turns on an engine with room for one.
    let together = tokio::join!(ask("tiny"), ask("one"), ask("two"), ask("one"));
    assert_eq!([&together.0, &together.1, &together.2].map(say), *alone);
    assert_eq!(say(&together.3), alone[1]);
    let metrics = reqwest::get(format!("{}/metrics", node.admin)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("quern_adapter_requests_total{adapter=\"one\"} 3"), "{metrics}");
    assert!(metrics.contains("quern_adapters_resident 1"), "{metrics}");
    assert!(metrics.contains("max_lora=\"1\""), "{metrics}");
}

#[test]
fn check_tells_what_adapters_are() {
    let (dir, model) = crate::node::tiny_model();
    let good = Peft::classifier(1).write(&dir.path().join("good"));
    let hollow = dir.path().join("hollow");
    std::fs::create_dir(&hollow).unwrap();
    std::fs::write(hollow.join("adapter_config.json"), "no JSON").unwrap();
    let args = ["check", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let args = [&args[..], &["--admin-listen", "127.0.0.1:0", "--adapter"]].concat();
    let good = format!("good={}", good.display());
    let (code, _, said) = told(&quern(&[&args[..], &[&good]].concat()));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("adapter good: rank 4, 2 labels"), "{said}");
    let hollow = format!("bad={}", hollow.display());
    let (code, _, said) = told(&quern(&[&args[..], &[&good, "--adapter", &hollow]].concat()));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("adapter bad: ") && said.contains("adapter_config.json"), "{said}");
}

/// The model is no model, and would be told of if anybody had opened it.
#[test]
fn adapters_are_looked_for_before_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, good, empty) = (file(dir.path(), "model.gguf", "no model"), place("good"), place("empty"));
    Peft::new(1).write(good.as_ref());
    std::fs::create_dir(&empty).unwrap();
    let config = file(dir.path(), "quern.toml", &format!("[[adapter]]\nname = \"a\"\npath = {empty:?}\n"));
    let flags = [format!("good={good}"), format!("gone={}", place("gone"))];
    for command in ["serve", "check"] {
        let args = [command, "--model", &model, "--config", &config, "--adapter", &flags[0]];
        let (code, _, said) = told(&quern(&[&args[..], &["--adapter", &flags[1]]].concat()));
        assert_eq!(code, 64, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let wanted = [
            format!(
                "adapter[0].path: {empty}: the folder has no adapter_config.json, so it is no PEFT adapter"
            ),
            format!("adapter[2].path: {}: there is no such file or folder", place("gone")),
        ];
        assert_eq!(lines, wanted);
    }
}

#[tokio::test]
async fn a_real_adapter_answers_with_a_label() {
    let Some((model, adapters)) = real() else { return };
    let named = format!("banking={}", adapters.join("banking-generator").display());
    let labels = std::fs::read_to_string(adapters.join("banking-classifier/labels.json")).unwrap();
    let labels: Value = serde_json::from_str(&labels).unwrap();
    let labels: Vec<&str> =
        labels["id2label"].as_object().unwrap().values().map(|label| label.as_str().unwrap()).collect();
    let node = Node::serve(&model, "llama", &["--adapter", &named]);
    let questions = [
        ("how do i get the routing number for chase", "routing"),
        ("how long til my visa card expires", "expiration_date"),
        ("are there any problems with my bank account", "account_blocked"),
    ];
    for (question, expected) in questions {
        let body = json!({
            "model": "banking", "max_tokens": 16, "temperature": 0,
            "messages": [
                {"role": "system", "content": "Name the intent of the message."},
                {"role": "user", "content": question},
            ],
        });
        let answer = post(&node, "/v1/chat/completions", body).await;
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(labels.contains(&said), "{said:?} is none of {labels:?}");
        assert_eq!(said, expected, "{question}");
    }
}
