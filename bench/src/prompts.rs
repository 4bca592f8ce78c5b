//! Prompts: from the workload itself, from a CSV column, or sliced from a text file.
//!
//! A prompt is a function of the run's seed and of its number, so that every server of a run gets the same
//! prompts in the same order. This module knows no HTTP.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use thiserror::Error;

use crate::lengths::Lengths;
use crate::prefixes::SharedPrefixes;
use crate::words::Words;

/// Tokens that a word of English text has, about, in models of today.
const DEFAULT_TOKENS_PER_WORD: f64 = 1.4;

/// Why there are no prompts.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The file cannot be read.
    #[error("prompts file {file:?}: {source}")]
    Read {
        /// As the workload names it.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The CSV file is malformed.
    #[error("prompts file {file:?}: {source}")]
    Csv {
        /// As the workload names it.
        file: String,
        /// Names the line.
        source: csv::Error,
    },
    /// The CSV file lacks a column.
    #[error("prompts file {file:?}: no column {column:?}, only {found:?}")]
    NoColumn {
        /// As the workload names it.
        file: String,
        /// The column that the workload names.
        column: String,
        /// The columns there are.
        found: Vec<String>,
    },
    /// The file holds no prompt.
    #[error("prompts file {file:?}: is empty")]
    Empty {
        /// As the workload names it.
        file: String,
    },
}

/// Where prompts come from, as a workload says it. Exactly one of `inline`, `csv` and `text` is given.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSource {
    /// A system prompt that all prompts share.
    pub system: Option<String>,
    /// The prompts themselves.
    pub inline: Option<Vec<String>>,
    /// What a good answer contains, one for each inline prompt.
    pub expected: Option<Vec<String>>,
    /// A CSV file with a header line.
    pub csv: Option<String>,
    /// Its column with the prompts; `text` if not given.
    pub column: Option<String>,
    /// Its column with what a good answer contains.
    pub expected_column: Option<String>,
    /// A text file to cut slices from.
    pub text: Option<String>,
    /// How long slices are, in words.
    pub slice_words: Option<Lengths>,
    /// Tokens that a word of the text has: turns a trace's prompt tokens into words.
    pub tokens_per_word: Option<f64>,
    /// Beginnings that prompts share, before `before`.
    pub shared: Option<SharedPrefixes>,
    /// Written before each prompt. `{n}` becomes a number that no two prompts of a run share: caches of
    /// earlier prompts do not help from there on.
    pub before: Option<String>,
    /// Written after each prompt.
    pub after: Option<String>,
}

impl PromptSource {
    /// Says which key is wrong, and why.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, String)> {
        let given = [self.inline.is_some(), self.csv.is_some(), self.text.is_some()];
        if given.iter().filter(|is_given| **is_given).count() != 1 {
            return Err(("inline", "give exactly one of inline, csv and text".to_owned()));
        }
        if let Some(inline) = &self.inline {
            if inline.is_empty() {
                return Err(("inline", "must hold at least one prompt".to_owned()));
            }
            if self.expected.as_ref().is_some_and(|expected| expected.len() != inline.len()) {
                return Err(("expected", format!("must hold {} answers, one a prompt", inline.len())));
            }
        }
        match (self.text.is_some(), &self.slice_words) {
            (true, None) => return Err(("slice_words", "is missing".to_owned())),
            (false, Some(_)) => return Err(("slice_words", "only a text is cut into slices".to_owned())),
            _ => {}
        }
        if self.tokens_per_word.is_some_and(|tokens| !(0.1..=100.0).contains(&tokens)) {
            return Err(("tokens_per_word", "must lie between 0.1 and 100".to_owned()));
        }
        let shared = self.shared.as_ref().map_or(Ok(()), |shared| shared.validate(self.text.is_some()));
        shared.map_err(|(key, reason)| ("shared", format!("{key}: {reason}")))
    }
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The shared system prompt.
    pub system: Option<String>,
    /// What the user says.
    pub user: String,
    /// What a good answer contains.
    pub expected: Option<String>,
}

#[derive(Debug)]
enum Texts {
    /// Prompts with their expected answers, taken in turn.
    Rows(Vec<(String, Option<String>)>),
    /// Words to slice, and how long slices are.
    Words(Words, Lengths),
}

/// All prompts of a workload.
#[derive(Debug)]
pub struct PromptSet {
    texts: Texts,
    tokens_per_word: f64,
    /// Shared beginnings, with the words they are cut from; the prompts' own if there are none.
    shared: Option<(SharedPrefixes, Option<Words>)>,
    system: Option<String>,
    before: String,
    after: String,
}

