//! What cooperative matrices are multiplied with: rows as halves, made before the products that read them.

use super::StepLimits;
use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::error::DeviceError;
use crate::model::ModelShape;
use crate::weights::Format;

/// The input of the next products, where the device was asked for cooperative matrices.
#[derive(Debug)]
pub(super) struct Halves {
    /// `[rows, width]`, for whole tiles of columns.
    halves: Buffer,
    /// A power of two for each row.
    powers: Buffer,
    /// Axes of `matmul_coop`.
    lanes: &'static str,
    wide: &'static str,
}

impl Halves {
    /// Columns of a workgroup of `matmul_coop`.
    pub const COLS: u32 = 64;

    pub fn new(
        device: &Device,
        shape: &ModelShape,
        limits: StepLimits,
    ) -> Result<Option<Halves>, DeviceError> {
        let profile = device.profile();
        let Some(size) = profile.cooperative_size else { return Ok(None) };
        let rows = u64::from(limits.max_rows.next_multiple_of(Halves::COLS));
        let width = shape.hidden.max(shape.ffn).max(shape.heads * shape.head_dim);
        Ok(Some(Halves {
            halves: Buffer::new(device, "halves of rows", rows * u64::from(width) * 2, Use::Storage)?,
            powers: Buffer::new(device, "powers of rows", rows * 4, Use::Storage)?,
            lanes: if profile.subgroup_size == Some(8) { "8" } else { "32" },
            wide: if size == 16 { "1" } else { "0" },
        }))
    }

    /// As `halve` and `matmul_coop` name them.
    pub fn bindings(&self) -> [(&'static str, wgpu::BindingResource<'_>); 2] {
        [("halves", self.halves.whole()), ("powers", self.powers.whole())]
    }

    /// The variant of `matmul_coop` for weights of a type.
    pub fn axes(&self, format: Format) -> [(&'static str, &'static str); 3] {
        [("QUANT", format.axis), ("LANES", self.lanes), ("WIDE", self.wide)]
    }

    pub fn bytes(&self) -> u64 {
        self.halves.size_bytes() + self.powers.size_bytes()
    }
}
