//! The metadata of a file: an ordered map with getters that say what they found instead.

use std::collections::HashMap;
use std::str;

use crate::error::Problem;
use crate::value::{Array, ByteStrings, Value};

/// Keys and values in the order of the file. Every key occurs once.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Metadata) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No entries yet.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&idx| &self.entries[idx].1)
    }

    /// Adds an entry at the end.
    ///
    /// # Errors
    ///
    /// `DuplicateKey` when the key is already there.
    pub fn insert(&mut self, key: &str, value: Value) -> Result<(), Problem> {
        if self.contains(key) {
            return Err(Problem::DuplicateKey { key: key.to_owned() });
        }
        self.index.insert(key.to_owned(), self.entries.len());
        self.entries.push((key.to_owned(), value));
        Ok(())
    }

    /// The text of a key.
    ///
    /// # Errors
    ///
    /// `MissingKey`, `WrongType`, or `NotUtf8`.
    pub fn str(&self, key: &str) -> Result<&str, Problem> {
        match self.require(key)? {
            Value::String(bytes) => {
                str::from_utf8(bytes).map_err(|_| Problem::NotUtf8 { key: key.to_owned() })
            }
            other => Err(wrong_type(key, "a string", other)),
        }
    }

    /// The number of a key, whatever integer type it is stored in.
    ///
    /// # Errors
    ///
    /// `MissingKey`, `WrongType`, or `OutOfRange`.
    pub fn u32(&self, key: &str) -> Result<u32, Problem> {
        let found = self.integer(key, "a u32")?;
        u32::try_from(found).map_err(|_| out_of_range(key, "a u32", found))
    }

    /// The number of a key, whatever integer type it is stored in.
    ///
    /// # Errors
    ///
    /// `MissingKey`, `WrongType`, or `OutOfRange`.
    pub fn u64(&self, key: &str) -> Result<u64, Problem> {
        let found = self.integer(key, "a u64")?;
        u64::try_from(found).map_err(|_| out_of_range(key, "a u64", found))
    }

    /// The number of a key, stored as f32 or f64.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn f32(&self, key: &str) -> Result<f32, Problem> {
        match *self.require(key)? {
            Value::F32(value) => Ok(value),
            Value::F64(value) => Ok(value as f32),
            ref other => Err(wrong_type(key, "an f32", other)),
        }
    }

    /// The truth value of a key.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn bool(&self, key: &str) -> Result<bool, Problem> {
        match *self.require(key)? {
            Value::Bool(value) => Ok(value),
            ref other => Err(wrong_type(key, "a bool", other)),
        }
    }

    /// The strings of a key as they lie in the file.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn byte_strings(&self, key: &str) -> Result<&ByteStrings, Problem> {
        match self.require(key)? {
            Value::Array(Array::Strings(values)) => Ok(values),
            other => Err(wrong_type(key, "an array of strings", other)),
        }
    }

    /// The strings of a key as text.
    ///
    /// # Errors
    ///
    /// `MissingKey`, `WrongType`, or `NotUtf8` when one of them is not.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, Problem> {
        self.byte_strings(key)?
            .iter()
            .map(|bytes| str::from_utf8(bytes).map_err(|_| Problem::NotUtf8 { key: key.to_owned() }))
            .collect()
    }

    /// The array of a key.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn u32s(&self, key: &str) -> Result<&[u32], Problem> {
        match self.require(key)? {
            Value::Array(Array::U32(values)) => Ok(values),
            other => Err(wrong_type(key, "an array of u32", other)),
        }
    }

    /// The array of a key.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn i32s(&self, key: &str) -> Result<&[i32], Problem> {
        match self.require(key)? {
            Value::Array(Array::I32(values)) => Ok(values),
            other => Err(wrong_type(key, "an array of i32", other)),
        }
    }

    /// The array of a key.
    ///
    /// # Errors
    ///
    /// `MissingKey` or `WrongType`.
    pub fn f32s(&self, key: &str) -> Result<&[f32], Problem> {
        match self.require(key)? {
            Value::Array(Array::F32(values)) => Ok(values),
            other => Err(wrong_type(key, "an array of f32", other)),
        }
    }

    fn require(&self, key: &str) -> Result<&Value, Problem> {
        self.get(key).ok_or_else(|| Problem::MissingKey { key: key.to_owned() })
    }

    fn integer(&self, key: &str, expected: &'static str) -> Result<i128, Problem> {
        let value = self.require(key)?;
        value.as_integer().ok_or_else(|| wrong_type(key, expected, value))
    }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> Problem {
    Problem::WrongType { key: key.to_owned(), expected, found: found.type_name() }
}

fn out_of_range(key: &str, expected: &'static str, found: i128) -> Problem {
    Problem::OutOfRange { key: key.to_owned(), expected, found }
}