impl PromptSet {
    /// Reads the prompts; `read` opens the file that the source names.
    ///
    /// # Errors
    /// When the file is missing, malformed or too short.
    pub fn read(
        source: &PromptSource,
        read: impl Fn(&str) -> std::io::Result<String>,
    ) -> Result<Self, PromptError> {
        let open =
            |file: &str| read(file).map_err(|source| PromptError::Read { file: file.to_owned(), source });
        let open_words = |file: &str| {
            let words = Words::new(&open(file)?);
            if words.is_empty() { Err(PromptError::Empty { file: file.to_owned() }) } else { Ok(words) }
        };
        let shared = source.shared.as_ref().map(|shared| {
            let words = shared.text.as_deref().map(open_words).transpose();
            words.map(|words| (shared.clone(), words))
        });
        let texts = if let Some(file) = &source.csv {
            let column = source.column.as_deref().unwrap_or("text");
            Texts::Rows(read_csv(file, &open(file)?, column, source.expected_column.as_deref())?)
        } else if let Some(file) = &source.text {
            let lengths = source.slice_words.clone();
            let lengths = lengths.expect("a checked source that names a text says how long slices are");
            Texts::Words(open_words(file)?, lengths)
        } else {
            let inline = source.inline.clone().unwrap_or_default();
            let expected = |index: usize| source.expected.as_ref().map(|all| all[index].clone());
            Texts::Rows(inline.into_iter().enumerate().map(|(i, text)| (text, expected(i))).collect())
        };
        Ok(Self {
            texts,
            tokens_per_word: source.tokens_per_word.unwrap_or(DEFAULT_TOKENS_PER_WORD),
            shared: shared.transpose()?,
            system: source.system.clone(),
            before: source.before.clone().unwrap_or_default(),
            after: source.after.clone().unwrap_or_default(),
        })
    }

    /// Whether prompts are cut to a length, so that a trace can say how long they are.
    pub fn has_lengths(&self) -> bool {
        matches!(self.texts, Texts::Words(..))
    }

    /// The prompt of this number that holds several, one a line, as its expected answer holds theirs.
    pub fn lines(&self, seed: u64, index: u64, count: usize) -> Prompt {
        let first = index.wrapping_mul(count as u64);
        let mut all = (0..count as u64).map(|line| self.get(seed, first.wrapping_add(line)));
        let mut prompt = all.next().unwrap_or_else(|| self.get(seed, first));
        for next in all {
            prompt.user = format!("{}\n{}", prompt.user, next.user);
            let both = prompt.expected.zip(next.expected);
            prompt.expected = both.map(|(before, after)| format!("{before}\n{after}"));
        }
        prompt
    }

    /// The prompt of this number, in a run of this seed.
    pub fn get(&self, seed: u64, index: u64) -> Prompt {
        let num_words = match &self.texts {
            Texts::Rows(_) => 0,
            Texts::Words(_, lengths) => lengths.of(seed, index) as usize,
        };
        self.build(seed, index, num_words)
    }

    /// The prompt of this number with a slice of about so many tokens; prompts that are not cut stay as they are.
    pub fn of_tokens(&self, seed: u64, index: u64, num_tokens: u32) -> Prompt {
        // The cast keeps what is out of range at its ends; a word has more than a tenth of a token.
        let num_words = (f64::from(num_tokens) / self.tokens_per_word).round() as usize;
        self.build(seed, index, num_words.max(1))
    }

    fn build(&self, seed: u64, index: u64, num_words: usize) -> Prompt {
        let (text, expected) = match &self.texts {
            Texts::Rows(rows) => {
                let row = usize::try_from(index % rows.len() as u64).expect("below a vector's length");
                (rows[row].0.clone(), rows[row].1.clone())
            }
            Texts::Words(words, _) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(index);
                (words.slice(num_words, &mut random), None)
            }
        };
        let number = format!("{:06}", spread_number(seed, index));
        let shared =
            self.shared.as_ref().map_or_else(String::new, |(shared, words)| match (words, &self.texts) {
                (Some(words), _) | (None, Texts::Words(words, _)) => shared.of(words, seed, index),
                (None, Texts::Rows(_)) => String::new(),
            });
        let user = format!("{shared}{}{text}{}", self.before.replace("{n}", &number), self.after);
        Prompt { system: self.system.clone(), user, expected }
    }
}

/// Six digits that no two prompts among a million share. The step has no factor in common with a million, and
/// is large, so that the leading digits differ and prompts part at their first token.
fn spread_number(seed: u64, index: u64) -> u64 {
    const COUNT: u64 = 1_000_000;
    (seed % COUNT + (index % COUNT) * 618_033) % COUNT
}

