//! File, environment and flags become one configuration, and every mistake in
//! them is reported at once, with its key and where it came from.
//!
//! Nothing is read here: texts and values come in. Each key is tried alone
//! against the typed configuration, which is how one mistake does not hide the
//! next.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Adapter, Config, Policy};

/// What this program calls by another name than before, or than others do.
const RENAMED: &[(&str, &str)] = &[
    ("engine.llama.context", "engine.llama.max_sequence_len"),
    ("engine.llama.ctx_size", "engine.llama.max_sequence_len"),
    ("engine.llama.n_gpu_layers", "engine.llama.gpu_layers"),
    ("engine.llama.split_mode", "engine.llama.split"),
    ("http.admin_listen", "admin.listen"),
    ("model.path", "model.name"),
    ("scheduler.max_num_seqs", "scheduler.max_running"),
    ("scheduler.max_num_batched_tokens", "scheduler.token_budget"),
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A configuration file, by its path.
    File(String),
    /// An environment variable.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("the default"),
            Origin::File(path) => f.write_str(path),
            Origin::Variable(name) => write!(f, "the variable {name}"),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML.
    #[error("{path}: {why}")]
    Syntax {
        /// The file.
        path: String,
        /// What the parser said, with the line.
        why: String,
    },
    /// A key that has another name.
    #[error("{origin}: {old} is called {new}")]
    Renamed {
        /// Where it was set.
        origin: Origin,
        /// As it was written.
        old: String,
        /// As it should be.
        new: &'static str,
    },
    /// A key that does not exist, or a value that it cannot have.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// Where it was set.
        origin: Origin,
        /// The key with its sections.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// A value that was set, before it is typed.
#[derive(Debug, Clone, PartialEq)]
enum Raw {
    /// From TOML: it has a type.
    Typed(Value),
    /// From a variable or a flag: what type it has, its key knows.
    Text(String),
}

/// All that was set, the strongest layer last.
#[derive(Debug, Default)]
pub struct Layers {
    set: BTreeMap<String, (Raw, Origin)>,
    errors: Vec<ConfigError>,
    policies: Vec<PathBuf>,
    adapters: Vec<Adapter>,
}

impl Layers {
    /// Adds a file's text, the weakest layer: call it first.
    pub fn file(&mut self, path: &str, text: &str) {
        match text.parse::<Table>() {
            Ok(table) => self.add_table("", table, path),
            Err(e) => self.errors.push(ConfigError::Syntax { path: path.into(), why: e.to_string() }),
        }
    }

    fn add_table(&mut self, prefix: &str, table: Table, path: &str) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(inner) => self.add_table(&format!("{key}."), inner, path),
                value => self.set(key, Raw::Typed(value), Origin::File(path.to_owned())),
            }
        }
    }

    /// Adds the variables of the form `QUERN_SECTION__KEY`.
    pub fn variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(key) = name.strip_prefix("QUERN_").filter(|key| key.contains("__")) else {
                continue;
            };
            let key = key.to_ascii_lowercase().replace("__", ".");
            self.set(key, Raw::Text(value), Origin::Variable(name));
        }
    }

    /// Adds one flag's value.
    pub fn flag(&mut self, flag: &str, key: &str, value: impl Into<String>) {
        self.set(key.to_owned(), Raw::Text(value.into()), Origin::Flag(flag.to_owned()));
    }

    /// Adds a place for the policy in this file, behind those that are configured.
    pub fn policy(&mut self, file: &Path) {
        self.policies.push(file.to_owned());
    }

    /// Adds an adapter, behind those that are configured.
    pub fn adapter(&mut self, name: &str, path: &Path) {
        self.adapters.push(Adapter::of(name, path));
    }

    fn set(&mut self, key: String, value: Raw, origin: Origin) {
        self.set.insert(key, (value, origin));
    }

    /// Types and checks everything. Does no I/O.
    ///
    /// # Errors
    /// Every mistake that was found, at least one.
    pub fn resolve(mut self) -> Result<Config, Vec<ConfigError>> {
        let mut merged = Table::new();
        let mut origins = BTreeMap::new();
        for (key, (raw, origin)) in std::mem::take(&mut self.set) {
            match type_value(&key, raw, &origin) {
                Ok(value) => {
                    insert(&mut merged, &key, value);
                    origins.insert(key, origin);
                }
                Err(error) => self.errors.push(error),
            }
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        // Each key fits alone, so together they can only clash in ways that types do not know.
        let mut config = Config::deserialize(merged).map_err(|e| {
            vec![ConfigError::Value {
                origin: Origin::Default,
                key: "configuration".into(),
                why: e.to_string(),
            }]
        })?;
        config.policy.extend(self.policies.iter().map(|file| Policy::of_file(file)));
        config.adapter.extend(self.adapters);
        let wrong = config.check();
        if wrong.is_empty() {
            return Ok(config);
        }
        let origin_of = |key: &str| origins.get(key).cloned().unwrap_or(Origin::Default);
        let error = |(key, why): (String, String)| ConfigError::Value { origin: origin_of(&key), key, why };
        Err(wrong.into_iter().map(error).collect())
    }
}

/// Finds the value that fits a key, by trying the key alone.
fn type_value(key: &str, raw: Raw, origin: &Origin) -> Result<Value, ConfigError> {
    if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == key) {
        return Err(ConfigError::Renamed { origin: origin.clone(), old: key.to_owned(), new });
    }
    let candidates = match raw {
        Raw::Typed(value) => vec![value],
        // `8` may be meant as a number or as a name; whichever the key takes is right.
        Raw::Text(text) => {
            let typed = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
            typed.into_iter().chain([Value::String(text)]).collect()
        }
    };
    let mut why = String::new();
    for value in candidates {
        let mut alone = Table::new();
        insert(&mut alone, key, value.clone());
        match Config::deserialize(alone) {
            Ok(_) => return Ok(value),
            Err(e) => why = e.message().to_owned(),
        }
    }
    Err(ConfigError::Value { origin: origin.clone(), key: key.to_owned(), why })
}

/// Puts a value at `a.b.c`.
fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            // A section that is also a plain value was refused when that value was typed.
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}
