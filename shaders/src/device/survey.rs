//! What each adapter of this machine offers, whether kernels can use it or not.

use super::{DeviceOptions, choose};

/// An adapter and what decides how kernels run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// The interface that it is reached by, such as `vulkan`.
    pub backend: &'static str,
    /// What kind of device it is, such as `DiscreteGpu`.
    pub kind: String,
    /// The driver and its version.
    pub driver: String,
    /// Fewest and most threads of a subgroup.
    pub subgroup_sizes: [u32; 2],
    /// Whether threads of a subgroup can work together.
    pub has_subgroups: bool,
    /// Whether kernels can compute with halves.
    pub has_halves: bool,
    /// Whether passes can be timed.
    pub has_timestamps: bool,
    /// Largest range of a buffer that a kernel can see, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Bytes that the threads of a workgroup can share.
    pub workgroup_bytes: u32,
    /// Threads of the largest workgroup.
    pub workgroup_threads: u32,
    /// Buffers that a kernel can bind.
    pub storage_buffers: u32,
    /// Its cooperative matrices that wgpu knows, such as `16 x 16 x 16, F16 to F32`.
    pub cooperative_matrices: Vec<String>,
    /// Why no device would be opened on it; `None` where one would.
    pub refusal: Option<String>,
}

/// All adapters that the options' interface reaches, the one that would be opened first. Blocks.
#[must_use]
pub fn survey(options: &DeviceOptions) -> Vec<Surveyed> {
    let adapters = pollster::block_on(choose::all(options));
    adapters.iter().map(|adapter| look_at(adapter, options)).collect()
}

fn look_at(adapter: &wgpu::Adapter, options: &DeviceOptions) -> Surveyed {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let cooperative = |of: &wgpu::CooperativeMatrixProperties| {
        format!("{} x {} x {}, {:?} to {:?}", of.m_size, of.n_size, of.k_size, of.ab_type, of.cr_type)
    };
    Surveyed {
        backend: info.backend.to_str(),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info),
        subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
        has_subgroups: features.contains(wgpu::Features::SUBGROUP),
        has_halves: features.contains(wgpu::Features::SHADER_F16),
        has_timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        workgroup_threads: limits.max_compute_invocations_per_workgroup,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        cooperative_matrices: adapter.cooperative_matrix_properties().iter().map(cooperative).collect(),
        refusal: choose::refusal(adapter, options),
        name: info.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn the_first_that_is_not_refused_is_opened() {
        let options = DeviceOptions::default();
        let all = survey(&options);
        let first = all.iter().find(|adapter| adapter.refusal.is_none()).expect("there is a device");
        let device = Device::open(&options).expect("there is a device");
        assert_eq!((&first.name, first.backend), (&device.profile().name, device.profile().backend));
        assert_eq!(first.max_binding_bytes, device.profile().max_binding_bytes);
        let other = DeviceOptions { adapter: "no such card".to_owned(), ..options };
        assert!(survey(&other).iter().all(|adapter| adapter.refusal.is_some()));
    }
}