fn read_csv(
    file: &str,
    text: &str,
    column: &str,
    expected_column: Option<&str>,
) -> Result<Vec<(String, Option<String>)>, PromptError> {
    let csv_error = |source| PromptError::Csv { file: file.to_owned(), source };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(csv_error)?.clone();
    let find = |column: &str| {
        header.iter().position(|name| name.trim() == column).ok_or_else(|| PromptError::NoColumn {
            file: file.to_owned(),
            column: column.to_owned(),
            found: header.iter().map(str::to_owned).collect(),
        })
    };
    let text_idx = find(column)?;
    let expected_idx = expected_column.map(find).transpose()?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        rows.push((record[text_idx].to_owned(), expected_idx.map(|idx| record[idx].to_owned())));
    }
    if rows.is_empty() {
        return Err(PromptError::Empty { file: file.to_owned() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &PromptSource, file: &'static str) -> Result<PromptSet, PromptError> {
        PromptSet::read(source, |_| Ok(file.to_owned()))
    }

    #[test]
    fn csv_columns_are_found_by_name() {
        let source = PromptSource {
            csv: Some("q.csv".to_owned()),
            expected_column: Some("label".to_owned()),
            system: Some("S".to_owned()),
            ..PromptSource::default()
        };
        let set = read(&source, "label,text\na,\"hello, you\"\nb,bye\n").unwrap();
        let prompt = Prompt {
            system: Some("S".to_owned()),
            user: "hello, you".to_owned(),
            expected: Some("a".to_owned()),
        };
        assert_eq!(set.get(5, 2), prompt);
        let error = read(&source, "text\nhello\n").unwrap_err().to_string();
        assert!(error.contains("label") && error.contains("text"), "{error}");
        assert!(matches!(read(&source, "text,label\n"), Err(PromptError::Empty { .. })));
        assert!(matches!(read(&source, "text,label\nonly one\n"), Err(PromptError::Csv { .. })));
    }

    #[test]
    fn several_prompts_stand_one_a_line() {
        let source = PromptSource {
            inline: Some(["a", "b", "c"].map(str::to_owned).to_vec()),
            expected: Some(["1", "2", "3"].map(str::to_owned).to_vec()),
            ..PromptSource::default()
        };
        let set = read(&source, "").unwrap();
        let prompt = set.lines(1, 1, 2);
        assert_eq!((prompt.user.as_str(), prompt.expected.as_deref()), ("c\na", Some("3\n1")));
        assert_eq!(set.lines(1, 4, 1), set.get(1, 4));
    }

    #[test]
    fn slices_have_the_length_asked_for_and_repeat_by_seed() {
        let source = PromptSource {
            text: Some("t.txt".to_owned()),
            slice_words: Some(Lengths::uniform(3, 5).unwrap()),
            before: Some("Nr {n}: ".to_owned()),
            after: Some(" End.".to_owned()),
            ..PromptSource::default()
        };
        let set = read(&source, "a b c d e f g h i j").unwrap();
        let mut numbers = std::collections::HashSet::new();
        for index in 0..100 {
            let prompt = set.get(7, index);
            assert_eq!(prompt, set.get(7, index));
            let words = prompt.user.split(' ').count() - 3;
            assert!((3..=5).contains(&words), "{}", prompt.user);
            numbers.insert(prompt.user[..9].to_owned());
        }
        assert_eq!(numbers.len(), 100, "beginnings repeat");
        assert_ne!(set.get(7, 1), set.get(8, 1));
        assert!(matches!(read(&source, " \n"), Err(PromptError::Empty { .. })));
    }

    #[test]
    fn a_trace_says_how_long_prompts_are_and_a_slice_may_be_longer_than_the_text() {
        let source = PromptSource {
            text: Some("t.txt".to_owned()),
            slice_words: Some(Lengths::uniform(1, 2).unwrap()),
            tokens_per_word: Some(2.0),
            ..PromptSource::default()
        };
        let set = read(&source, "a b c d").unwrap();
        assert!(set.has_lengths());
        assert_eq!(set.of_tokens(1, 1, 6).user.split(' ').count(), 3);
        let long = set.of_tokens(1, 1, 20).user;
        assert_eq!(long.split(' ').count(), 10);
        assert!(long.contains("d a"), "{long}");
    }

    #[test]
    fn prompts_begin_with_their_shared_prefix() {
        let source = PromptSource {
            inline: Some(vec!["Question?".to_owned()]),
            shared: Some(SharedPrefixes { count: 1, words: 3, text: Some("t.txt".to_owned()), zipf: 0.0 }),
            before: Some("Nr {n}: ".to_owned()),
            ..PromptSource::default()
        };
        let set = read(&source, "x x x x x").unwrap();
        let (one, other) = (set.get(1, 0).user, set.get(1, 1).user);
        assert!(one.contains(" x x x Nr ") && one.ends_with("Question?"), "{one}");
        assert_eq!(one[..13], other[..13]);
        assert_ne!(one, other);
    }
}
