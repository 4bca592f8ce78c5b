//! Price tables: what an hour of each machine costs. `bench/prices.example.toml` is one.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// Why a price table cannot be used.
#[derive(Debug, Error)]
pub enum PricesError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no price table.
    #[error("{}: {source}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Names the line and the key.
        source: Box<toml::de::Error>,
    },
    /// A machine stands there twice.
    #[error("{}: machine {name:?} has two prices", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The machine.
        name: String,
    },
    /// A price is no price.
    #[error("{}: machine {name:?}: usd_per_hour must be a number above 0", path.display())]
    Worthless {
        /// The file.
        path: PathBuf,
        /// The machine.
        name: String,
    },
    /// A machine has no price.
    #[error("{}: no price for machine {name:?}: there are prices for {known} only", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The machine.
        name: String,
        /// Those that have one.
        known: String,
    },
}

/// Prices by machine.
#[derive(Debug)]
pub struct Prices {
    path: PathBuf,
    machines: Vec<MachinePrice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    machine: Vec<MachinePrice>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachinePrice {
    name: String,
    usd_per_hour: f64,
}

impl Prices {
    /// Reads a price table: TOML with `[[machine]]`, each with `name` and `usd_per_hour`.
    ///
    /// # Errors
    /// When it cannot be read, is no such table, or has a machine twice or for nothing.
    pub fn read(path: &Path) -> Result<Self, PricesError> {
        let path = path.to_owned();
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(path, &text),
            Err(source) => Err(PricesError::Read { path, source }),
        }
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, PricesError> {
        let machines = match toml::from_str::<Table>(text) {
            Ok(table) => table.machine,
            Err(source) => return Err(PricesError::Table { path, source: Box::new(source) }),
        };
        for (idx, MachinePrice { name, usd_per_hour }) in machines.iter().enumerate() {
            let name = name.clone();
            if machines[..idx].iter().any(|other| other.name == name) {
                return Err(PricesError::Twice { path, name });
            }
            if !usd_per_hour.is_finite() || *usd_per_hour <= 0.0 {
                return Err(PricesError::Worthless { path, name });
            }
        }
        Ok(Self { path, machines })
    }

    /// What an hour of a machine costs, in US dollars.
    ///
    /// # Errors
    /// When the table does not know the machine.
    pub fn usd_per_hour(&self, name: &str) -> Result<f64, PricesError> {
        let found = self.machines.iter().find(|machine| machine.name == name);
        found.map(|machine| machine.usd_per_hour).ok_or_else(|| {
            let known: Vec<&str> = self.machines.iter().map(|machine| machine.name.as_str()).collect();
            PricesError::Missing {
                path: self.path.clone(),
                name: name.to_owned(),
                known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Prices, String> {
        Prices::parse("prices.toml".into(), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_price_is_found_by_the_machines_name() {
        let text =
            "[[machine]]\nname = \"a\"\nusd_per_hour = 0.5\n[[machine]]\nname = \"b\"\nusd_per_hour = 2\n";
        let prices = parse(text).unwrap();
        assert!((prices.usd_per_hour("b").unwrap() - 2.0).abs() < 1e-9);
        let missing = prices.usd_per_hour("c").unwrap_err().to_string();
        assert_eq!(missing, "prices.toml: no price for machine \"c\": there are prices for a, b only");
    }

    #[test]
    fn tables_with_mistakes_are_refused_with_the_place() {
        for (text, told) in [
            ("[[machine]]\nname = \"a\"\n", "usd_per_hour"),
            ("[[machine]]\nname = \"a\"\nusd_per_hour = 0.0\n", "must be a number above 0"),
            ("[[machine]]\nname = \"a\"\nusd_per_hour = nan\n", "must be a number above 0"),
            ("[[machine]]\nname = \"a\"\nusd_per_hour = 1.0\neur = 2.0\n", "eur"),
            (
                "[[machine]]\nname = \"a\"\nusd_per_hour = 1.0\n[[machine]]\nname = \"a\"\nusd_per_hour = 2.0\n",
                "two prices",
            ),
            ("prices", "prices.toml"),
        ] {
            let error = parse(text).map(|_| ()).unwrap_err();
            assert!(error.contains(told), "{text:?} gave {error}");
        }
        let nowhere = Prices::read(Path::new("no/such/prices.toml")).unwrap_err().to_string();
        assert!(nowhere.starts_with("no/such/prices.toml: "), "{nowhere}");
    }

    #[test]
    fn the_example_is_a_price_table() {
        let prices =
            Prices::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("prices.example.toml")).unwrap();
        assert!(prices.usd_per_hour("small").unwrap() > 0.0);
    }
}
