//! The keys and tensors of the Qwen2 and Qwen3 architectures, as llama.cpp expects them in a file.

use crate::error::Problem;
use crate::tensor::TensorType;
use crate::writer::GgufWriter;

use super::Arch;
use super::vocabulary::Vocabulary;

/// A model's dimensions; a head is `hidden / heads` wide.
pub(super) struct Model {
    pub name: String,
    pub arch: Arch,
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub ffn: u32,
    pub context: u32,
    pub tied: bool,
    pub rope_base: f32,
    /// llama.cpp's number for the mix of types.
    pub file_type: u32,
}

/// What a tensor does in the model, as far as its weights or its type depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Output,
    Norm,
    Bias,
    Query,
    Key,
    Value,
    AttentionOut,
    FeedForwardDown,
    Matrix,
}

impl Role {
    /// Vectors are always stored as F32.
    pub(super) fn is_vector(self) -> bool {
        matches!(self, Role::Norm | Role::Bias)
    }
}

/// One tensor that the model needs.
pub(super) struct TensorPlan {
    pub name: String,
    pub shape: Vec<u64>,
    pub role: Role,
    /// The layer, 0 outside of layers.
    pub layer_idx: u32,
}

impl Model {
    /// All tensors of the model in the order in which they are written.
    pub(super) fn tensors(&self, num_tokens: usize) -> Vec<TensorPlan> {
        let (hidden, tokens) = (u64::from(self.hidden), num_tokens as u64);
        let top = |name: &str, shape: &[u64], role| TensorPlan {
            name: name.to_owned(),
            shape: shape.to_vec(),
            role,
            layer_idx: 0,
        };
        let mut plans = vec![top("token_embd.weight", &[hidden, tokens], Role::Embedding)];
        for layer_idx in 0..self.layers {
            self.push_layer(layer_idx, &mut plans);
        }
        plans.push(top("output_norm.weight", &[hidden], Role::Norm));
        if !self.tied {
            plans.push(top("output.weight", &[hidden, tokens], Role::Output));
        }
        plans
    }

    fn push_layer(&self, layer_idx: u32, plans: &mut Vec<TensorPlan>) {
        let (hidden, ffn) = (u64::from(self.hidden), u64::from(self.ffn));
        let head = u64::from(self.hidden / self.heads);
        let kv = head * u64::from(self.kv_heads);
        let mut push = |name: &str, shape: &[u64], role| {
            let name = format!("blk.{layer_idx}.{name}");
            plans.push(TensorPlan { name, shape: shape.to_vec(), role, layer_idx });
        };
        push("attn_norm.weight", &[hidden], Role::Norm);
        push("attn_q.weight", &[hidden, hidden], Role::Query);
        push("attn_k.weight", &[hidden, kv], Role::Key);
        push("attn_v.weight", &[hidden, kv], Role::Value);
        match self.arch {
            Arch::Qwen2 => {
                push("attn_q.bias", &[hidden], Role::Bias);
                push("attn_k.bias", &[kv], Role::Bias);
                push("attn_v.bias", &[kv], Role::Bias);
            }
            Arch::Qwen3 => {
                push("attn_q_norm.weight", &[head], Role::Norm);
                push("attn_k_norm.weight", &[head], Role::Norm);
            }
        }
        push("attn_output.weight", &[hidden, hidden], Role::AttentionOut);
        push("ffn_norm.weight", &[hidden], Role::Norm);
        push("ffn_gate.weight", &[hidden, ffn], Role::Matrix);
        push("ffn_up.weight", &[hidden, ffn], Role::Matrix);
        push("ffn_down.weight", &[ffn, hidden], Role::FeedForwardDown);
    }

    /// The header of the model's file.
    pub(super) fn writer(
        &self,
        vocabulary: &Vocabulary,
        plans: &[TensorPlan],
        kind: impl Fn(&TensorPlan) -> TensorType,
    ) -> Result<GgufWriter, Problem> {
        let arch = self.arch.name();
        let head = self.hidden / self.heads;
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", arch)?;
        writer.set("general.type", "model")?;
        writer.set("general.name", self.name.as_str())?;
        writer.set("general.file_type", self.file_type)?;
        writer.set("general.quantization_version", 2u32)?;
        writer.set(&format!("{arch}.block_count"), self.layers)?;
        writer.set(&format!("{arch}.context_length"), self.context)?;
        writer.set(&format!("{arch}.embedding_length"), self.hidden)?;
        writer.set(&format!("{arch}.feed_forward_length"), self.ffn)?;
        writer.set(&format!("{arch}.attention.head_count"), self.heads)?;
        writer.set(&format!("{arch}.attention.head_count_kv"), self.kv_heads)?;
        if self.arch == Arch::Qwen3 {
            writer.set(&format!("{arch}.attention.key_length"), head)?;
            writer.set(&format!("{arch}.attention.value_length"), head)?;
        }
        writer.set(&format!("{arch}.rope.freq_base"), self.rope_base)?;
        writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-6f32)?;
        vocabulary.write_keys(&mut writer)?;
        for plan in plans {
            writer.tensor(&plan.name, &plan.shape, kind(plan))?;
        }
        Ok(writer)
    }
}
