//! Texts that experiments ask: prose of any length, tasks that call for long answers, and labelled rows.

use anyhow::Context as _;

/// A text of some 5,900 words.
const PROSE: &str = include_str!("../../workloads/harbour-log.txt");
/// Labelled questions of a bank's customers; columns `text`, `label`.
pub const ROWS: &str = include_str!("../../workloads/intents.csv");
/// What the rows' labels need said before, for a model that was not trained on them.
pub const ROWS_SYSTEM: &str = "You sort the questions of a bank's customers. Answer with the label alone.";

/// Prose as a text to judge perplexity by.
pub fn prose_text() -> &'static str {
    PROSE
}

/// So many words of prose that begin with a number: prompts of other numbers differ from their first word on.
pub fn prose(num_words: usize, number: u64) -> String {
    let words: Vec<&str> = PROSE.split_whitespace().collect();
    let start = usize::try_from(number % words.len() as u64).expect("below a vector's length");
    let cut: Vec<&str> =
        words.iter().cycle().skip(start * 37 % words.len()).take(num_words).copied().collect();
    format!("{:06} is the number of this copy.\n{}", spread(number), cut.join(" "))
}

/// Six digits that a million numbers do not share, of which also the first differ.
fn spread(number: u64) -> u64 {
    const COUNT: u64 = 1_000_000;
    (number % COUNT * 618_033 + 271_828) % COUNT
}

/// Subjects on which a model of any size has much to say.
const SUBJECTS: [&str; 8] = [
    "how a hash map stores its keys in Rust",
    "how a linked list is reversed in C",
    "how a recursive parser reads arithmetic in Python",
    "how quicksort partitions an array in Java",
    "how to read a CSV file in plain Python",
    "how a compiler turns text into machine code",
    "how binary search finds a value in Go",
    "how SQL joins work, with three example tables",
];

/// A task that calls for a long answer. Tasks of other numbers differ from their first word on.
pub fn task(number: u64) -> String {
    let subject = SUBJECTS[usize::try_from(number % 8).expect("below 8")];
    let number = spread(number);
    format!(
        "{number:06} is your assignment. Write a long tutorial on {subject}. Explain every step at length and do not stop early."
    )
}

/// Rows of a CSV text with columns `text` and `label`.
///
/// # Errors
/// When a column is missing or a line is malformed.
pub fn rows(csv_text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut reader = csv::Reader::from_reader(csv_text.as_bytes());
    let header = reader.headers()?.clone();
    let find = |name: &str| {
        let place = header.iter().position(|column| column.trim() == name);
        place.with_context(|| format!("the CSV file has no column {name:?}"))
    };
    let (text, label) = (find("text")?, find("label")?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record?;
        rows.push((record[text].to_owned(), record[label].to_owned()));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_has_the_length_asked_for_and_begins_with_its_own_number() {
        assert_eq!(prose(50, 3).split_whitespace().count(), 57);
        // Longer than the text itself: it begins again.
        assert_eq!(prose(20_000, 3).split_whitespace().count(), 20_007);
        let beginnings: std::collections::HashSet<String> =
            (0..500).map(|number| prose(1, number)[..6].to_owned()).collect();
        assert_eq!(beginnings.len(), 500);
        assert_ne!(task(0), task(8));
    }

    #[test]
    fn rows_are_read_by_their_columns_names() {
        assert_eq!(rows("label,text\nx,\"a, b\"\n").unwrap(), [("a, b".to_owned(), "x".to_owned())]);
        assert!(rows("text\na\n").unwrap_err().to_string().contains("label"));
        assert!(!rows(ROWS).unwrap().is_empty());
    }
}
