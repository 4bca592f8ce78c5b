//! Judges answers: a benchmark whose answers are wrong has measured nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::prompts::Prompt;
use crate::reply::Reply;

/// What to do with an answer that is unlike the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strictness {
    /// Count it and say so.
    Report,
    /// Count it as wrong: the run fails.
    Require,
}

/// What makes an answer a good one: the table `[check]`. All that are given must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Something other than white space was said.
    #[serde(default)]
    pub non_empty: bool,
    /// At least so many tokens.
    pub min_tokens: Option<u64>,
    /// The answer, trimmed and in lower case, is one of these.
    pub one_of: Option<Vec<String>>,
    /// The answer holds a match of this regular expression.
    pub regex: Option<Pattern>,
    /// The answer is a JSON text.
    #[serde(default)]
    pub json: bool,
    /// The answer is a JSON text that keeps this JSON schema.
    pub json_schema: Option<Schema>,
    /// The answer contains the prompt's expected answer.
    pub expected: Option<Strictness>,
    /// All servers gave the same answer to the same prompt.
    pub equal_across_servers: Option<Strictness>,
    /// Share of requests that may fail, for workloads that overload a server on purpose.
    #[serde(default)]
    pub max_error_share: f64,
}

/// A regular expression, read and checked with the workload.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(Regex);

impl TryFrom<String> for Pattern {
    type Error = regex::Error;

    fn try_from(text: String) -> Result<Self, regex::Error> {
        Regex::new(&text).map(Self)
    }
}

/// A JSON schema, read and checked with the workload. It names no other document.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub struct Schema(Arc<jsonschema::Validator>);

impl TryFrom<Value> for Schema {
    type Error = String;

    fn try_from(schema: Value) -> Result<Self, String> {
        let validator = jsonschema::validator_for(&schema);
        validator.map(|validator| Self(Arc::new(validator))).map_err(|error| error.to_string())
    }
}

/// What a finished answer is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why the answer is wrong; none if it is good.
    pub wrong: Option<String>,
    /// How many lines of the expected answer it has, of how many; none if the workload does not ask.
    pub as_expected: Option<(u64, u64)>,
}

/// Judges the answer of a request that did not fail.
pub fn judge(check: &Check, prompt: &Prompt, reply: &Reply) -> Verdict {
    let said = reply.text.trim().to_lowercase();
    let as_expected = match (&check.expected, &prompt.expected) {
        (Some(_), Some(expected)) => Some(count_expected(&said, &expected.trim().to_lowercase())),
        _ => None,
    };
    let is_unlike = as_expected.is_some_and(|(right, all)| right < all);
    let wrong = if check.non_empty && said.is_empty() {
        Some("empty".to_owned())
    } else if check.min_tokens.is_some_and(|min| reply.num_tokens() < min) {
        Some("too few tokens".to_owned())
    } else if check.one_of.as_ref().is_some_and(|all| !all.iter().any(|one| one.to_lowercase() == said)) {
        Some("not one of the answers allowed".to_owned())
    } else if check.regex.as_ref().is_some_and(|pattern| !pattern.0.is_match(&reply.text)) {
        Some("no match of the regular expression".to_owned())
    } else if let Some(reason) = wrong_json(check, &reply.text) {
        Some(reason.to_owned())
    } else if is_unlike && check.expected == Some(Strictness::Require) {
        Some("unlike the expected answer".to_owned())
    } else {
        None
    };
    Verdict { wrong, as_expected }
}

/// Why an answer is not the JSON that it must be.
fn wrong_json(check: &Check, text: &str) -> Option<&'static str> {
    if !check.json && check.json_schema.is_none() {
        return None;
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Some("not JSON") };
    let is_kept = check.json_schema.as_ref().is_none_or(|schema| schema.0.is_valid(&value));
    (!is_kept).then_some("JSON that does not keep the schema")
}

/// A single line is to be contained, several must be equal, line by line.
fn count_expected(said: &str, expected: &str) -> (u64, u64) {
    let num_lines = expected.lines().count() as u64;
    if num_lines <= 1 {
        return (u64::from(said.contains(expected)), 1);
    }
    let right = said.lines().zip(expected.lines()).filter(|(said, expected)| said == expected);
    (right.count() as u64, num_lines)
}

/// Compares answers to the same prompt across servers.
#[derive(Debug, Default)]
pub struct Agreement {
    /// The first answer to each prompt, with the server that gave it.
    first: BTreeMap<u64, (usize, String)>,
    /// Prompts' answers that were compared.
    pub num_compared: u64,
    /// Those that differ from the first server's.
    pub num_different: u64,
}

