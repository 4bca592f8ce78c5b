//! Matrices and vectors from a file to the device, streamed.

use quern_gguf::{Gguf, TensorInfo, TensorType};

use super::{ModelError, rows_of};
use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::texels::{Plane, Texel, has_texels};
use crate::weights::format::{GROUP, PANEL_ROWS};
use crate::weights::{Format, Planes, repack, widen_q5_0};

/// Bytes of a file that are repacked at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// Bytes on their way to the device before we wait for them: wgpu keeps a copy of each until then.
const MAX_IN_FLIGHT: u64 = 64 << 20;

/// A matrix on the device, in as many parts as its largest plane needs bindings.
#[derive(Debug)]
pub struct Matrix {
    /// How it is stored.
    pub format: Format,
    /// Groups of a row.
    pub num_groups: u32,
    /// Whether its planes are textures.
    pub in_texels: bool,
    /// Its parts, in the order of their rows.
    pub shards: Vec<Shard>,
}

/// Some rows of a matrix.
#[derive(Debug)]
pub struct Shard {
    /// The first row.
    pub first_row: u32,
    /// How many rows.
    pub num_rows: u32,
    /// The plane of numbers.
    pub quants: Plane,
    /// The plane of upper bits; a word where the format has none.
    pub highs: Plane,
    /// The plane of scales; a word where the format has none.
    pub scales: Plane,
}

impl Shard {
    /// Panels of its rows, the last of which may not be full.
    #[must_use]
    pub fn num_panels(&self) -> u32 {
        self.num_rows.div_ceil(PANEL_ROWS as u32)
    }
}

impl Matrix {
    /// Rows of all parts.
    #[must_use]
    pub fn num_rows(&self) -> u32 {
        self.shards.iter().map(|shard| shard.num_rows).sum()
    }

    /// Bytes of all parts on the device.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let planes = self.shards.iter().flat_map(|shard| [&shard.quants, &shard.highs, &shard.scales]);
        planes.map(Plane::size_bytes).sum()
    }
}

/// Whether another matrix's rows may follow this one's in the same panels.
pub(super) fn ends_a_panel(tensor: &TensorInfo) -> bool {
    rows_of(tensor).is_multiple_of(PANEL_ROWS as u64)
}

/// Puts one tensor after another on the device and counts what is there.
pub(super) struct Uploads<'a> {
    device: &'a Device,
    gguf: &'a Gguf,
    progress: &'a mut dyn FnMut(f32) -> bool,
    total_bytes: u64,
    read_bytes: u64,
    device_bytes: u64,
    in_flight: u64,
}

impl<'a> Uploads<'a> {
    pub(super) fn new(device: &'a Device, gguf: &'a Gguf, progress: &'a mut dyn FnMut(f32) -> bool) -> Self {
        let total_bytes = gguf.tensors().iter().map(|tensor| tensor.size_bytes).sum();
        Uploads { device, gguf, progress, total_bytes, read_bytes: 0, device_bytes: 0, in_flight: 0 }
    }

    pub(super) fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// Bytes on the device, once all of them are there.
    pub(super) async fn finish(&mut self) -> Result<u64, ModelError> {
        self.flush().await?;
        Ok(self.device_bytes)
    }

    /// A vector of f32.
    pub(super) async fn vector(&mut self, name: &str) -> Result<Buffer, ModelError> {
        let tensor = self.gguf.require_tensor(name)?;
        let bytes = self.gguf.read_tensor(tensor)?;
        self.has_read(bytes.len() as u64)?;
        let buffer = self.buffer(name, bytes.len() as u64)?;
        self.write(&buffer, &bytes).await?;
        Ok(buffer)
    }

    /// The biases of matrices that are stored as one; zeros for one that has none.
    pub(super) async fn biases(&mut self, names: &[String]) -> Result<Buffer, ModelError> {
        let mut bytes = Vec::new();
        for name in names {
            match self.gguf.tensor(&format!("{name}.bias")) {
                Some(tensor) => bytes.extend(self.gguf.read_tensor(tensor)?),
                None => {
                    let rows = rows_of(self.gguf.require_tensor(&format!("{name}.weight"))?);
                    bytes.resize(bytes.len() + rows as usize * 4, 0);
                }
            }
        }
        self.has_read(bytes.len() as u64)?;
        let buffer = self.buffer(&format!("{}.bias", names[0]), bytes.len() as u64)?;
        self.write(&buffer, &bytes).await?;
        Ok(buffer)
    }

    /// Tensors of one type and width as one matrix, the rows of one after those of the other.
    pub(super) async fn matrix(&mut self, names: &[&str]) -> Result<Matrix, ModelError> {
        let mut tensors = Vec::new();
        for name in names {
            tensors.push(self.gguf.require_tensor(name)?);
        }
        let (kind, num_columns) = (self.stored_as(tensors[0].kind), tensors[0].shape[0] as usize);
        let format = Format::of(kind)
            .ok_or_else(|| ModelError::TensorType { tensor: tensors[0].name.clone(), kind })?;
        let num_groups = num_columns / GROUP;
        let num_rows: u64 = tensors.iter().map(|tensor| rows_of(tensor)).sum();
        let in_texels = self.in_texels(format, num_columns);
        let shards = self.shards(names[0], format, num_groups, num_rows, in_texels)?;
        let mut first_row = 0;
        for tensor in tensors {
            self.upload(tensor, format, first_row, &shards).await?;
            first_row += rows_of(tensor);
        }
        Ok(Matrix { format, num_groups: num_groups as u32, in_texels, shards })
    }

