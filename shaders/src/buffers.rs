//! Memory on a device: made with an error where there is none left, written, and read back.

use futures_channel::oneshot;

use crate::device::Device;
use crate::error::DeviceError;

/// A piece of a device's memory. Freed when dropped, after the commands that use it are done.
#[derive(Debug, Clone)]
pub struct Buffer {
    pub(crate) wgpu: wgpu::Buffer,
}

/// What a buffer is for, besides being copied from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Bound as `var<storage>`.
    Storage,
    /// Bound as `var<uniform>`.
    Uniform,
    /// Mapped and read by the CPU.
    Readback,
}

impl Buffer {
    /// `bytes` of memory, rounded up to whole words and zeroed. `what` is named when there is not enough.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], also when no buffer of this device may be so large.
    pub fn new(device: &Device, what: &str, bytes: u64, usage: Use) -> Result<Buffer, DeviceError> {
        let size = bytes.next_multiple_of(4).max(4);
        if size > device.profile().max_buffer_bytes {
            return Err(DeviceError::OutOfMemory { what: what.to_owned(), bytes });
        }
        let usage = match usage {
            Use::Storage => {
                wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST
            }
            Use::Uniform => wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            Use::Readback => wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        };
        let scope = device.wgpu.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let wgpu = device.wgpu.create_buffer(&descriptor);
        device.close_scope(scope, what, bytes)?;
        device.check()?;
        Ok(Buffer { wgpu })
    }

    /// A storage buffer with this content.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn with<T: bytemuck::NoUninit>(
        device: &Device,
        what: &str,
        content: &[T],
    ) -> Result<Buffer, DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(content);
        let buffer = Buffer::new(device, what, bytes.len() as u64, Use::Storage)?;
        buffer.write(device, 0, bytes);
        Ok(buffer)
    }

    /// Puts `bytes` at `offset`, before anything that is submitted later. Both are multiples of 4, but
    /// for the last bytes of a buffer, which are filled up with zeros.
    pub fn write(&self, device: &Device, offset: u64, bytes: &[u8]) {
        let (whole, rest) = bytes.split_at(bytes.len() / 4 * 4);
        if !whole.is_empty() {
            device.queue.write_buffer(&self.wgpu, offset, whole);
        }
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            device.queue.write_buffer(&self.wgpu, offset + whole.len() as u64, &last);
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.wgpu.size()
    }

    /// All of it, for [`Kernel::bind`](crate::kernels::Kernel::bind).
    #[must_use]
    pub fn whole(&self) -> wgpu::BindingResource<'_> {
        self.wgpu.as_entire_binding()
    }

    /// Copies the first `bytes` of it, a multiple of 4, out of the device, once all work before is done. On a
    /// native device it blocks until then.
    ///
    /// # Errors
    /// [`DeviceError`] when the device failed meanwhile.
    pub async fn read_async(&self, device: &Device, bytes: u64) -> Result<Vec<u8>, DeviceError> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = Buffer::new(device, "a copy to read", bytes, Use::Readback)?;
        let mut encoder = device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&self.wgpu, 0, &staging.wgpu, 0, bytes);
        device.queue.submit([encoder.finish()]);
        let mut out = vec![0; bytes as usize];
        staging.read_mapped_async(device, [out.as_mut_slice()]).await?;
        Ok(out)
    }

    /// Waits for what was submitted and copies a [`Use::Readback`] buffer from its beginning into `parts`,
    /// one after the other. On a native device it blocks until then. May be dropped at any time.
    ///
    /// # Errors
    /// [`DeviceError`] when the device failed meanwhile.
    pub async fn read_mapped_async<const N: usize>(
        &self,
        device: &Device,
        parts: [&mut [u8]; N],
    ) -> Result<(), DeviceError> {
        let (sender, receiver) = oneshot::channel();
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        self.wgpu.map_async(wgpu::MapMode::Read, 0..bytes, move |mapped| {
            // The receiver waits below; it can only be gone when that failed already, or was given up.
            let _ = sender.send(mapped);
        });
        let mapping = Mapping(&self.wgpu);
        device.drive()?;
        let failed = |why: String| DeviceError::Failed { why };
        // Another thread that waits for the same device may be the one that is told; it tells us.
        let mapped = receiver.await.map_err(|_| failed("a buffer was never mapped".to_owned()));
        let copied = mapped.and_then(|mapped| {
            mapped.map_err(|error| failed(error.to_string()))?;
            let view = self.wgpu.get_mapped_range(0..bytes).map_err(|error| failed(error.to_string()))?;
            let mut start = 0;
            for part in parts {
                part.copy_from_slice(&view[start..start + part.len()]);
                start += part.len();
            }
            Ok(())
        });
        drop(mapping);
        // What the device says of a failure says more.
        device.settle().await.and(copied)
    }
}

/// A buffer that is mapped, or will be. That ends when this is dropped, and the device can write to it again.
struct Mapping<'a>(&'a wgpu::Buffer);

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        self.0.unmap();
    }
}
