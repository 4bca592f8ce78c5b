//! How long a kernel takes on its device, by the device's own clock.
//!
//! Each run is a pass of its own between two timestamps, so the cost of a submit and of waiting is not in
//! it. Buffers are as the harness makes them and stay the same from run to run: what fits into a cache
//! comes out of it. Where next: `examples/kernel_bench.rs` for tables.

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::device::Device;
use crate::error::DeviceError;
use crate::harness::{Content, Written, prepare};
use crate::kernels::Kernel;

/// Runs in one submit; a query set holds two timestamps of each.
pub const MAX_RUNS: u32 = 1024;

/// Runs `kernel` `num_runs` times on buffers with this content. Gives the time of each run, or `None` where
/// the device has no clock, and what the kernel wrote in the last one.
///
/// # Errors
/// [`DeviceError`] when the device refuses something.
///
/// # Panics
/// When a name of the kernel has no content, or content no name, or `num_runs` is not in `1..=MAX_RUNS`.
pub fn time(
    device: &Device,
    kernel: &Kernel,
    contents: &[(&str, Content)],
    workgroups: [u32; 3],
    num_runs: u32,
) -> Result<(Option<Vec<Duration>>, Written), DeviceError> {
    assert!((1..=MAX_RUNS).contains(&num_runs), "1..={MAX_RUNS} runs can be timed");
    let prepared = prepare(device, kernel, contents)?;
    let clock = device.profile().has_timestamps.then(|| Clock::new(device, num_runs));
    let mut encoder = device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for run in 0..num_runs {
        let timestamp_writes = clock.as_ref().map(|clock| clock.around(run));
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &prepared.bound.0, &[]);
        let [x, y, z] = workgroups;
        pass.dispatch_workgroups(x, y, z);
    }
    if let Some(clock) = &clock {
        clock.resolve(&mut encoder);
    }
    device.queue.submit([encoder.finish()]);
    let times = clock.map(|clock| pollster::block_on(clock.read(device))).transpose()?;
    Ok((times, prepared.written(device)?))
}

/// Runs `kernel` `count` times in one pass, one workgroup each, every run after the one before because all write the
/// same buffers. The time from the submit until all are done, by the host's clock.
///
/// # Errors
/// [`DeviceError`] when the device refuses something.
///
/// # Panics
/// When a name of the kernel has no content, or content no name.
pub fn time_chain(
    device: &Device,
    kernel: &Kernel,
    contents: &[(&str, Content)],
    count: u32,
) -> Result<Duration, DeviceError> {
    let prepared = prepare(device, kernel, contents)?;
    let mut encoder = device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &prepared.bound.0, &[]);
        for _ in 0..count {
            pass.dispatch_workgroups(1, 1, 1);
        }
    }
    let commands = encoder.finish();
    device.wait()?;
    let began = Instant::now();
    device.queue.submit([commands]);
    device.wait()?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::devices;
    use crate::kernels::Text;
    use crate::twins;

    #[test]
    fn timed_runs_are_runs() {
        let device = &devices()[0];
        let kernel = Kernel::new(device, &Text::new("copy", &[])).unwrap();
        // More than one round of a workgroup, and a rest.
        let x: Vec<u32> = (0..4 * 1000).collect();
        let contents = [("x", Content::of(&x)), ("out", Content::poisoned(x.len()))];
        let (times, written) = time(device, &kernel, &contents, [2, 1, 1], 3).unwrap();
        assert_eq!(written.words("out"), twins::copy(&x));
        assert_eq!(times.map(|times| times.len()), device.profile().has_timestamps.then_some(3));
    }
}
