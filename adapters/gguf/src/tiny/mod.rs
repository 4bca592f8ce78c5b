//! Models made from a seed: tiny random ones that an engine loads and runs in tests, and synthetic ones of
//! real shapes for speed tests on machines without the weights.
//!
//! Every byte follows from the wish alone. Random numbers come from ChaCha8 with one stream a tensor, and
//! weights are made of integer sums, products and square roots, which are the same on every machine.
//!
//! The control tokens have small rows in the output matrix, so that a tiny model practically never ends a
//! text by itself and a test gets as many tokens as it asks for.

mod model;
mod synthetic;
mod vocabulary;
mod weights;

use std::path::Path;

use crate::error::{GgufError, Problem};
use crate::tensor::TensorType;

use model::{Model, Role, TensorPlan};
use vocabulary::Vocabulary;
use weights::Gaussian;

pub use synthetic::{SHAPE_NAMES, synthetic};

/// The architectures that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `qwen2`, which Qwen2.5 uses: biases on query, key and value.
    Qwen2,
    /// `qwen3`: norms on query and key.
    Qwen3,
}

impl Arch {
    /// The name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
        }
    }
}

/// What a tiny model shall be like.
#[derive(Clone, Debug)]
pub struct TinySpec {
    /// The architecture.
    pub arch: Arch,
    /// Everything random follows from this.
    pub seed: u64,
    /// How many layers there are.
    pub layers: u32,
    /// The width of the residual stream.
    pub hidden: u32,
    /// How many query heads there are; a head is `hidden / heads` wide.
    pub heads: u32,
    /// How many key and value heads there are.
    pub kv_heads: u32,
    /// The inner width of the feed-forward part.
    pub ffn: u32,
    /// The context length that the file claims.
    pub context: u32,
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// How matrices are stored: F32, F16, BF16, Q8_0 or Q5_0.
    pub kind: TensorType,
}

impl TinySpec {
    /// Two layers of width 256 with heads of 64, stored as F32: about 6 MB that any engine runs quickly.
    pub fn new(arch: Arch, seed: u64) -> TinySpec {
        TinySpec {
            arch,
            seed,
            layers: 2,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            ffn: 512,
            context: 4096,
            tied: false,
            kind: TensorType::F32,
        }
    }

    fn check(&self) -> Result<(), Problem> {
        let counts = [self.layers, self.hidden, self.heads, self.kv_heads, self.ffn, self.context];
        let reason = if counts.contains(&0) {
            "no count may be 0"
        } else if !self.hidden.is_multiple_of(2 * self.heads) {
            "the width must be an even multiple of the heads"
        } else if !self.heads.is_multiple_of(self.kv_heads) {
            "the heads must be a multiple of the key and value heads"
        } else if !weights::can_encode(self.kind) {
            "matrices are stored as F32, F16, BF16, Q8_0 or Q5_0"
        } else {
            return Ok(());
        };
        Err(Problem::BadSpec { reason })
    }

    fn file_type(&self) -> u32 {
        match self.kind {
            TensorType::F16 => 1,
            TensorType::Q8_0 => 7,
            TensorType::Q5_0 => 8,
            TensorType::BF16 => 32,
            _ => 0,
        }
    }
}

/// Writes a tiny random model. The file is the same, byte for byte, for the same wish on every machine.
///
/// # Errors
///
/// `BadSpec` or `BadShape` for a wish that cannot be, or `Io`.
pub fn write(path: &Path, spec: &TinySpec) -> Result<(), GgufError> {
    let named = |problem| GgufError::new(path, problem);
    spec.check().map_err(named)?;
    let vocabulary = Vocabulary::small();
    let model = Model {
        name: format!("tiny random {} {}", spec.arch.name(), spec.seed),
        arch: spec.arch,
        layers: spec.layers,
        hidden: spec.hidden,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        ffn: spec.ffn,
        context: spec.context,
        tied: spec.tied,
        rope_base: 10_000.0,
        file_type: spec.file_type(),
    };
    let plans = model.tensors(vocabulary.len());
    let kind = |plan: &TensorPlan| if plan.role.is_vector() { TensorType::F32 } else { spec.kind };
    let writer = model.writer(&vocabulary, &plans, kind).map_err(named)?;
    let mut stream = writer.create(path)?;
    for (stream_idx, plan) in plans.iter().enumerate() {
        let mut gaussian = Gaussian::new(spec.seed, stream_idx as u64);
        let is_output = plan.role == Role::Output || (spec.tied && plan.role == Role::Embedding);
        let (mean, deviation) = distribution(plan, spec.tied);
        let row_len = plan.shape[0] as usize;
        stream.write(&plan.name, |out| {
            let mut bytes = Vec::new();
            for row_idx in 0..plan.shape.get(1).copied().unwrap_or(1) {
                let quiet = is_output && vocabulary.is_special(row_idx as usize);
                let deviation = if quiet { deviation / 16.0 } else { deviation };
                let row: Vec<f32> = (0..row_len).map(|_| mean + deviation * gaussian.sample()).collect();
                bytes.clear();
                weights::encode(plan_kind(plan, spec), &row, &mut bytes);
                out.write_all(&bytes)?;
            }
            Ok(())
        })?;
    }
    stream.finish()
}

fn plan_kind(plan: &TensorPlan, spec: &TinySpec) -> TensorType {
    if plan.role.is_vector() { TensorType::F32 } else { spec.kind }
}

/// Mean and standard deviation of a tensor's weights. They keep activations near 1, make attention look at
/// something, and spread the logits so that the likeliest token stands out.
fn distribution(plan: &TensorPlan, tied: bool) -> (f32, f32) {
    let per_row = 1.0 / (plan.shape[0] as f32).sqrt();
    match plan.role {
        Role::Norm => (1.0, 0.05),
        Role::Bias => (0.0, 0.1),
        Role::Embedding if tied => (0.0, 4.0 * per_row),
        Role::Embedding => (0.0, 1.0),
        Role::Output => (0.0, 4.0 * per_row),
        Role::Query | Role::Key => (0.0, 2.0 * per_row),
        Role::Value | Role::Matrix => (0.0, per_row),
        Role::AttentionOut | Role::FeedForwardDown => (0.0, 3.0 * per_row),
    }
}

#[cfg(test)]
mod tests;