    /// What a type becomes on this device. A CPU that pretends to be a GPU spends its time on unpacking, and
    /// not on reading: there, the most frequent type of small models is widened.
    pub(super) fn stored_as(&self, kind: TensorType) -> TensorType {
        let widens = self.device.profile().is_cpu && kind == TensorType::Q5_0;
        if widens { TensorType::Q8_0 } else { kind }
    }

    /// Whether a matrix's planes become textures; see `texels.rs`.
    fn in_texels(&self, format: Format, num_columns: usize) -> bool {
        let profile = self.device.profile();
        let [quants, highs, scales] = format.panel_words(num_columns / GROUP);
        let width = (quants / 4).max(highs).max(scales);
        profile.reads_texels && has_texels(num_columns as u32) && width <= profile.max_texture_side as usize
    }

    /// Empty parts of a matrix, each as large as a binding or a texture can be.
    fn shards(
        &mut self,
        name: &str,
        format: Format,
        num_groups: usize,
        num_rows: u64,
        in_texels: bool,
    ) -> Result<Vec<Shard>, ModelError> {
        let words = format.panel_words(num_groups).map(|words| words as u64);
        let largest = words.into_iter().max().unwrap_or(1) * 4;
        let profile = self.device.profile();
        let limit = profile.max_binding_bytes.min(profile.max_buffer_bytes);
        let most = if in_texels { u64::from(profile.max_texture_side) } else { u64::MAX };
        let panels_each = (limit / largest).clamp(1, most);
        let num_panels = num_rows.div_ceil(PANEL_ROWS as u64);
        let mut shards = Vec::new();
        for first_panel in (0..num_panels).step_by(panels_each as usize) {
            let panels = panels_each.min(num_panels - first_panel);
            let first_row = first_panel * PANEL_ROWS as u64;
            let mut plane = |words: u64, texel: Texel| -> Result<Plane, ModelError> {
                let plane = Plane::new(self.device, name, in_texels.then_some(texel), words, panels)?;
                self.device_bytes += plane.size_bytes();
                Ok(plane)
            };
            shards.push(Shard {
                first_row: first_row as u32,
                num_rows: (panels * PANEL_ROWS as u64).min(num_rows - first_row) as u32,
                quants: plane(words[0], Texel::Words)?,
                highs: plane(words[1], Texel::Word)?,
                scales: plane(words[2], Texel::Word)?,
            });
        }
        Ok(shards)
    }

    /// A tensor's rows into parts of a matrix, from `first_row` on, which begins a panel.
    async fn upload(
        &mut self,
        tensor: &TensorInfo,
        format: Format,
        first_row: u64,
        shards: &[Shard],
    ) -> Result<(), ModelError> {
        let num_columns = tensor.shape[0] as usize;
        let row_bytes = tensor.size_bytes / rows_of(tensor);
        let words = format.panel_words(num_columns / GROUP).map(|words| words as u64);
        let panel_bytes = row_bytes * PANEL_ROWS as u64;
        let chunk_rows = (CHUNK_BYTES / panel_bytes).max(1) * PANEL_ROWS as u64;
        let mut row = 0;
        while row < rows_of(tensor) {
            let at = first_row + row;
            let shard =
                shards.iter().rfind(|shard| u64::from(shard.first_row) <= at).expect("the first begins at 0");
            let shard_end = u64::from(shard.first_row + shard.num_rows);
            let rows = chunk_rows.min(rows_of(tensor) - row).min(shard_end - at);
            let mut bytes = vec![0; (rows * row_bytes) as usize];
            self.gguf.read_tensor_part(tensor, row * row_bytes, &mut bytes)?;
            self.has_read(bytes.len() as u64)?;
            if format.kind != tensor.kind {
                bytes = widen_q5_0(&bytes);
            }
            let mut planes = Planes::default();
            repack(format, num_columns, &bytes, &mut planes);
            let panel = (at - u64::from(shard.first_row)) / PANEL_ROWS as u64;
            let to = [
                (&shard.quants, &planes.quants),
                (&shard.highs, &planes.highs),
                (&shard.scales, &planes.scales),
            ];
            for ((plane, content), words) in to.into_iter().zip(words) {
                plane.write(self.device, panel, words, content);
                self.has_sent(content.len() as u64 * 4).await?;
            }
            row += rows;
        }
        Ok(())
    }

    fn buffer(&mut self, what: &str, bytes: u64) -> Result<Buffer, ModelError> {
        let buffer = Buffer::new(self.device, what, bytes, Use::Storage)?;
        self.device_bytes += buffer.size_bytes();
        Ok(buffer)
    }

    async fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<(), ModelError> {
        buffer.write(self.device, 0, bytes);
        self.has_sent(bytes.len() as u64).await
    }

    async fn has_sent(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.in_flight += bytes;
        if self.in_flight > MAX_IN_FLIGHT { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), ModelError> {
        self.device.queue.submit([]);
        self.device.wait_async().await?;
        self.in_flight = 0;
        Ok(())
    }

    fn has_read(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.read_bytes += bytes;
        let part = self.read_bytes as f32 / self.total_bytes.max(1) as f32;
        if (self.progress)(part.min(1.0)) { Ok(()) } else { Err(ModelError::Cancelled) }
    }
}
