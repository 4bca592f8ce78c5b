//! The figures of an experiment: one row for each setting, level and round, and what is formed of them.
//!
//! It knows neither nodes nor files. A setting that failed has a reason instead of rows.

use crate::stats::{Spread, first_seen};

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// More is better, and settings are compared by ratios.
    More,
    /// Less is better, and settings are compared by ratios.
    Less,
    /// It describes, and is not compared.
    Neither,
}

/// A figure that an experiment measures.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Name in the CSV file, with its unit.
    pub id: &'static str,
    /// Name for people, with its unit.
    pub label: &'static str,
    /// What it is and how it is measured.
    pub about: &'static str,
    /// Which way it is better.
    pub better: Better,
}

/// A column that is better the more there is of it.
pub const fn more(id: &'static str, label: &'static str, about: &'static str) -> Column {
    Column { id, label, about, better: Better::More }
}

/// A column that is better the less there is of it.
pub const fn less(id: &'static str, label: &'static str, about: &'static str) -> Column {
    Column { id, label, about, better: Better::Less }
}

/// A column that is not compared.
pub const fn told(id: &'static str, label: &'static str, about: &'static str) -> Column {
    Column { id, label, about, better: Better::Neither }
}

/// One measurement of one setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The setting's name.
    pub setting: String,
    /// The level, in the unit of [`Sheet::level`]; 0 where there is none.
    pub level: f64,
    /// From 0.
    pub round: usize,
    /// One for each column; none where it was not measured.
    pub values: Vec<Option<f64>>,
}

/// A setting that gave no figures, or not all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The setting's name.
    pub setting: String,
    /// Why.
    pub reason: String,
}

/// All figures of an experiment.
#[derive(Debug, Clone)]
pub struct Sheet {
    /// What levels are: name in the CSV file and for people; none where each setting is measured at one.
    pub level: Option<(&'static str, &'static str)>,
    /// The figures, in the order of the files.
    pub columns: Vec<Column>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// In the order in which they failed.
    pub failed: Vec<Failed>,
}

/// A setting's figure over that of the first setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// The setting.
    pub setting: String,
    /// The level of both.
    pub level: f64,
    /// Of pairs of one round each.
    pub ratio: Spread,
}

impl Sheet {
    /// A sheet without rows.
    pub fn new(level: Option<(&'static str, &'static str)>, columns: &[Column]) -> Self {
        Self { level, columns: columns.to_vec(), rows: Vec::new(), failed: Vec::new() }
    }

    /// Adds figures, named by their columns, to the row of this setting, level and round.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn add(
        &mut self,
        setting: &str,
        level: f64,
        round: usize,
        figures: impl IntoIterator<Item = (&'static str, Option<f64>)>,
    ) {
        let is_meant =
            |row: &Row| row.setting == setting && row.level.total_cmp(&level).is_eq() && row.round == round;
        let row_idx = self.rows.iter().position(is_meant).unwrap_or_else(|| {
            let values = vec![None; self.columns.len()];
            self.rows.push(Row { setting: setting.to_owned(), level, round, values });
            self.rows.len() - 1
        });
        for (id, value) in figures {
            let column_idx = self.column_idx(id);
            self.rows[row_idx].values[column_idx] = value.filter(|value| value.is_finite());
        }
    }

    /// Notes that a setting failed.
    pub fn fail(&mut self, setting: &str, reason: impl ToString) {
        self.failed.push(Failed { setting: setting.to_owned(), reason: reason.to_string() });
    }

    /// Whether a setting has failed.
    pub fn has_failed(&self, setting: &str) -> bool {
        self.failed.iter().any(|failed| failed.setting == setting)
    }

