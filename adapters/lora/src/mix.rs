//! Which type each tensor gets in a file: llama.cpp's mixes, for the dense Qwen models.
//!
//! A file type is a default and exceptions by a tensor's place: the output matrix, values, the
//! down-projection and some layers are stored more exactly. The rules are those of llama.cpp's
//! `llama-quant.cpp`; the crate that wraps ggml holds our choices against its own quantiser's.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use quern_gguf::{Metadata, TensorInfo, TensorType};

use crate::error::PipelineError;
use crate::names::layer_of;

/// What a whole file is stored as.
#[allow(missing_docs)] // The variants are llama.cpp's own names and have nothing to add to them.
#[allow(non_camel_case_types)] // Written as everybody writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q4_K_M,
    Q4_0,
    Q3_K_M,
    Q2_K,
}

/// Name, llama.cpp's number, the type of most tensors.
const TABLE: &[(FileType, &str, u32, TensorType)] = &[
    (FileType::F32, "F32", 0, TensorType::F32),
    (FileType::F16, "F16", 1, TensorType::F16),
    (FileType::Bf16, "BF16", 32, TensorType::BF16),
    (FileType::Q8_0, "Q8_0", 7, TensorType::Q8_0),
    (FileType::Q6_K, "Q6_K", 18, TensorType::Q6_K),
    (FileType::Q5_K_M, "Q5_K_M", 17, TensorType::Q5_K),
    (FileType::Q4_K_M, "Q4_K_M", 15, TensorType::Q4_K),
    (FileType::Q4_0, "Q4_0", 2, TensorType::Q4_0),
    (FileType::Q3_K_M, "Q3_K_M", 12, TensorType::Q3_K),
    (FileType::Q2_K, "Q2_K", 10, TensorType::Q2_K),
];

impl FileType {
    /// All file types, the most exact first.
    pub fn all() -> impl Iterator<Item = FileType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The usual name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// llama.cpp's number, which stands in `general.file_type`.
    pub fn number(self) -> u32 {
        self.row().2
    }

    /// The type of most tensors.
    pub fn default_type(self) -> TensorType {
        self.row().3
    }

    fn row(self) -> &'static (FileType, &'static str, u32, TensorType) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row in the table")
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileType {
    type Err = String;

    fn from_str(text: &str) -> Result<FileType, String> {
        let names = || FileType::all().map(FileType::name).collect::<Vec<_>>().join(", ");
        let found = FileType::all().find(|kind| kind.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("{text:?} is none of {}", names()))
    }
}

/// What of a model's dimensions the mixes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many layers it has.
    pub num_layers: u32,
    /// The width of its hidden state.
    pub hidden: u32,
    /// How many query heads share a key.
    pub heads_per_kv: u32,
}

impl Shape {
    /// Reads the dimensions of a Qwen2 or Qwen3 model.
    ///
    /// # Errors
    ///
    /// `Architecture` for others, `Wish` where keys are missing.
    pub fn of(path: &std::path::Path, metadata: &Metadata) -> Result<Shape, PipelineError> {
        let wrong =
            |problem: quern_gguf::Problem| PipelineError::Wish(format!("{}: {problem}", path.display()));
        let arch = metadata.str("general.architecture").map_err(wrong)?;
        if !["qwen2", "qwen3"].contains(&arch) {
            return Err(PipelineError::Architecture { path: path.to_owned(), found: arch.to_owned() });
        }
        let number = |key: &str| metadata.u32(&format!("{arch}.{key}")).map_err(wrong);
        let (heads, kv_heads) = (number("attention.head_count")?, number("attention.head_count_kv")?);
        let heads_per_kv = heads.checked_div(kv_heads).unwrap_or(1);
        Ok(Shape { num_layers: number("block_count")?, hidden: number("embedding_length")?, heads_per_kv })
    }

    /// The models of 70 billion weights and more, whose values llama.cpp stores more exactly.
    fn is_large(self) -> bool {
        self.num_layers == 80 && self.hidden == 8192
    }
}

/// What a tensor does, as far as the mixes care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    Output,
    Value,
    AttentionOutput,
    Down,
    Other,
}

/// The type of each tensor in a file of this type. Vectors, and whatever else is never quantised, keep
/// theirs.
pub fn types_for(
    file_type: FileType,
    tensors: &[TensorInfo],
    shape: Shape,
    has_importance: bool,
) -> Vec<TensorType> {
    let tied = !tensors.iter().any(|tensor| tensor.name == "output.weight");
    let values = ranks(tensors, Role::Value);
    let downs = ranks(tensors, Role::Down);
    let choose = |tensor: &TensorInfo| {
        if !is_quantised(tensor) {
            return tensor.kind;
        }
        let default = file_type.default_type();
        if default.block_elements() == 1 {
            return default;
        }
        let wanted = match role(&tensor.name) {
            Role::Output => output_type(default, tensor),
            Role::Embedding if tied => output_type(default, tensor),
            Role::Value => value_type(file_type, shape, values[&tensor.name], values.len() as u32),
            Role::Down => down_type(file_type, shape.num_layers, downs[&tensor.name], has_importance),
            Role::AttentionOutput => match file_type {
                FileType::Q2_K => TensorType::Q3_K,
                FileType::Q3_K_M => TensorType::Q4_K,
                _ => default,
            },
            Role::Embedding | Role::Other => default,
        };
        fit(wanted, tensor.shape[0])
    };
    tensors.iter().map(choose).collect()
}

/// Matrices are quantised, but for norms.
fn is_quantised(tensor: &TensorInfo) -> bool {
    let is_matrix = tensor.shape.iter().skip(1).any(|&dim| dim > 1);
    is_matrix && tensor.name.ends_with("weight") && !tensor.name.contains("_norm.weight")
}

