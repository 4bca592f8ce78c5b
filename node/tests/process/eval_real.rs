//! `quern eval` on the default model, real adapters and real data, where they are at hand:
//! the model in `QUERN_TEST_MODEL`, adapters with their references in the folder
//! `QUERN_TEST_ADAPTERS`, rows in the folder `QUERN_TEST_DATA`.

use std::path::PathBuf;

use serde_json::Value;

use crate::node::{command, told};

/// The rows that are judged: enough to see a mix-up, few enough for a test.
const ROWS: usize = 100;

struct Real {
    model: String,
    adapters: PathBuf,
    data: PathBuf,
}

impl Real {
    fn find() -> Option<Real> {
        let variable = |name: &str| match std::env::var(name) {
            Ok(value) if !value.is_empty() => Some(value),
            _ => {
                eprintln!("SKIPPED: {name} is not set");
                None
            }
        };
        let model = variable("QUERN_TEST_MODEL")?;
        let adapters = variable("QUERN_TEST_ADAPTERS")?.into();
        let data = variable("QUERN_TEST_DATA")?.into();
        Some(Real { model, adapters, data })
    }

    fn path(folder: &std::path::Path, parts: &str) -> String {
        folder.join(parts).to_str().expect("paths are text").to_owned()
    }

    fn report(&self, adapter: &str, more: &[&str]) -> Value {
        let adapter = Real::path(&self.adapters, adapter);
        let rows = Real::path(&self.data, "intents/banking/eval.csv");
        let args = ["eval", &self.model, "--adapter", &adapter, "--csv", &rows, "--json"];
        let output = command(&[&args[..], more].concat()).output().unwrap();
        let (code, out, err) = told(&output);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }
}

/// The reference was computed by transformers, in f32, on the same weights. llama.cpp
/// rounds activations to 8 bits before it multiplies them with 4-bit weights.
#[test]
fn a_head_says_what_transformers_says() {
    let Some(real) = Real::find() else { return };
    let reference = Real::path(&real.adapters, "banking-classifier/reference.csv");
    let report = real.report("banking-classifier", &["--rows", &ROWS.to_string(), "--reference", &reference]);
    let (one, agreement) = (&report["models"][0], &report["models"][0]["agreement"]);
    assert_eq!(one["by"], "head");
    assert_eq!(agreement["num_rows"], ROWS);
    assert!(agreement["num_same_label"].as_u64().unwrap() >= 98, "{agreement}");
    assert!(agreement["mean_difference"].as_f64().unwrap() < 0.02, "{agreement}");
}

#[test]
fn a_generator_s_answers_are_its_labels() {
    let Some(real) = Real::find() else { return };
    let labels = Real::path(&real.data, "intents/banking/labels.txt");
    let system = "Name the intent of the message.";
    let report = real.report("banking-generator", &["--rows", "25", "--system", system, "--labels", &labels]);
    let one = &report["models"][0];
    assert_eq!((&one["by"], &report["num_labels"]), (&Value::from("spoken"), &Value::from(23)));
    assert!(one["accuracy"]["mean"].as_f64().unwrap() >= 0.8, "{one}");
}
