//! Answers as they stand in files, so that a changed shape shows in a review.
//!
//! `QUERN_UPDATE_GOLDEN=1` writes the files anew.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Compares an answer with `golden/NAME.json`, but for what differs each time.
pub fn check(name: &str, answer: &Value) {
    let mut answer = answer.clone();
    steady(&mut answer);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("QUERN_UPDATE_GOLDEN").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&answer).unwrap() + "\n").unwrap();
        return;
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let golden: Value = serde_json::from_str(&text).unwrap();
    // Compared as text as well: the order of fields is part of the shape.
    assert_eq!(answer, golden);
    assert_eq!(answer.to_string(), golden.to_string());
}

/// Replaces ids and times, keeping what tells their kind, and rounds numbers.
fn steady(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(steady),
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), &mut *field) {
                    ("id", Value::String(id)) => {
                        let kind = ["chatcmpl-", "cmpl-", "call_", "classify-"]
                            .into_iter()
                            .find(|kind| id.starts_with(kind));
                        if let Some(kind) = kind {
                            *id = format!("{kind}…");
                        }
                    }
                    ("created", Value::Number(_)) => *field = 0.into(),
                    ("system_fingerprint", Value::String(build)) => {
                        assert!(build.starts_with("quern-"));
                        *build = "quern-…".to_owned();
                    }
                    (_, field) => steady(field),
                }
            }
        }
        // Machines differ in the last digits of a logarithm.
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().map(|x| (x * 1e3).round() / 1e3);
            *value = rounded.into();
        }
        _ => {}
    }
}
