//! A device's own clock around passes.

use std::time::Duration;

use crate::buffers::Buffer;
use crate::device::Device;
use crate::error::DeviceError;

/// Timestamps around passes.
pub(crate) struct Clock {
    queries: wgpu::QuerySet,
    num_runs: u32,
    resolved: Buffer,
}

impl Clock {
    pub(crate) fn new(device: &Device, num_runs: u32) -> Clock {
        let count = num_runs * 2;
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
        let queries = device.wgpu.create_query_set(&descriptor);
        let resolved = device.wgpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: u64::from(count) * 8,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Clock { queries, num_runs, resolved: Buffer { wgpu: resolved } }
    }

    /// What the pass of this run is made with.
    pub(crate) fn around(&self, run: u32) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(run * 2),
            end_of_pass_write_index: Some(run * 2 + 1),
        }
    }

    /// To be called when all passes are encoded.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..self.num_runs * 2, &self.resolved.wgpu, 0);
    }

    /// Waits for what was submitted. How long each pass took.
    pub(crate) async fn read(&self, device: &Device) -> Result<Vec<Duration>, DeviceError> {
        let bytes = self.resolved.read_async(device, self.resolved.size_bytes()).await?;
        let (stamps, _) = bytes.as_chunks::<16>();
        let period_ns = f64::from(device.queue.get_timestamp_period());
        let elapsed = |pair: &[u8; 16]| {
            let [begin, end] = [&pair[..8], &pair[8..]]
                .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("a half of 16 bytes is 8")));
            Duration::from_nanos((end.saturating_sub(begin) as f64 * period_ns) as u64)
        };
        Ok(stamps.iter().map(elapsed).collect())
    }
}
