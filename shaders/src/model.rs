//! A model on a device: its dimensions, and every matrix and vector where kernels find them.
//!
//! What the file lacks, or holds and there is no kernel for, is named before anything is uploaded. Where
//! next: `shape.rs` for what is accepted, `matrix.rs` for how matrices come to the device.

mod matrix;
mod rope;
mod shape;

use quern_gguf::{Gguf, GgufError, TensorInfo, TensorType};

pub use matrix::{Matrix, Shard};
pub use rope::{Rope, Scaling};
pub use shape::ModelShape;

use crate::buffers::Buffer;
use crate::device::Device;
use crate::error::DeviceError;
use matrix::Uploads;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is not as it must be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Another kind of model.
    #[error("the model's architecture is {found}, and there are kernels for qwen2 and qwen3")]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A dimension that kernels are not made for.
    #[error("the model has {found} {what}, and there are kernels for {wanted}")]
    Shape {
        /// The dimension.
        what: &'static str,
        /// What the file says.
        found: u32,
        /// What it could be.
        wanted: &'static str,
    },
    /// A way of stretching positions that is not known.
    #[error("the model scales its positions by {found:?}, and none, linear and yarn are known")]
    RopeScaling {
        /// What the file says.
        found: String,
    },
    /// A tensor whose type has no kernel.
    #[error("tensor {tensor} is stored as {kind}, and there is no kernel for that")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type.
        kind: TensorType,
    },
    /// A tensor that does not fit the model's dimensions.
    #[error("tensor {tensor} is {found:?}, and the model's dimensions make it {wanted:?}")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// Its dimensions in the file, innermost first.
        found: Vec<u64>,
        /// What they should be.
        wanted: Vec<u64>,
    },
    /// A tensor that would change results and that no kernel reads.
    #[error("tensor {tensor} is not part of any model that there are kernels for")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// Whoever waits for the model has changed their mind.
    #[error("loading was cancelled")]
    Cancelled,
}

/// A matrix and where its rows go in the output of the kernels that share an input.
#[derive(Debug)]
pub struct Placed {
    /// The matrix.
    pub matrix: Matrix,
    /// Added to each row, where there is one: `[rows]`.
    pub bias: Option<Buffer>,
    /// Where its first row goes.
    pub out_base: u32,
}

/// Norms of queries and keys, `[head_dim]` each.
#[derive(Debug)]
pub struct HeadNormBuffers {
    /// For queries.
    pub query: Buffer,
    /// For keys.
    pub key: Buffer,
}

/// One layer's weights.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden]`.
    pub attn_norm: Buffer,
    /// Queries, keys and values, in as few matrices as their types allow.
    pub qkv: Vec<Placed>,
    /// Where the model has them.
    pub head_norms: Option<HeadNormBuffers>,
    /// Back to the residual stream.
    pub attn_out: Matrix,
    /// `[hidden]`.
    pub ffn_norm: Buffer,
    /// Gates and ups, in one matrix where their types allow it.
    pub gate_up: Vec<Placed>,
    /// Back to the residual stream.
    pub down: Matrix,
}

/// A model whose weights are on a device.
#[derive(Debug)]
pub struct Model {
    /// Its dimensions.
    pub shape: ModelShape,
    /// Rows are tokens.
    pub embedding: Matrix,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub output_norm: Buffer,
    /// Rows are tokens; none where it is the embedding.
    pub output: Option<Matrix>,
    /// Bytes of all weights on the device.
    pub size_bytes: u64,
}

impl Model {
    /// Reads a file and puts its weights on a device, a few megabytes at a time. Blocks; `progress` is
    /// called with the part that is there, from 0 to 1, and ends the loading with `false`.
    ///
    /// # Errors
    /// [`ModelError`]; what the file lacks is named before anything is uploaded.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(
        device: &Device,
        gguf: &Gguf,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Model, ModelError> {
        pollster::block_on(Model::load_async(device, gguf, progress))
    }

    /// As [`Model::load`], for hosts that must not block. In a browser it yields every 64 MB, to let the device
    /// take them; on a native device it blocks. Dropped before its end, it frees what is there.
    ///
    /// # Errors
    /// The same.
    pub async fn load_async(
        device: &Device,
        gguf: &Gguf,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Model, ModelError> {
        let shape = ModelShape::read(gguf)?;
        let mut uploads = Uploads::new(device, gguf, progress);
        let mut layers = Vec::new();
        for layer in 0..shape.layers {
            layers.push(load_layer(&mut uploads, layer, &shape).await?);
        }
        let output = if shape.tied { None } else { Some(uploads.matrix(&["output.weight"]).await?) };
        Ok(Model {
            embedding: uploads.matrix(&["token_embd.weight"]).await?,
            layers,
            output_norm: uploads.vector("output_norm.weight").await?,
            output,
            size_bytes: uploads.finish().await?,
            shape,
        })
    }

    /// The matrix that makes logits of hidden states.
    #[must_use]
    pub fn head(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of the weights that a step with logits reads: all but a table of embeddings that is not the
    /// head, too, of which only the rows' own are read.
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        self.size_bytes - self.output.as_ref().map_or(0, |_| self.embedding.size_bytes())
    }
}

async fn load_layer(uploads: &mut Uploads<'_>, layer: u32, shape: &ModelShape) -> Result<Layer, ModelError> {
    let name = |part: &str| format!("blk.{layer}.{part}");
    Ok(Layer {
        attn_norm: uploads.vector(&name("attn_norm.weight")).await?,
        qkv: load_placed(uploads, &[name("attn_q"), name("attn_k"), name("attn_v")]).await?,
        head_norms: match shape.head_norms {
            true => Some(HeadNormBuffers {
                query: uploads.vector(&name("attn_q_norm.weight")).await?,
                key: uploads.vector(&name("attn_k_norm.weight")).await?,
            }),
            false => None,
        },
        attn_out: uploads.matrix(&[&name("attn_output.weight")]).await?,
        ffn_norm: uploads.vector(&name("ffn_norm.weight")).await?,
        gate_up: load_placed(uploads, &[name("ffn_gate"), name("ffn_up")]).await?,
        down: uploads.matrix(&[&name("ffn_down.weight")]).await?,
    })
}

/// Matrices that share an input, each run that is stored as one type as one.
async fn load_placed(uploads: &mut Uploads<'_>, names: &[String]) -> Result<Vec<Placed>, ModelError> {
    let gguf = uploads.gguf();
    let weight = |name: &String| gguf.tensor(&format!("{name}.weight"));
    let bias = |name: &&String| gguf.tensor(&format!("{name}.bias")).is_some();
    let runs: Vec<&[String]> = names
        .chunk_by(|left, right| match (weight(left), weight(right)) {
            (Some(left), Some(right)) => {
                uploads.stored_as(left.kind) == uploads.stored_as(right.kind) && matrix::ends_a_panel(left)
            }
            _ => false,
        })
        .collect();
    let mut out_base = 0;
    let mut placed = Vec::new();
    for run in runs {
        let weights: Vec<String> = run.iter().map(|name| format!("{name}.weight")).collect();
        let matrix = uploads.matrix(&weights.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        // Where some of a run have no bias, zeros are added.
        let has_bias = run.iter().any(|name| bias(&name));
        let bias = if has_bias { Some(uploads.biases(run).await?) } else { None };
        let num_rows = matrix.num_rows();
        placed.push(Placed { matrix, bias, out_base });
        out_base += num_rows;
    }
    Ok(placed)
}

/// Rows of a matrix in a file.
fn rows_of(tensor: &TensorInfo) -> u64 {
    tensor.shape.get(1).copied().unwrap_or(1)
}