impl Agreement {
    /// Takes an answer; says whether it differs from another server's.
    pub fn take(&mut self, prompt_idx: u64, server_idx: usize, text: &str) -> bool {
        match self.first.get(&prompt_idx) {
            None => {
                self.first.insert(prompt_idx, (server_idx, text.to_owned()));
                false
            }
            Some((first_server, _)) if *first_server == server_idx => false,
            Some((_, first)) => {
                self.num_compared += 1;
                let is_different = first != text;
                self.num_different += u64::from(is_different);
                is_different
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn verdict(check: &str, text: &str, expected: Option<&str>) -> Verdict {
        let check: Check = toml::from_str(check).unwrap();
        let now = Instant::now();
        let prompt = Prompt { system: None, user: "q".to_owned(), expected: expected.map(str::to_owned) };
        let mut reply = Reply::new(now);
        (reply.deltas, reply.text, reply.completion_tokens) = (vec![now], text.to_owned(), Some(3));
        judge(&check, &prompt, &reply)
    }

    const SCHEMA: &str = r#"
        [json_schema]
        type = "object"
        required = ["label", "score"]
        properties.label.enum = ["routing", "balance"]
        properties.score = { type = "number", minimum = 0 }"#;

    #[test]
    fn checks_that_cannot_be_used_are_told_with_their_line() {
        let error_of = |text: &str| toml::from_str::<Check>(text).unwrap_err().to_string();
        let regex = error_of("non_empty = true\nregex = \"a(b\"");
        assert!(regex.contains("line 2") && regex.contains("unclosed group"), "{regex}");
        let schema = error_of("[json_schema]\ntype = \"text\"");
        assert!(schema.contains("json_schema") && schema.contains("text"), "{schema}");
    }

    #[test]
    fn each_check_tells_good_from_wrong() {
        let cases = [
            ("non_empty = true", "x", " \n"),
            ("one_of = [\"Pay_Bill\", \"routing\"]", " pay_bill\n", "pay the bill"),
            ("json = true", "{\"a\": [1]}", "{\"a\": [1}"),
            ("regex = '^\\s*[a-z_]+\\s*$'", " pay_bill\n", "pay the bill"),
            ("regex = '(?i)answer: \\d+'", "The ANSWER: 42.", "answer: none"),
            (SCHEMA, "{\"label\": \"routing\", \"score\": 1}", "{\"label\": \"weather\", \"score\": 1}"),
            (SCHEMA, "{\"label\": \"balance\", \"score\": 0.5}", "{\"label\": \"balance\"}"),
            (SCHEMA, "{\"label\": \"balance\", \"score\": 0}", "balance"),
        ];
        for (check, good, wrong) in cases {
            assert_eq!(verdict(check, good, None).wrong, None, "{check}");
            assert!(verdict(check, wrong, None).wrong.is_some(), "{check}");
        }
        assert_eq!(verdict("min_tokens = 3", "x", None).wrong, None);
        assert!(verdict("min_tokens = 4", "x", None).wrong.is_some());
    }

    #[test]
    fn an_expected_answer_is_reported_or_required() {
        let reported = verdict("expected = \"report\"", "it is B", Some("A"));
        assert_eq!(reported, Verdict { wrong: None, as_expected: Some((0, 1)) });
        assert!(verdict("expected = \"require\"", "it is B", Some("A")).wrong.is_some());
        let good = verdict("expected = \"require\"", "It is A.", Some("a"));
        assert_eq!(good, Verdict { wrong: None, as_expected: Some((1, 1)) });
    }

    #[test]
    fn several_lines_are_compared_one_by_one() {
        let check = "expected = \"report\"";
        assert_eq!(verdict(check, "a\nb\nc", Some("A\nx\nc")).as_expected, Some((2, 3)));
        assert_eq!(verdict(check, "a", Some("a\nb")).as_expected, Some((1, 2)));
    }

    #[test]
    fn agreement_compares_servers_and_not_a_server_with_itself() {
        let mut agreement = Agreement::default();
        assert!(!agreement.take(0, 0, "a"));
        assert!(!agreement.take(0, 0, "b"));
        assert!(!agreement.take(0, 1, "a"));
        assert!(agreement.take(0, 1, "c"));
        assert_eq!((agreement.num_compared, agreement.num_different), (2, 1));
    }
}
