//! Reading the operator's settings, with all mistakes reported together.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::host::config;

/// Reads settings one by one and keeps what is wrong with them.
///
/// ```
/// use quern_policy_sdk::prelude::*;
///
/// let mut settings = Settings::default();
/// let quantum = settings.number("quantum-steps", 16u32, 1..=10_000);
/// let strict = settings.flag("strict", false);
/// settings.done()?;
/// assert_eq!((quantum, strict), (16, false));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Default)]
pub struct Settings {
    mistakes: Vec<String>,
}

impl Settings {
    /// A number within bounds, or `default` where the key is not set.
    pub fn number<T>(&mut self, key: &str, default: T, bounds: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display,
    {
        let Some(text) = config::get(key) else { return default };
        match text.trim().parse::<T>() {
            Ok(value) if bounds.contains(&value) => value,
            _ => {
                let (least, most) = (bounds.start(), bounds.end());
                self.mistakes.push(format!("{key}: '{text}' is no number from {least} to {most}"));
                default
            }
        }
    }

    /// `true` or `false`, or `default` where the key is not set.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(text) = config::get(key) else { return default };
        match text.trim() {
            "true" => true,
            "false" => false,
            _ => {
                self.mistakes.push(format!("{key}: '{text}' is neither true nor false"));
                default
            }
        }
    }

    /// Notes a mistake that the policy itself found.
    pub fn mistake(&mut self, mistake: String) {
        self.mistakes.push(mistake);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All mistakes in one line.
    pub fn done(self) -> Result<(), String> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(self.mistakes.join("; ")) }
    }
}
