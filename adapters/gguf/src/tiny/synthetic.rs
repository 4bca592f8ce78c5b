//! Models of real shapes and types with random weights: of no use to talk to, but as fast or as slow as the
//! real ones.

use std::path::Path;

use crate::error::{GgufError, Problem};
use crate::tensor::TensorType;

use super::Arch;
use super::model::{Model, Role, TensorPlan};
use super::vocabulary::Vocabulary;
use super::weights;

/// The shapes that [`synthetic`] knows.
pub const SHAPE_NAMES: &[&str] = &["qwen2.5-0.5b", "qwen2.5-7b"];

/// Bytes of random blocks that are made at a time; bounds the memory, whatever the model's size.
const CHUNK_BYTES: u64 = 1 << 20;

const Q4_K_M: u32 = 15;

/// Writes a model of a real shape in the mix of types that llama.cpp calls Q4_K_M, with random weights.
///
/// # Errors
///
/// `BadSpec` for a shape that is not in [`SHAPE_NAMES`], or `Io`.
pub fn synthetic(path: &Path, shape_name: &str) -> Result<(), GgufError> {
    let named = |problem| GgufError::new(path, problem);
    let reason = "the shape is not one of qwen2.5-0.5b and qwen2.5-7b";
    let (model, num_tokens) = shape(shape_name).ok_or_else(|| named(Problem::BadSpec { reason }))?;
    let vocabulary = Vocabulary::full(num_tokens);
    let plans = model.tensors(vocabulary.len());
    let kind = |plan: &TensorPlan| q4_k_m(plan, model.layers);
    let writer = model.writer(&vocabulary, &plans, kind).map_err(named)?;
    let mut stream = writer.create(path)?;
    for (stream_idx, plan) in plans.iter().enumerate() {
        let kind = kind(plan);
        let mut generator = weights::generator(0, stream_idx as u64);
        stream.write(&plan.name, |out| {
            if plan.role.is_vector() {
                let value = if plan.role == Role::Norm { 1f32 } else { 0f32 };
                return out.write_all(&value.to_le_bytes().repeat(plan.shape[0] as usize));
            }
            // An embedding as large as what the layers add keeps the output a function of the last token.
            let per_row = 1.0 / (plan.shape[0] as f32).sqrt();
            let deviation = if plan.role == Role::Embedding { 1.0 } else { per_row };
            let size_bytes = kind.size_bytes(&plan.shape).expect("the header took this shape");
            let chunk_bytes = CHUNK_BYTES / kind.block_bytes() * kind.block_bytes();
            let mut chunk = vec![0; chunk_bytes as usize];
            let mut left = size_bytes;
            while left > 0 {
                let part = &mut chunk[..left.min(chunk_bytes) as usize];
                weights::fill_blocks(kind, deviation, &mut generator, part);
                out.write_all(part)?;
                left -= part.len() as u64;
            }
            Ok(())
        })?;
    }
    stream.finish()
}

/// The dimensions and the number of tokens of a real model.
fn shape(name: &str) -> Option<(Model, usize)> {
    let (layers, hidden, heads, kv_heads, ffn, num_tokens) = match name {
        "qwen2.5-0.5b" => (24, 896, 14, 2, 4864, 151_936),
        "qwen2.5-7b" => (28, 3584, 28, 4, 18_944, 152_064),
        _ => return None,
    };
    let model = Model {
        name: format!("synthetic {name}"),
        arch: Arch::Qwen2,
        layers,
        hidden,
        heads,
        kv_heads,
        ffn,
        context: 32_768,
        tied: false,
        rope_base: 1_000_000.0,
        file_type: Q4_K_M,
    };
    Some((model, num_tokens))
}

/// The type that llama.cpp's quantiser gives a tensor in this mix.
fn q4_k_m(plan: &TensorPlan, layers: u32) -> TensorType {
    let wanted = match plan.role {
        Role::Norm | Role::Bias => return TensorType::F32,
        Role::Output => TensorType::Q6_K,
        Role::Value | Role::FeedForwardDown if has_more_bits(plan.layer_idx, layers) => TensorType::Q6_K,
        _ => TensorType::Q4_K,
    };
    // Rows that are not whole blocks of 256 get the nearest type with blocks of 32.
    match wanted {
        _ if plan.shape[0].is_multiple_of(wanted.block_elements()) => wanted,
        TensorType::Q6_K => TensorType::Q8_0,
        _ => TensorType::Q5_0,
    }
}

/// The first and the last eighth of the layers and every third between them are stored more exactly.
fn has_more_bits(layer_idx: u32, layers: u32) -> bool {
    let eighth = layers / 8;
    layer_idx < eighth || layer_idx >= 7 * layers / 8 || (layer_idx - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor_bytes(name: &str) -> u64 {
        let (model, num_tokens) = shape(name).unwrap();
        let plans = model.tensors(num_tokens);
        plans.iter().map(|plan| q4_k_m(plan, model.layers).size_bytes(&plan.shape).unwrap()).sum()
    }

    #[test]
    fn sizes_are_the_real_models() {
        // The published files: 491,400,064 and 4,683,073,536 bytes, of which the vocabulary takes some 6 MB.
        assert_eq!(tensor_bytes("qwen2.5-0.5b"), 485_452_288);
        assert_eq!(tensor_bytes("qwen2.5-7b"), 4_677_120_000);
    }

    #[test]
    fn unknown_shapes_are_refused() {
        let error = synthetic(Path::new("never-written.gguf"), "gpt-5").unwrap_err();
        assert!(matches!(error.problem, Problem::BadSpec { .. }));
    }
}
