//! Where a mistake stands in a workload's text.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::WorkloadError;

/// The text of a workload, to find a key's line in.
pub(super) struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text }
    }

    /// A mistake at a key of a table; an empty table is the file's own. The `n`th of several tables of one name is
    /// written `tables.n`, from 0.
    pub(super) fn error(&self, table: &str, key: &str, reason: impl Into<String>) -> WorkloadError {
        let name = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
        let (file, line) = (self.file.to_owned(), self.line_of(&name));
        WorkloadError::Value { file, line, key: name, reason: reason.into() }
    }

    /// One-based line of a key, or of the innermost table on the way to it if the key is missing.
    fn line_of(&self, path: &str) -> usize {
        // The text was read before as a whole: it has the form of a table.
        let Ok(document) = DeTable::parse(self.text) else { return 1 };
        let span = span_of(document.get_ref(), path);
        span.map_or(1, |span| self.text[..span.start].matches('\n').count() + 1)
    }

    /// A number of seconds above 0 in the table `[load]`.
    pub(super) fn seconds(&self, key: &str, seconds: f64) -> Result<Duration, WorkloadError> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            _ => Err(self.error("load", key, "must be a number of seconds above 0")),
        }
    }

    /// A list of levels in the table `[load]`, each a good one.
    pub(super) fn levels<T: Clone>(
        &self,
        key: &str,
        levels: Option<&[T]>,
        is_good: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, WorkloadError> {
        match levels {
            None => Err(self.error("load", key, "is missing")),
            Some([]) => Err(self.error("load", key, "must name at least one level")),
            Some(levels) if !levels.iter().all(is_good) => {
                Err(self.error("load", key, "every level must be above 0"))
            }
            Some(levels) => Ok(levels.to_vec()),
        }
    }
}

/// The key's place, or that of the table where the way to it ends; none if it ends at once.
fn span_of(document: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let mut found = None;
    let mut steps = path.split('.');
    let (name, mut value) = document.get_key_value(steps.next()?)?;
    found.replace(start_of(name.span(), value));
    for step in steps {
        match value.get_ref() {
            DeValue::Table(table) => {
                let Some((name, inner)) = table.get_key_value(step) else { break };
                found.replace(start_of(name.span(), inner));
                value = inner;
            }
            DeValue::Array(all) => {
                let Some(inner) = step.parse().ok().and_then(|idx: usize| all.get(idx)) else { break };
                found.replace(inner.span());
                value = inner;
            }
            _ => break,
        }
    }
    found
}

/// A key stands at its name, a table with a head of its own at its head.
fn start_of(name: Range<usize>, value: &Spanned<DeValue<'_>>) -> Range<usize> {
    match value.get_ref() {
        DeValue::Table(_) | DeValue::Array(_) if value.span().start < name.start => value.span(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
name = \"a\"
deadline = { header = \"X\",
  ms = [1, 2] }

[load]
mode = \"closed\"
long.text = \"x\"

[load.other]
inline = [
  \"a\",
]

[[tenants]]
name = \"a\"

[[tenants]]
weight = 1.0
";

    #[test]
    fn keys_are_found_in_every_way_of_writing_them() {
        let cases = [
            ("name", 1),
            ("deadline.ms", 3),
            ("deadline.none", 2),
            ("load.mode", 6),
            ("load.long.text", 7),
            ("load.none", 5),
            ("load.other.inline", 10),
            ("load.other.none", 9),
            ("tenants.1.weight", 18),
            ("tenants.1.name", 17),
            ("none", 1),
        ];
        for (path, line) in cases {
            assert_eq!(Place::new("w.toml", TEXT).line_of(path), line, "{path}");
        }
    }
}
