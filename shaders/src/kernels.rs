//! From a kernel's name and the values of a variant to something that can be dispatched.
//!
//! `kernels/catalog.rs` lists which variants there are, and the build script validates each of them; what
//! is not in the list cannot be built here either. A kernel's bindings are read out of its text, so that
//! buffers are bound by the names that the text gives them.

mod bindings;
mod catalog;

use std::collections::HashMap;

use crate::device::Device;
use crate::error::DeviceError;
use crate::preprocess::{self, Values};

pub use bindings::Access;
use bindings::Binding;

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The whole text of a variant of one of this crate's kernels.
#[derive(Debug, Clone)]
pub struct Text {
    name: String,
    wgsl: String,
}

impl Text {
    /// The text of `kernel`, such as `rms_norm`, with a value for each of its axes.
    ///
    /// # Panics
    /// When the catalogue has no such kernel, axis or value.
    #[must_use]
    pub fn new(kernel: &str, values: &[(&str, &str)]) -> Text {
        let entry = catalog::KERNELS.iter().find(|entry| entry.name == kernel);
        let entry = entry.unwrap_or_else(|| panic!("there is no kernel {kernel}"));
        let mut bound = Values::new();
        let mut name = kernel.to_owned();
        assert_eq!(values.len(), entry.axes.len(), "{kernel} has the axes {:?}", entry.axes);
        for (axis, allowed) in entry.axes {
            let value = values.iter().find(|(name, _)| name == axis).map(|(_, value)| *value);
            let value = value.filter(|value| allowed.contains(value));
            let value =
                value.unwrap_or_else(|| panic!("{axis} of {kernel} must be one of {allowed:?}: {values:?}"));
            bound.insert(axis, value.to_owned());
            name = format!("{name} {axis}={value}");
        }
        let wgsl = preprocess::expand(&format!("{kernel}.wgsl"), &bound, &source)
            .expect("every variant was made and validated by the build");
        Text { name, wgsl }
    }

    /// The kernel's name and its values, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    #[must_use]
    pub fn wgsl(&self) -> &str {
        &self.wgsl
    }
}

fn source(path: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

/// A variant that a device has compiled.
#[derive(Debug)]
pub struct Kernel {
    name: String,
    pub(crate) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    bindings: Vec<Binding>,
}

/// Buffers and textures for one dispatch, bound to a kernel's names.
#[derive(Debug, Clone)]
pub struct Bound(pub(crate) wgpu::BindGroup);

impl Kernel {
    /// Compiles a variant. Blocks; takes up to seconds on a CPU that pretends to be a GPU.
    ///
    /// # Errors
    /// [`DeviceError`] when the driver refuses it.
    pub fn new(device: &Device, text: &Text) -> Result<Kernel, DeviceError> {
        let bindings = bindings::read(text.wgsl());
        let entries: Vec<_> = bindings.iter().map(Binding::layout_entry).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(text.name()), entries: &entries };
        let layout = device.wgpu.create_bind_group_layout(&descriptor);
        let pipeline_layout = device.wgpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(text.name()),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = device.module(text);
        let pipeline = device.wgpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(text.name()),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        device.check()?;
        Ok(Kernel { name: text.name().to_owned(), pipeline, layout, bindings })
    }

    /// The kernel with its variant's values.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Binds a buffer or texture to each of the kernel's names. Valid for all variants of the same kernel
    /// that bind as many of each.
    ///
    /// # Errors
    /// [`DeviceError`] when the device refuses one.
    ///
    /// # Panics
    /// When a name has nothing to bind, or something no name.
    pub fn bind(
        &self,
        device: &Device,
        resources: &[(&str, wgpu::BindingResource<'_>)],
    ) -> Result<Bound, DeviceError> {
        assert_eq!(resources.len(), self.bindings.len(), "{} binds {:?}", self.name, self.bindings);
        let resources: HashMap<&str, &wgpu::BindingResource> =
            resources.iter().map(|(name, resource)| (*name, resource)).collect();
        let entry = |binding: &Binding| {
            let resource = resources.get(binding.name.as_str());
            let resource = *resource.unwrap_or_else(|| panic!("{} has no {}", self.name, binding.name));
            wgpu::BindGroupEntry { binding: binding.number, resource: resource.clone() }
        };
        let entries: Vec<_> = self.bindings.iter().map(entry).collect();
        let descriptor =
            wgpu::BindGroupDescriptor { label: Some(&self.name), layout: &self.layout, entries: &entries };
        let bound = device.wgpu.create_bind_group(&descriptor);
        device.check()?;
        Ok(Bound(bound))
    }

    /// The kernel's names with how each is used, in the order of their numbers.
    pub fn bindings(&self) -> impl Iterator<Item = (&str, Access)> {
        self.bindings.iter().map(|binding| (binding.name.as_str(), binding.access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every choice of one value an axis.
    fn variants(entry: &catalog::Entry) -> Vec<Text> {
        let mut chosen = vec![Vec::new()];
        for (axis, allowed) in entry.axes {
            let with = |values: &Vec<_>| {
                let values = values.clone();
                allowed.iter().map(move |value| [values.clone(), vec![(*axis, *value)]].concat())
            };
            chosen = chosen.iter().flat_map(with).collect();
        }
        chosen.iter().map(|values| Text::new(entry.name, values)).collect()
    }

    #[test]
    fn kernels_bind_no_more_than_every_browser_has() {
        let limits = wgpu::Limits::default();
        for text in catalog::KERNELS.iter().flat_map(variants) {
            let bindings = bindings::read(text.wgsl());
            let count = |is_counted: &dyn Fn(Access) -> bool| {
                bindings.iter().filter(|binding| is_counted(binding.access)).count() as u32
            };
            let buffers = count(&|access| matches!(access, Access::Read | Access::ReadWrite));
            let textures = count(&|access| matches!(access, Access::Texels(_)));
            let uniforms = count(&|access| access == Access::Uniform);
            assert!(buffers <= limits.max_storage_buffers_per_shader_stage, "{}: {buffers}", text.name());
            assert!(textures <= limits.max_storage_textures_per_shader_stage, "{}: {textures}", text.name());
            assert!(uniforms <= limits.max_uniform_buffers_per_shader_stage, "{}: {uniforms}", text.name());
            assert!(buffers + textures > 0, "{} binds nothing", text.name());
        }
    }
}