    /// A column by its name.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn column(&self, id: &str) -> &Column {
        &self.columns[self.column_idx(id)]
    }

    fn column_idx(&self, id: &str) -> usize {
        let found = self.columns.iter().position(|column| column.id == id);
        found.unwrap_or_else(|| panic!("the experiment has no column {id}"))
    }

    /// Settings in the order in which they were first measured.
    pub fn settings(&self) -> Vec<&str> {
        first_seen(self.rows.iter().map(|row| row.setting.as_str()))
    }

    /// Levels from the lowest.
    pub fn levels(&self) -> Vec<f64> {
        let mut levels: Vec<f64> = self.rows.iter().map(|row| row.level).collect();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        levels
    }

    /// Levels at which a column has a value, from the lowest.
    pub fn levels_of(&self, id: &str) -> Vec<f64> {
        let idx = self.column_idx(id);
        let has_value = |level: &f64| {
            self.rows.iter().any(|row| row.level.total_cmp(level).is_eq() && row.values[idx].is_some())
        };
        self.levels().into_iter().filter(has_value).collect()
    }

    /// Single values of a setting at a level, with their rounds.
    pub fn values(&self, setting: &str, level: f64, id: &str) -> impl Iterator<Item = (usize, f64)> {
        let idx = self.column_idx(id);
        let is_meant = move |row: &&Row| row.setting == setting && row.level.total_cmp(&level).is_eq();
        self.rows.iter().filter(is_meant).filter_map(move |row| Some((row.round, row.values[idx]?)))
    }

    /// A setting's figure at a level over all rounds.
    pub fn spread(&self, setting: &str, level: f64, id: &str) -> Option<Spread> {
        Spread::of(self.values(setting, level, id).map(|(_, value)| value))
    }

    /// Whether a column has any value.
    pub fn has_values(&self, id: &str) -> bool {
        let idx = self.column_idx(id);
        self.rows.iter().any(|row| row.values[idx].is_some())
    }

    /// A column's largest value; the smallest number above 0 if there is none above it.
    pub fn largest(&self, id: &str) -> f64 {
        let idx = self.column_idx(id);
        self.rows.iter().filter_map(|row| row.values[idx]).fold(f64::MIN_POSITIVE, f64::max)
    }

    /// Every setting's figure over the first one's, round by round, so that slow changes of the machine fall on
    /// both. Pairs of which one is missing, or the first is 0, are left out.
    pub fn ratios(&self, id: &str) -> Vec<Ratio> {
        let settings = self.settings();
        let Some((first, others)) = settings.split_first() else { return Vec::new() };
        let mut ratios = Vec::new();
        for level in self.levels() {
            for setting in others {
                let pairs = self.values(setting, level, id).filter_map(|(round, value)| {
                    let (_, under) = self.values(first, level, id).find(|(other, _)| *other == round)?;
                    (under > 0.0).then(|| value / under)
                });
                let ratio = Spread::of(pairs);
                ratios.extend(ratio.map(|ratio| Ratio { setting: (*setting).to_owned(), level, ratio }));
            }
        }
        ratios
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        more("decode_tok_per_s", "decode tok/s", "Speed."),
        less("file_mib", "file MiB", "Size."),
        told("cores", "cores", "Cores."),
    ];

    /// Two settings at two levels in two rounds; the machine halves its speed in the second.
    pub(crate) fn sample() -> Sheet {
        let mut sheet = Sheet::new(Some(("length_tokens", "length, tokens")), COLUMNS);
        for (round, speed) in [(0, 1.0), (1, 0.5)] {
            for (setting, factor) in [("f16", 1.0), ("q8_0", 1.5)] {
                for level in [256.0, 64.0] {
                    let decode = speed * factor * 6400.0 / level;
                    sheet.add(
                        setting,
                        level,
                        round,
                        [("decode_tok_per_s", Some(decode)), ("file_mib", None)],
                    );
                }
            }
        }
        sheet.fail("q2_k", "no such format");
        sheet
    }

    #[test]
    fn ratios_are_formed_inside_a_round() {
        let sheet = sample();
        let ratios = sheet.ratios("decode_tok_per_s");
        assert_eq!(ratios.len(), 2);
        for Ratio { setting, ratio, .. } in &ratios {
            assert_eq!((setting.as_str(), ratio.count), ("q8_0", 2));
            assert!((ratio.min - 1.5).abs() < 1e-9 && (ratio.max - 1.5).abs() < 1e-9);
        }
        assert!(sheet.ratios("file_mib").is_empty());
    }

    #[test]
    fn settings_levels_and_spreads_are_found() {
        let sheet = sample();
        assert_eq!(sheet.settings(), ["f16", "q8_0"]);
        assert_eq!(sheet.levels(), [64.0, 256.0]);
        let spread = sheet.spread("f16", 64.0, "decode_tok_per_s").unwrap();
        assert!((spread.median - 75.0).abs() < 1e-9 && spread.count == 2);
        assert!(sheet.has_failed("q2_k") && !sheet.has_failed("f16"));
        assert_eq!((sheet.levels_of("decode_tok_per_s").len(), sheet.levels_of("file_mib").len()), (2, 0));
        assert!(sheet.has_values("decode_tok_per_s") && !sheet.has_values("file_mib"));
    }

    #[test]
    fn figures_of_one_round_share_a_row() {
        let mut sheet = Sheet::new(None, COLUMNS);
        sheet.add("a", 0.0, 0, [("file_mib", Some(3.0))]);
        sheet.add("a", 0.0, 0, [("decode_tok_per_s", Some(9.0))]);
        sheet.add("a", 0.0, 1, [("decode_tok_per_s", Some(8.0))]);
        assert_eq!(sheet.rows.len(), 2);
        assert_eq!(sheet.rows[0].values, [Some(9.0), Some(3.0), None]);
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let mut sheet = Sheet::new(None, COLUMNS);
        sheet.add("a", 0.0, 0, [("decode_tok_per_s", Some(f64::NAN))]);
        assert_eq!(sheet.spread("a", 0.0, "decode_tok_per_s"), None);
    }

    #[test]
    #[should_panic(expected = "no column nonsense")]
    fn a_figure_without_a_column_is_a_mistake_of_the_experiment() {
        Sheet::new(None, COLUMNS).add("a", 0.0, 0, [("nonsense", None)]);
    }
}
