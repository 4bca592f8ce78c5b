//! How much memory keys and values take: by format and length, from a model file's metadata alone.
//!
//! A token's state is a key and a value for each key-value head of each layer. It knows the GGUF container and the
//! few keys that say these numbers, and no engine; engines may round capacities up, as llama.cpp does.

use std::fmt::Write as _;
use std::path::Path;

use quern_gguf::{Gguf, GgufError};
use thiserror::Error;

/// Architectures whose every layer keeps a key and a value of every token. Others have layers with a state of fixed
/// size, or a window, and would take less than what is computed here.
const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe"];

/// llama.cpp, and Quern with it, rounds capacities up to a multiple of this many tokens.
const CAPACITY_STEP: u64 = 256;

/// Why the size cannot be computed.
#[derive(Debug, Error)]
pub enum KvSizeError {
    /// The file is no GGUF file, or lacks a key.
    #[error(transparent)]
    File(#[from] GgufError),
    /// An architecture whose state is not one key and one value a layer and token.
    #[error("architecture {name:?}: only {} are known to keep a key and a value of every token in every layer",
        ARCHITECTURES.join(", "))]
    Architecture {
        /// As the file says it.
        name: String,
    },
    /// Counts that no model has.
    #[error("{key} is {value}: no model has that")]
    Shape {
        /// The key.
        key: String,
        /// Its value.
        value: u32,
    },
}

/// A format of keys and values: so many bytes for each block of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvFormat {
    /// Its name, as `--kv-type` has it.
    pub name: &'static str,
    /// Values of a block.
    pub block_values: u64,
    /// Bytes of a block, its scales included.
    pub block_bytes: u64,
}

/// The formats, the default first. Blocks as ggml has them: 32 values and one scale of 16 bits.
pub const FORMATS: [KvFormat; 4] = [
    KvFormat { name: "f16", block_values: 1, block_bytes: 2 },
    KvFormat { name: "q8_0", block_values: 32, block_bytes: 34 },
    KvFormat { name: "q4_0", block_values: 32, block_bytes: 18 },
    KvFormat { name: "f32", block_values: 1, block_bytes: 4 },
];

/// What of a model decides how large its state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvShape {
    /// The architecture's name.
    pub architecture: String,
    /// Layers.
    pub num_layers: u32,
    /// Key-value heads of a layer.
    pub num_kv_heads: u32,
    /// Values of a head's key.
    pub key_length: u32,
    /// Values of a head's value.
    pub value_length: u32,
}

impl KvShape {
    /// Reads it from a model file.
    ///
    /// # Errors
    /// When the file cannot be read, lacks a key, or has an architecture whose state is of another kind.
    pub fn read(path: &Path) -> Result<Self, KvSizeError> {
        let file = Gguf::open(path)?;
        let architecture = file.architecture()?.to_owned();
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(KvSizeError::Architecture { name: architecture });
        }
        let number = |key: &str| {
            let key = format!("{architecture}.{key}");
            let value = file.u32(&key)?;
            if value == 0 { Err(KvSizeError::Shape { key, value }) } else { Ok(value) }
        };
        let num_heads = number("attention.head_count")?;
        // Files leave these out where they follow from the others.
        let or = |key: &str, default: u32| match file.get(&format!("{architecture}.{key}")) {
            Some(_) => number(key),
            None => Ok(default),
        };
        let head_length = number("embedding_length")? / num_heads;
        Ok(Self {
            num_layers: number("block_count")?,
            num_kv_heads: or("attention.head_count_kv", num_heads)?,
            key_length: or("attention.key_length", head_length)?,
            value_length: or("attention.value_length", head_length)?,
            architecture,
        })
    }

    /// Bytes that a token's state takes in all layers; none where a head is no whole number of blocks.
    pub fn bytes_per_token(&self, format: KvFormat) -> Option<u64> {
        let of_head = |length: u32| {
            let length = u64::from(length);
            length
                .is_multiple_of(format.block_values)
                .then(|| length / format.block_values * format.block_bytes)
        };
        let head = of_head(self.key_length)? + of_head(self.value_length)?;
        Some(u64::from(self.num_layers) * u64::from(self.num_kv_heads) * head)
    }

    /// Bytes that a capacity takes, rounded up as llama.cpp rounds it.
    pub fn bytes(&self, format: KvFormat, num_tokens: u64) -> Option<u64> {
        Some(self.bytes_per_token(format)? * num_tokens.next_multiple_of(CAPACITY_STEP))
    }

    /// The sizes for people: a line a capacity, a column a format, in MiB.
    pub fn table(&self, capacities: &[u64]) -> String {
        let Self { architecture, num_layers, num_kv_heads, key_length, value_length } = self;
        let mut text = format!(
            "{architecture}: {num_layers} layers of {num_kv_heads} key-value heads, keys of {key_length} and values of \
             {value_length}\n\n| tokens |"
        );
        // Writing to a string cannot fail.
        for format in FORMATS {
            let _ = write!(text, " {} |", format.name);
        }
        let _ = write!(text, "\n|---:|{}\n| 1 |", "---:|".repeat(FORMATS.len()));
        let cell = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        for format in FORMATS {
            let _ =
                write!(text, " {} |", cell(self.bytes_per_token(format).map(|bytes| format!("{bytes} B"))));
        }
        for capacity in capacities {
            let _ = write!(text, "\n| {capacity} |");
            for format in FORMATS {
                let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
                let _ = write!(text, " {} |", cell(self.bytes(format, *capacity).map(mib)));
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use quern_gguf::tiny::{self, Arch, TinySpec};

    use super::*;

    /// Qwen2.5-0.5B's.
    fn small() -> KvShape {
        KvShape {
            architecture: "qwen2".to_owned(),
            num_layers: 24,
            num_kv_heads: 2,
            key_length: 64,
            value_length: 64,
        }
    }

    #[test]
    fn sizes_follow_from_layers_heads_and_blocks() {
        let of_token: Vec<_> = FORMATS.iter().map(|format| small().bytes_per_token(*format)).collect();
        // 24 layers · 2 heads · (64 + 64) values, of 16, 8.5, 4.5 and 32 bits.
        assert_eq!(of_token, [Some(12_288), Some(6_528), Some(3_456), Some(24_576)]);
        assert_eq!(small().bytes(FORMATS[0], 16_384), Some(192 << 20));
        assert_eq!(small().bytes(FORMATS[0], 16_300), Some(192 << 20), "rounded up to 256 tokens");
        let table = small().table(&[16_384]);
        assert!(table.contains("| 16384 | 192.0 MiB | 102.0 MiB | 54.0 MiB | 384.0 MiB |"), "{table}");
    }

    #[test]
    fn heads_that_are_no_whole_blocks_have_no_quantised_size() {
        let odd = KvShape { key_length: 80, ..small() };
        assert!(odd.bytes_per_token(FORMATS[0]).is_some());
        assert_eq!(odd.bytes_per_token(FORMATS[1]), None);
        assert!(odd.table(&[256]).contains("| – | – |"));
    }

    #[test]
    fn the_shape_is_read_from_a_model_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        tiny::write(&path, &TinySpec::new(Arch::Qwen3, 1)).unwrap();
        let expected = KvShape {
            architecture: "qwen3".to_owned(),
            num_layers: 2,
            num_kv_heads: 2,
            key_length: 64,
            value_length: 64,
        };
        assert_eq!(KvShape::read(&path).unwrap(), expected);
        let missing = KvShape::read(&folder.path().join("none.gguf")).unwrap_err().to_string();
        assert!(missing.contains("none.gguf"), "{missing}");
    }
}