fn role(tensor: &str) -> Role {
    match tensor {
        "output.weight" => Role::Output,
        "token_embd.weight" => Role::Embedding,
        _ if tensor.contains("attn_v.weight") => Role::Value,
        _ if tensor.contains("attn_output.weight") => Role::AttentionOutput,
        _ if tensor.contains("ffn_down") => Role::Down,
        _ => Role::Other,
    }
}

/// The places of the tensors of a role, counted by layer.
fn ranks(tensors: &[TensorInfo], wanted: Role) -> HashMap<String, u32> {
    let mut found: Vec<(Option<u32>, &String)> = tensors
        .iter()
        .filter(|tensor| role(&tensor.name) == wanted)
        .map(|tensor| (layer_of(&tensor.name), &tensor.name))
        .collect();
    found.sort();
    found.into_iter().zip(0..).map(|((_, name), rank)| (name.clone(), rank)).collect()
}

/// The first and the last eighth of the layers and every third between them.
fn has_more_bits(rank: u32, count: u32) -> bool {
    rank < count / 8 || rank >= 7 * count / 8 || (rank - count / 8) % 3 == 2
}

fn output_type(default: TensorType, tensor: &TensorInfo) -> TensorType {
    match default {
        _ if !tensor.shape[0].is_multiple_of(default.block_elements()) => TensorType::Q8_0,
        TensorType::Q8_0 => TensorType::Q8_0,
        _ => TensorType::Q6_K,
    }
}

fn value_type(file_type: FileType, shape: Shape, rank: u32, count: u32) -> TensorType {
    let chosen = match file_type {
        FileType::Q2_K if shape.heads_per_kv >= 4 => TensorType::Q4_K,
        FileType::Q2_K => TensorType::Q3_K,
        FileType::Q3_K_M if rank < 2 => TensorType::Q5_K,
        FileType::Q3_K_M => TensorType::Q4_K,
        FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(rank, count) => TensorType::Q6_K,
        _ => file_type.default_type(),
    };
    match chosen {
        TensorType::Q3_K | TensorType::Q4_K if shape.is_large() => TensorType::Q5_K,
        _ => chosen,
    }
}

fn down_type(file_type: FileType, num_layers: u32, rank: u32, has_importance: bool) -> TensorType {
    match file_type {
        FileType::Q2_K => TensorType::Q3_K,
        FileType::Q3_K_M if rank < num_layers / 16 => TensorType::Q5_K,
        FileType::Q3_K_M => TensorType::Q4_K,
        FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(rank, num_layers) => TensorType::Q6_K,
        FileType::Q4_0 if has_importance && rank < num_layers / 8 => TensorType::Q4_1,
        _ => file_type.default_type(),
    }
}

/// Rows that are not whole blocks of 256 get a type with blocks of 32, and odd ones F16.
fn fit(wanted: TensorType, row_len: u64) -> TensorType {
    let whole = |kind: TensorType| row_len.is_multiple_of(kind.block_elements());
    if whole(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        TensorType::Q2_K | TensorType::Q3_K => TensorType::Q4_0,
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q5_K => TensorType::Q5_1,
        TensorType::Q6_K => TensorType::Q8_0,
        other => other,
    };
    if whole(smaller) { smaller } else { TensorType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[u64]) -> TensorInfo {
        let kind = TensorType::F32;
        TensorInfo { name: name.into(), shape: shape.into(), kind, offset: 0, size_bytes: 0 }
    }

    fn model(row_len: u64) -> Vec<TensorInfo> {
        let mut tensors =
            vec![tensor("token_embd.weight", &[row_len, 10]), tensor("output_norm.weight", &[row_len])];
        for layer_idx in 0..16 {
            for name in ["attn_norm", "attn_v", "attn_q", "attn_output", "ffn_down"] {
                let shape = if name == "attn_norm" { vec![row_len] } else { vec![row_len, row_len] };
                tensors.push(tensor(&format!("blk.{layer_idx}.{name}.weight"), &shape));
            }
        }
        tensors
    }

    const SHAPE: Shape = Shape { num_layers: 16, hidden: 256, heads_per_kv: 7 };

    #[test]
    fn places_get_more_bits() {
        let tensors = model(256);
        let types = types_for(FileType::Q4_K_M, &tensors, SHAPE, false);
        let of = |name: &str| types[tensors.iter().position(|tensor| tensor.name == name).unwrap()];
        assert_eq!(of("token_embd.weight"), TensorType::Q6_K);
        assert_eq!(of("output_norm.weight"), TensorType::F32);
        assert_eq!(of("blk.0.attn_v.weight"), TensorType::Q6_K);
        assert_eq!(of("blk.2.attn_v.weight"), TensorType::Q4_K);
        assert_eq!(of("blk.4.ffn_down.weight"), TensorType::Q6_K);
        assert_eq!(of("blk.15.ffn_down.weight"), TensorType::Q6_K);
        assert_eq!(of("blk.4.attn_q.weight"), TensorType::Q4_K);
    }

    #[test]
    fn rows_that_do_not_fit_get_smaller_blocks() {
        assert_eq!(fit(TensorType::Q4_K, 896), TensorType::Q5_0);
        assert_eq!(fit(TensorType::Q4_K, 100), TensorType::F16);
        assert_eq!(fit(TensorType::Q8_0, 100), TensorType::F16);
        let types = types_for(FileType::Q4_K_M, &model(896), SHAPE, false);
        assert_eq!(types[0], TensorType::Q8_0);
    }

    #[test]
    fn names_lead_back_to_types() {
        for file_type in FileType::all() {
            assert_eq!(file_type.name().to_lowercase().parse(), Ok(file_type));
        }
        assert!("Q9_K".parse::<FileType>().unwrap_err().contains("Q4_K_M"));
    }
}
