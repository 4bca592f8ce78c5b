//! Runs one kernel on buffers from the CPU and compares what it wrote with its twin: what kernels are
//! tested with.
//!
//! Output buffers begin as NaN, so that what a kernel forgets to write, or reads where it should not,
//! shows. Where next: `tests/` for kernels on every kind of device.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::buffers::{Buffer, Use};
use crate::device::{Device, DeviceOptions, Subgroups};
use crate::error::DeviceError;
use crate::kernels::{Access, Bound, Kernel};
use crate::texels::{Texel, Texels};

/// A word that is a NaN as f32 and two NaNs as f16.
pub const POISON: u32 = 0x7fff_7fff;

/// What a buffer or a texture holds before the kernel runs.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Vec<u8>,
    /// Of a texture: what its texels are, and how many make a row.
    texels: Option<(Texel, u32)>,
}

impl Content {
    /// These values.
    pub fn of<T: bytemuck::NoUninit>(values: &[T]) -> Content {
        Content { bytes: bytemuck::cast_slice(values).to_vec(), texels: None }
    }

    /// The same in a texture with rows of `width` texels.
    #[must_use]
    pub fn in_rows_of(self, texel: Texel, width: u32) -> Content {
        Content { texels: Some((texel, width)), ..self }
    }

    /// So many words of [`POISON`].
    #[must_use]
    pub fn poisoned(num_words: usize) -> Content {
        Content::of(&vec![POISON; num_words])
    }
}

/// What the buffers that a kernel may write hold afterwards, by name.
#[derive(Debug, Clone)]
pub struct Written(HashMap<String, Vec<u8>>);

impl Written {
    /// A buffer as f32.
    ///
    /// # Panics
    /// When the kernel has no such buffer that it may write.
    #[must_use]
    pub fn floats(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.0[name])
    }

    /// A buffer as u32.
    ///
    /// # Panics
    /// When the kernel has no such buffer that it may write.
    #[must_use]
    pub fn words(&self, name: &str) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.0[name])
    }
}

/// Runs `kernel` once on buffers with this content and gives back those that it may write.
///
/// # Errors
/// [`DeviceError`] when the device refuses something.
///
/// # Panics
/// When a name of the kernel has no content, or content no name.
pub fn run(
    device: &Device,
    kernel: &Kernel,
    contents: &[(&str, Content)],
    workgroups: [u32; 3],
) -> Result<Written, DeviceError> {
    let prepared = prepare(device, kernel, contents)?;
    let mut encoder = device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &prepared.bound.0, &[]);
        let [x, y, z] = workgroups;
        pass.dispatch_workgroups(x, y, z);
    }
    device.queue.submit([encoder.finish()]);
    prepared.written(device)
}

/// Buffers with their content, bound.
pub(crate) struct Prepared {
    buffers: Vec<(String, Access, Buffer)>,
    pub(crate) bound: Bound,
}

impl Prepared {
    /// Waits for what was submitted and reads the buffers that the kernel may write.
    pub(crate) fn written(&self, device: &Device) -> Result<Written, DeviceError> {
        let mut written = HashMap::new();
        for (name, access, buffer) in &self.buffers {
            if *access == Access::ReadWrite {
                let bytes = pollster::block_on(buffer.read_async(device, buffer.size_bytes()))?;
                written.insert(name.clone(), bytes);
            }
        }
        device.wait()?;
        Ok(Written(written))
    }
}

/// Makes and binds a buffer or a texture for each of the kernel's names.
pub(crate) fn prepare(
    device: &Device,
    kernel: &Kernel,
    contents: &[(&str, Content)],
) -> Result<Prepared, DeviceError> {
    let (mut buffers, mut textures) = (Vec::new(), Vec::new());
    for (name, access) in kernel.bindings() {
        let content = contents.iter().find(|(given, _)| *given == name);
        let (_, content) = content.unwrap_or_else(|| panic!("no content for {name}"));
        if let Some((texel, width)) = content.texels {
            let height = content.bytes.len() as u32 / (width * texel.bytes());
            let texture = Texels::new(device, name, texel, [width, height])?;
            texture.write(device, 0, &content.bytes);
            textures.push((name, texture));
            continue;
        }
        let usage = if access == Access::Uniform { Use::Uniform } else { Use::Storage };
        let buffer = Buffer::new(device, name, content.bytes.len() as u64, usage)?;
        buffer.write(device, 0, &content.bytes);
        buffers.push((name.to_owned(), access, buffer));
    }
    assert_eq!(buffers.len() + textures.len(), contents.len(), "content without a name in the kernel");
    let whole = buffers.iter().map(|(name, _, buffer)| (name.as_str(), buffer.whole()));
    let bindings: Vec<_> =
        whole.chain(textures.iter().map(|(name, texture)| (*name, texture.whole()))).collect();
    let bound = kernel.bind(device, &bindings)?;
    Ok(Prepared { buffers, bound })
}

/// The kinds of device that each kernel is tested on: with subgroups and without, checked and unchecked.
/// Opened once a process.
///
/// # Panics
/// When there is no adapter: tests of kernels need one, if only a CPU's.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let kinds =
            [Subgroups::Auto, Subgroups::Off].into_iter().flat_map(|kind| [(kind, false), (kind, true)]);
        let open = |(subgroups, checked)| {
            let options = DeviceOptions { subgroups, checked, ..DeviceOptions::default() };
            Device::open(&options).unwrap_or_else(|error| panic!("kernels cannot be tested: {error}"))
        };
        kinds.map(open).collect()
    })
}

/// The mean square of the differences as a part of the mean square of what was wanted.
#[must_use]
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = squares(&mut got.iter().zip(want).map(|(got, want)| f64::from(*got) - f64::from(*want)));
    let power = squares(&mut want.iter().map(|want| f64::from(*want)));
    if error == 0.0 { 0.0 } else { error / power }
}

/// Asserts that all values are there, finite, and within a normalised mean square error.
///
/// # Panics
/// When they are not; `what` is named.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f32], max_nmse: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let bad = got.iter().position(|value| !value.is_finite());
    assert_eq!(bad, None, "{what}: the first value that is not finite");
    let error = nmse(got, want);
    assert!(error <= max_nmse, "{what}: NMSE {error:e}, allowed {max_nmse:e}");
}

/// Asserts that values are the same, bit for bit but for the sign of a zero.
///
/// # Panics
/// When they are not; `what` is named.
#[track_caller]
pub fn assert_same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let different = got.iter().zip(want).position(|(got, want)| got != want);
    if let Some(idx) = different {
        panic!("{what}: value {idx} is {} instead of {}", got[idx], want[idx]);
    }
}
