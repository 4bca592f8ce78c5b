//! `quern-bench kv-size`: what the key-value state of a model takes, from its file's metadata.
//!
//! One token takes, in each layer, a row of keys and a row of values for every key-value head. An engine rounds the
//! number of tokens up, and may keep a little beside it; `experiment kv-cache` checks this against what a node says.

use std::path::{Path, PathBuf};

use clap::Args;
use quern_gguf::{Gguf, GgufError, TensorType};
use thiserror::Error;

/// Tokens of which llama.cpp allocates whole multiples.
const TOKENS_TOGETHER: u64 = 256;
/// Formats of keys and values that a node can be told.
pub const KV_TYPES: [&str; 3] = ["f16", "q8_0", "q4_0"];

/// `quern-bench kv-size`.
#[derive(Debug, Args)]
pub struct KvSizeArgs {
    /// The model's GGUF file.
    pub model: PathBuf,
    /// Tokens of all sequences together (a node's `kv_capacity`).
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..))]
    pub tokens: u64,
    /// Formats of keys and values.
    #[arg(long = "type", value_name = "TYPES", value_delimiter = ',', default_values_t = KV_TYPES.map(str::to_owned))]
    pub kv_types: Vec<String>,
}

/// Why the size is not known.
#[derive(Debug, Error)]
pub enum KvSizeError {
    /// The file cannot be read, or lacks a key.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key has a value that makes no sense here.
    #[error("{}: {key} is {value}, which no key-value state can be made of", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// There is no such format.
    #[error("{name}: no format of keys and values; {} are some", KV_TYPES.join(", "))]
    Type {
        /// What was asked for.
        name: String,
    },
    /// Rows of this length cannot be stored in blocks.
    #[error("{kv_type} stores {block} values together, and a row has {row}")]
    Row {
        /// The format.
        kv_type: String,
        /// Values of a block.
        block: u64,
        /// Values of a row.
        row: u64,
    },
}

/// What of a model decides the size of its key-value state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvShape {
    /// Key-value heads of each layer.
    pub heads: Vec<u64>,
    /// Values of a head's key, and of its value.
    pub key_len: u64,
    /// Values of a head's value.
    pub value_len: u64,
}

impl KvShape {
    /// Reads a model's metadata.
    ///
    /// # Errors
    /// When the file is no GGUF file or lacks what is needed.
    pub fn read(model: &Path) -> Result<Self, KvSizeError> {
        let gguf = quern_gguf::Gguf::open(model)?;
        let arch = gguf.architecture()?.to_owned();
        let key = |name: &str| format!("{arch}.{name}");
        let number = |name: &str| gguf.u64(&key(name));
        let shape = |name: &str, value: u64| KvSizeError::Shape {
            path: model.to_owned(),
            key: key(name),
            value: value.to_string(),
        };
        let num_layers = number("block_count")?;
        let num_heads = number("attention.head_count")?;
        let head_len = match num_heads {
            0 => return Err(shape("attention.head_count", 0)),
            num_heads => number("embedding_length")? / num_heads,
        };
        let or_head_len = |name: &str| match gguf.get(&key(name)) {
            Some(_) => number(name),
            None => Ok(head_len),
        };
        Ok(Self {
            heads: heads_of(&gguf, &key("attention.head_count_kv"), num_layers)?,
            key_len: or_head_len("attention.key_length")?,
            value_len: or_head_len("attention.value_length")?,
        })
    }

    /// Bytes of the state of so many tokens, rounded up as llama.cpp does.
    ///
    /// # Errors
    /// When there is no such format, or rows do not fit its blocks.
    pub fn size_bytes(&self, tokens: u64, kv_type: &str) -> Result<u64, KvSizeError> {
        let named = |one: &TensorType| one.name().eq_ignore_ascii_case(kv_type);
        let format =
            TensorType::all().find(named).ok_or_else(|| KvSizeError::Type { name: kv_type.to_owned() })?;
        let row_bytes = |row: u64| {
            let block = format.block_elements();
            if !row.is_multiple_of(block) {
                return Err(KvSizeError::Row { kv_type: kv_type.to_owned(), block, row });
            }
            Ok(row / block * format.block_bytes())
        };
        let layers = self.heads.iter();
        let a_token =
            layers.map(|heads| Ok(row_bytes(heads * self.key_len)? + row_bytes(heads * self.value_len)?));
        let a_token: u64 = a_token.sum::<Result<u64, KvSizeError>>()?;
        Ok(tokens.next_multiple_of(TOKENS_TOGETHER) * a_token)
    }
}

/// One number for all layers, or a list of one a layer.
fn heads_of(gguf: &Gguf, key: &str, num_layers: u64) -> Result<Vec<u64>, KvSizeError> {
    if let Ok(heads) = gguf.u32s(key) {
        return Ok(heads.iter().map(|heads| u64::from(*heads)).collect());
    }
    let heads = gguf.u64(key)?;
    Ok((0..num_layers).map(|_| heads).collect())
}

/// The sizes for people, a line a format.
///
/// # Errors
/// When the model cannot be read or a format does not exist.
pub fn table(args: &KvSizeArgs) -> Result<String, KvSizeError> {
    let shape = KvShape::read(&args.model)?;
    let tokens = args.tokens.next_multiple_of(TOKENS_TOGETHER);
    let mut text = format!("{tokens} tokens\n\n| keys and values | bytes a token | MiB |\n|---|---:|---:|\n");
    for kv_type in &args.kv_types {
        let bytes = shape.size_bytes(args.tokens, kv_type)?;
        text += &format!("| {kv_type} | {} | {:.2} |\n", bytes / tokens, bytes as f64 / 1024.0 / 1024.0);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen() -> KvShape {
        // Qwen2.5-0.5B: 24 layers, 2 key-value heads of 64.
        KvShape { heads: vec![2; 24], key_len: 64, value_len: 64 }
    }

    #[test]
    fn sizes_follow_from_layers_heads_and_blocks() {
        assert_eq!(qwen().size_bytes(16_384, "f16").unwrap(), 16_384 * 24 * 2 * 128 * 2);
        // Blocks of 32 values in 34 and in 18 bytes.
        assert_eq!(qwen().size_bytes(256, "q8_0").unwrap(), 256 * 24 * 2 * (128 / 32 * 34));
        assert_eq!(qwen().size_bytes(256, "Q4_0").unwrap(), 256 * 24 * 2 * (128 / 32 * 18));
        assert_eq!(qwen().size_bytes(1, "f16").unwrap(), qwen().size_bytes(256, "f16").unwrap());
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        assert!(qwen().size_bytes(1, "q9").unwrap_err().to_string().contains("q9"));
        let odd = KvShape { heads: vec![1], key_len: 40, value_len: 40 };
        assert!(odd.size_bytes(1, "q8_0").unwrap_err().to_string().contains("32 values together"));
    }

    #[test]
    fn a_models_file_has_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let spec = quern_gguf::tiny::TinySpec::new(quern_gguf::tiny::Arch::Qwen2, 1);
        quern_gguf::tiny::write(&path, &spec).unwrap();
        let head_len = (spec.hidden / spec.heads) as u64;
        let heads = vec![spec.kv_heads as u64; spec.layers as usize];
        assert_eq!(KvShape::read(&path).unwrap(), KvShape { heads, key_len: head_len, value_len: head_len });
        assert!(KvShape::read(Path::new("/no/model.gguf")).is_err());
    }
}
