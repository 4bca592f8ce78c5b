//! Judges answers: a benchmark whose answers are wrong has measured nothing.

use std::collections::BTreeMap;

use crate::client::Reply;
use crate::prompts::Prompt;
use crate::workload::{Check, Strictness};

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
    } else if check.json && serde_json::from_str::<serde_json::Value>(&reply.text).is_err() {
        Some("not JSON".to_owned())
    } else if is_unlike && check.expected == Some(Strictness::Require) {
        Some("unlike the expected answer".to_owned())
    } else {
        None
    };
    Verdict { wrong, as_expected }
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
        let reply = Reply {
            intended: now,
            sent: now,
            deltas: vec![now],
            ended: now,
            text: text.to_owned(),
            prompt_tokens: None,
            completion_tokens: Some(3),
            finish_reason: None,
            failure: None,
        };
        judge(&check, &prompt, &reply)
    }

    #[test]
    fn each_check_tells_good_from_wrong() {
        let cases = [
            ("non_empty = true", "x", " \n"),
            ("one_of = [\"Pay_Bill\", \"routing\"]", " pay_bill\n", "pay the bill"),
            ("json = true", "{\"a\": [1]}", "{\"a\": [1}"),
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
