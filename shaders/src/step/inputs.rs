//! What matrices in textures are multiplied with: copies of buffers, made before the product that reads them.
//! See `texels.rs` for which devices want that.

use super::StepLimits;
use crate::buffers::Buffer;
use crate::device::Device;
use crate::error::DeviceError;
use crate::model::ModelShape;
use crate::texels::{Texel, Texels, has_texels};

/// A texture for each buffer that products read, `[rows, width / 4]`, where there are such matrices.
#[derive(Debug)]
pub(super) struct Inputs {
    pub normed: Option<Texels>,
    pub attended: Option<Texels>,
    pub gated: Option<Texels>,
    pub outputs: Option<Texels>,
}

impl Inputs {
    pub fn new(device: &Device, shape: &ModelShape, limits: StepLimits) -> Result<Inputs, DeviceError> {
        let texels = |what, width: u32, num_rows| {
            let profile = device.profile();
            let wanted = profile.reads_texels && has_texels(width) && width / 4 <= profile.max_texture_side;
            wanted.then(|| Texels::new(device, what, Texel::Floats, [width / 4, num_rows])).transpose()
        };
        Ok(Inputs {
            normed: texels("normed rows", shape.hidden, limits.max_rows)?,
            attended: texels("attended rows", shape.heads * shape.head_dim, limits.max_rows)?,
            gated: texels("gated rows", shape.ffn, limits.max_rows)?,
            outputs: texels("rows with an output", shape.hidden, limits.max_outputs)?,
        })
    }

    pub fn bytes(&self) -> u64 {
        let all = [&self.normed, &self.attended, &self.gated, &self.outputs];
        all.into_iter().flatten().map(Texels::size_bytes).sum()
    }
}

/// A copy from a buffer to a texture.
#[derive(Debug)]
pub(super) struct Copied {
    pub from: Buffer,
    pub to: Texels,
}

impl Copied {
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, num_rows: u32) {
        self.to.copy_from(encoder, &self.from, num_rows);
    }
}
