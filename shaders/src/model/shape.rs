//! A model's dimensions out of its file, and why a file is none of ours. No memory is taken yet.

use quern_gguf::{Gguf, TensorInfo};

use super::ModelError;
use super::rope::Rope;
use crate::sampling::MAX_VOCAB;
use crate::weights::Format;

/// Largest number of query heads that share a key-value head.
const MAX_GROUP: u32 = 8;

/// The dimensions of a Qwen2, Qwen2.5 or Qwen3 model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Inner width of the feed-forward part.
    pub ffn: u32,
    /// Query heads.
    pub heads: u32,
    /// Key-value heads.
    pub kv_heads: u32,
    /// Values of a head.
    pub head_dim: u32,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Longest sequence that the model was trained for, in tokens.
    pub trained_len: u32,
    /// Added to mean squares.
    pub epsilon: f32,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// Whether queries and keys are normed by themselves, as Qwen3 does.
    pub head_norms: bool,
    /// Whether the embedding matrix is the output matrix too.
    pub tied: bool,
}

impl ModelShape {
    /// Reads the dimensions and checks that every tensor they ask for is there, has their shape and a
    /// type that there are kernels for, and that there is none besides.
    ///
    /// # Errors
    /// [`ModelError`] names the key or the tensor.
    pub fn read(gguf: &Gguf) -> Result<ModelShape, ModelError> {
        let arch = gguf.architecture()?.to_owned();
        if arch != "qwen2" && arch != "qwen3" {
            return Err(ModelError::Architecture { found: arch });
        }
        let key = |name: &str| format!("{arch}.{name}");
        let number = |name: &str| gguf.u32(&key(name));
        let optional = |name: &str| gguf.get(&key(name)).is_some().then(|| number(name)).transpose();
        let hidden = number("embedding_length")?;
        let heads = number("attention.head_count")?;
        let kv_heads = optional("attention.head_count_kv")?.unwrap_or(heads);
        let equal_share = hidden.checked_div(heads).unwrap_or(0);
        let head_dim = optional("attention.key_length")?.unwrap_or(equal_share);
        let value_dim = optional("attention.value_length")?.unwrap_or(head_dim);
        let trained_len = number("context_length")?;
        let embedding = gguf.require_tensor("token_embd.weight")?;
        let shape = ModelShape {
            layers: number("block_count")?,
            hidden,
            ffn: number("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab: u32::try_from(embedding.shape.get(1).copied().unwrap_or(0)).unwrap_or(0),
            trained_len,
            epsilon: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
            rope: Rope::read(gguf, &arch, trained_len)?,
            head_norms: arch == "qwen3",
            tied: gguf.tensor("output.weight").is_none(),
        };
        let rotated = optional("rope.dimension_count")?.unwrap_or(head_dim);
        shape.check(value_dim, rotated)?;
        shape.check_tensors(gguf)?;
        Ok(shape)
    }

    /// Query heads that share a key-value head.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Values of a row of queries, keys and values together.
    #[must_use]
    pub fn qkv_width(&self) -> u32 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes of keys and values of a token in one layer.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        u64::from(2 * self.kv_heads * self.head_dim) * 2
    }

    fn check(&self, value_dim: u32, rotated: u32) -> Result<(), ModelError> {
        let refuse = |what: &'static str, found: u32, wanted: &'static str| {
            Err(ModelError::Shape { what, found, wanted })
        };
        let counts = [
            ("layers", self.layers),
            ("attention heads", self.heads),
            ("key-value heads", self.kv_heads),
            ("tokens in the vocabulary", self.vocab),
            ("tokens of context", self.trained_len),
        ];
        if let Some((what, found)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return refuse(what, found, "at least 1");
        }
        if self.vocab > MAX_VOCAB {
            return refuse("tokens in the vocabulary", self.vocab, "at most 4,194,304");
        }
        if self.head_dim != 64 && self.head_dim != 128 {
            return refuse("values of an attention head", self.head_dim, "64 or 128");
        }
        if value_dim != self.head_dim || rotated != self.head_dim {
            let found = if value_dim == self.head_dim { rotated } else { value_dim };
            return refuse("values of a head's values or turned dimensions", found, "all of the head's");
        }
        if !self.heads.is_multiple_of(self.kv_heads) || self.group() > MAX_GROUP {
            return refuse("attention heads", self.heads, "1 to 8 for each key-value head");
        }
        for (what, width) in [("hidden width", self.hidden), ("feed-forward width", self.ffn)] {
            if width == 0 || !width.is_multiple_of(32) {
                return refuse(what, width, "a multiple of 32");
            }
        }
        Ok(())
    }

