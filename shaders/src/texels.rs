//! Memory that kernels read as storage textures, texel by texel.
//!
//! Mesa's lavapipe makes a loop over threads, with branches and checks, of each load from a buffer, and vector
//! code without either of a load from a storage texture: half the time for the same bytes, or less. (A sampled
//! texture is slower again: where each thread's mip level lies is looked up in every load.) So on a CPU that
//! pretends to be a GPU, planes of weights and what is multiplied with them are textures; anywhere else, buffers.

use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::error::DeviceError;

/// Whether rows of so many f32 can be copied from a buffer to a texture: copies begin each row at a multiple of
/// 256 bytes.
#[must_use]
pub fn has_texels(num_floats: u32) -> bool {
    (num_floats * 4).is_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT)
}

/// What a texel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texel {
    /// A word.
    Word,
    /// Four words.
    Words,
    /// Four f32.
    Floats,
}

impl Texel {
    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Texel::Word => 4,
            Texel::Words | Texel::Floats => 16,
        }
    }

    pub(crate) fn format(self) -> wgpu::TextureFormat {
        match self {
            Texel::Word => wgpu::TextureFormat::R32Uint,
            Texel::Words => wgpu::TextureFormat::Rgba32Uint,
            Texel::Floats => wgpu::TextureFormat::Rgba32Float,
        }
    }
}

/// Rows of texels on a device.
#[derive(Debug, Clone)]
pub struct Texels {
    pub(crate) wgpu: wgpu::Texture,
    view: wgpu::TextureView,
    texel: Texel,
}

impl Texels {
    /// Room for `height` rows of `width` texels, zeroed. `what` is named when there is not enough.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], also when no texture of this device may be so large.
    pub fn new(
        device: &Device,
        what: &str,
        texel: Texel,
        [width, height]: [u32; 2],
    ) -> Result<Texels, DeviceError> {
        let size = wgpu::Extent3d { width: width.max(1), height: height.max(1), depth_or_array_layers: 1 };
        let bytes = u64::from(size.width) * u64::from(size.height) * u64::from(texel.bytes());
        if size.width.max(size.height) > device.profile().max_texture_side {
            return Err(DeviceError::OutOfMemory { what: what.to_owned(), bytes });
        }
        let scope = device.wgpu.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let wgpu = device.wgpu.create_texture(&wgpu::TextureDescriptor {
            label: Some(what),
            size,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: texel.format(),
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        });
        device.close_scope(scope, what, bytes)?;
        device.check()?;
        let view = wgpu.create_view(&wgpu::TextureViewDescriptor::default());
        Ok(Texels { wgpu, view, texel })
    }

    /// Puts whole rows at `first_row` and below, before anything that is submitted later.
    ///
    /// # Panics
    /// When `bytes` are not whole rows.
    pub fn write(&self, device: &Device, first_row: u32, bytes: &[u8]) {
        let row_bytes = self.row_bytes();
        assert!(bytes.len().is_multiple_of(row_bytes as usize), "rows are whole");
        let num_rows = (bytes.len() / row_bytes as usize) as u32;
        let to = self.place(first_row);
        let layout =
            wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(row_bytes), rows_per_image: None };
        device.queue.write_texture(to, bytes, layout, self.rows(num_rows));
    }

    /// Copies the first `num_rows` rows out of a buffer that has rows of the same length.
    pub(crate) fn copy_from(&self, encoder: &mut wgpu::CommandEncoder, buffer: &Buffer, num_rows: u32) {
        let bytes_per_row = Some(self.row_bytes());
        let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row, rows_per_image: None };
        let from = wgpu::TexelCopyBufferInfo { buffer: &buffer.wgpu, layout };
        encoder.copy_buffer_to_texture(from, self.place(0), self.rows(num_rows));
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.row_bytes()) * u64::from(self.wgpu.height())
    }

    /// All of it, for [`Kernel::bind`](crate::kernels::Kernel::bind).
    #[must_use]
    pub fn whole(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::TextureView(&self.view)
    }

    fn row_bytes(&self) -> u32 {
        self.wgpu.width() * self.texel.bytes()
    }

    fn place(&self, row: u32) -> wgpu::TexelCopyTextureInfo<'_> {
        wgpu::TexelCopyTextureInfo {
            texture: &self.wgpu,
            mip_level: 0,
            origin: wgpu::Origin3d { x: 0, y: row, z: 0 },
            aspect: wgpu::TextureAspect::All,
        }
    }

    fn rows(&self, num_rows: u32) -> wgpu::Extent3d {
        wgpu::Extent3d { width: self.wgpu.width(), height: num_rows, depth_or_array_layers: 1 }
    }
}

/// A plane of a matrix, panel after panel.
#[derive(Debug)]
pub enum Plane {
    /// One panel behind the other.
    Buffer(Buffer),
    /// A panel a row.
    Texels(Texels),
}

impl Plane {
    /// Room for so many panels of `panel_words` each; a texture where there is a `texel`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(
        device: &Device,
        what: &str,
        texel: Option<Texel>,
        panel_words: u64,
        num_panels: u64,
    ) -> Result<Plane, DeviceError> {
        let Some(texel) = texel else {
            let buffer = Buffer::new(device, what, panel_words * num_panels * 4, Use::Storage)?;
            return Ok(Plane::Buffer(buffer));
        };
        // Where a type has no such plane, a texel is bound.
        let height = if panel_words == 0 { 1 } else { num_panels as u32 };
        let width = panel_words as u32 * 4 / texel.bytes();
        Ok(Plane::Texels(Texels::new(device, what, texel, [width, height])?))
    }

    /// Puts whole panels at `first_panel` and behind it, before anything that is submitted later.
    pub fn write(&self, device: &Device, first_panel: u64, panel_words: u64, words: &[u32]) {
        if words.is_empty() {
            return;
        }
        let bytes = bytemuck::cast_slice(words);
        match self {
            Plane::Buffer(buffer) => buffer.write(device, first_panel * panel_words * 4, bytes),
            Plane::Texels(texels) => texels.write(device, first_panel as u32, bytes),
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Plane::Buffer(buffer) => buffer.size_bytes(),
            Plane::Texels(texels) => texels.size_bytes(),
        }
    }

    /// All of it, for [`Kernel::bind`](crate::kernels::Kernel::bind).
    #[must_use]
    pub fn whole(&self) -> wgpu::BindingResource<'_> {
        match self {
            Plane::Buffer(buffer) => buffer.whole(),
            Plane::Texels(texels) => texels.whole(),
        }
    }
}
