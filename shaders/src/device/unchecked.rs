//! The fence around what wgpu does not vouch for: the only `unsafe` in this crate.
//!
//! Where a device cannot keep accesses inside a buffer by itself, wgpu adds checks to every access, and a
//! counter to every loop. Both cost more than some kernels themselves. And cooperative matrices are there as an
//! experiment.
#![expect(
    unsafe_code,
    reason = "wgpu leaves it to its caller that shaders stay in bounds and experiments behave"
)]

use std::borrow::Cow;

/// A module of one of this crate's own kernels, without bounds checks and loop counters.
///
/// Safe: the text can only come from the kernels in `wgsl/`, because a [`Text`](crate::kernels::Text) is
/// made nowhere else. Each of them runs in tests with checks and without, on shapes that end in the middle
/// of their tiles, and must give the same; their loops end because each counts to a bound that does not
/// change meanwhile.
pub(super) fn module(device: &wgpu::Device, text: &crate::kernels::Text) -> wgpu::ShaderModule {
    let source = wgpu::ShaderSource::Wgsl(Cow::Borrowed(text.wgsl()));
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(text.name()), source };
    // SAFETY: see above: the text is one of ours, which neither leaves its buffers nor loops forever.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// Leave to use cooperative matrices, for an operator who asked for them.
///
/// Safe as far as anybody knows: wgpu says that experiments may have mistakes that safe code runs into. The only
/// one asked for is cooperative matrices, in one kernel, whose loads and stores stay inside of their buffers.
pub(super) fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: see above.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