    fn check_tensors(&self, gguf: &Gguf) -> Result<(), ModelError> {
        let (hidden, ffn) = (u64::from(self.hidden), u64::from(self.ffn));
        let (dim, vocab) = (u64::from(self.head_dim), u64::from(self.vocab));
        let (queries, keys) = (u64::from(self.heads) * dim, u64::from(self.kv_heads) * dim);
        let mut known = std::collections::HashSet::new();
        let mut check = |name: String, shape: &[u64], is_needed: bool| {
            let Some(tensor) = gguf.tensor(&name) else {
                return if is_needed {
                    Err(gguf.require_tensor(&name).expect_err("it is not there").into())
                } else {
                    Ok(())
                };
            };
            known.insert(name);
            check_tensor(tensor, shape)
        };
        check("token_embd.weight".to_owned(), &[hidden, vocab], true)?;
        check("output_norm.weight".to_owned(), &[hidden], true)?;
        check("output.weight".to_owned(), &[hidden, vocab], false)?;
        for layer in 0..self.layers {
            let mut layer_tensor = |name: &str, shape: &[u64], is_needed: bool| {
                check(format!("blk.{layer}.{name}"), shape, is_needed)
            };
            layer_tensor("attn_norm.weight", &[hidden], true)?;
            for (name, width) in [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)] {
                layer_tensor(&format!("{name}.weight"), &[hidden, width], true)?;
                layer_tensor(&format!("{name}.bias"), &[width], !self.head_norms)?;
            }
            if self.head_norms {
                layer_tensor("attn_q_norm.weight", &[dim], true)?;
                layer_tensor("attn_k_norm.weight", &[dim], true)?;
            }
            layer_tensor("attn_output.weight", &[queries, hidden], true)?;
            layer_tensor("ffn_norm.weight", &[hidden], true)?;
            layer_tensor("ffn_gate.weight", &[hidden, ffn], true)?;
            layer_tensor("ffn_up.weight", &[hidden, ffn], true)?;
            layer_tensor("ffn_down.weight", &[ffn, hidden], true)?;
        }
        let unknown = gguf.tensors().iter().find(|tensor| !known.contains(&tensor.name));
        unknown.map_or(Ok(()), |tensor| Err(ModelError::UnknownTensor { tensor: tensor.name.clone() }))
    }
}

fn check_tensor(tensor: &TensorInfo, wanted: &[u64]) -> Result<(), ModelError> {
    let name = || tensor.name.clone();
    if tensor.shape != wanted {
        return Err(ModelError::TensorShape {
            tensor: name(),
            found: tensor.shape.clone(),
            wanted: wanted.to_vec(),
        });
    }
    let is_known = match wanted.len() {
        1 => tensor.kind == quern_gguf::TensorType::F32,
        _ => Format::of(tensor.kind).is_some(),
    };
    if is_known { Ok(()) } else { Err(ModelError::TensorType { tensor: name(), kind: tensor.kind }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scaling;

    #[test]
    fn vocabularies_are_as_large_as_kernels_can_draw_from() {
        let shape = |vocab| ModelShape {
            layers: 1,
            hidden: 64,
            ffn: 64,
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            vocab,
            trained_len: 32,
            epsilon: 1e-6,
            rope: Rope { base: 10_000.0, scaling: Scaling::None },
            head_norms: false,
            tied: true,
        };
        assert!(shape(MAX_VOCAB).check(64, 64).is_ok());
        let refused = shape(MAX_VOCAB + 1).check(64, 64).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|why| why.contains("4194305") && why.contains("at most 4,194,304")));
    }
}
