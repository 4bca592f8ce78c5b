//! Which adapter to open, and why none of them will do.

use super::{Backend, DeviceOptions};
use crate::error::DeviceError;

/// Buffers that the hungriest kernel binds.
const STORAGE_BUFFERS: u32 = 8;
/// Threads of the largest workgroup.
const WORKGROUP_THREADS: u32 = 256;
/// Bytes that the threads of a workgroup share.
const WORKGROUP_BYTES: u32 = 16 << 10;

/// All adapters that the options' interface reaches, the fastest kind first.
pub(super) async fn all(options: &DeviceOptions) -> Vec<wgpu::Adapter> {
    let backends = match options.backend {
        Backend::Any => {
            let native = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
            native | wgpu::Backends::BROWSER_WEBGPU
        }
        Backend::Vulkan => wgpu::Backends::VULKAN,
        Backend::Metal => wgpu::Backends::METAL,
        Backend::Dx12 => wgpu::Backends::DX12,
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        // Validation layers, where they are installed, are a developer's wish and not ours.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = candidates(&instance, backends).await;
    // The sort is stable: among adapters of one kind, the system's first comes first.
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    adapters
}

/// The best adapter that has what kernels need.
pub(super) async fn adapter(options: &DeviceOptions) -> Result<wgpu::Adapter, DeviceError> {
    let mut adapters = all(options).await;
    let refusals: Vec<(String, Option<String>)> =
        adapters.iter().map(|adapter| (describe(&adapter.get_info()), refusal(adapter, options))).collect();
    match refusals.iter().position(|(_, refusal)| refusal.is_none()) {
        Some(idx) => Ok(adapters.swap_remove(idx)),
        None => {
            let found =
                refusals.into_iter().map(|(name, why)| format!("{name}: {}", why.unwrap_or_default()));
            Err(DeviceError::NoAdapter { wanted: wanted(options), found: found.collect() })
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
async fn candidates(instance: &wgpu::Instance, backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(backends).await
}

/// A browser shows one adapter at most, and chooses it by what it is wanted for.
#[cfg(target_arch = "wasm32")]
async fn candidates(instance: &wgpu::Instance, _: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let power_preference = wgpu::PowerPreference::HighPerformance;
    let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// What a device is asked for: of all that is counted WebGPU's default, which any browser has and our kernels
/// keep to, and of memory as much as the adapter gives.
pub(super) fn limits(adapter: &wgpu::Limits) -> wgpu::Limits {
    wgpu::Limits {
        max_buffer_size: adapter.max_buffer_size,
        max_storage_buffer_binding_size: adapter.max_storage_buffer_binding_size,
        max_texture_dimension_2d: adapter.max_texture_dimension_2d,
        max_compute_workgroup_storage_size: adapter.max_compute_workgroup_storage_size,
        // Other devices than browsers' may have less of what no kernel uses.
        ..wgpu::Limits::default().or_worse_values_from(adapter)
    }
}

/// Lower is better: a card of its own, then a part of the CPU, then a CPU that pretends.
fn rank(info: &wgpu::AdapterInfo) -> u8 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::VirtualGpu => 1,
        wgpu::DeviceType::IntegratedGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// Why this adapter will not do.
pub(super) fn refusal(adapter: &wgpu::Adapter, options: &DeviceOptions) -> Option<String> {
    if !adapter.get_info().name.to_lowercase().contains(&options.adapter.to_lowercase()) {
        return Some("not the adapter that was asked for".to_owned());
    }
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("it has no compute shaders".to_owned());
    }
    let limits = adapter.limits();
    let needed = [
        ("storage buffers in a kernel", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
        ("threads in a workgroup", limits.max_compute_invocations_per_workgroup, WORKGROUP_THREADS),
        ("bytes shared in a workgroup", limits.max_compute_workgroup_storage_size, WORKGROUP_BYTES),
    ];
    let lacking = needed.into_iter().find(|(_, has, needs)| has < needs);
    if let Some((what, has, needs)) = lacking {
        return Some(format!("it has {has} {what}, and {needs} are needed"));
    }
    (options.cooperative_matrices && cooperative_size(adapter).is_none())
        .then(|| "it has no cooperative matrices that kernels can use".to_owned())
}

/// Rows and columns of the largest square cooperative matrices that kernels can use: of halves, with sums in f32,
/// by subgroups of one size that there is a variant for.
pub(super) fn cooperative_size(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let (info, features) = (adapter.get_info(), adapter.features());
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    let has_variant =
        info.subgroup_min_size == info.subgroup_max_size && matches!(info.subgroup_min_size, 8 | 32);
    if !features.contains(needed) || !has_variant {
        return None;
    }
    let fits = |of: &wgpu::CooperativeMatrixProperties| {
        let is_square = of.m_size == of.n_size && of.n_size == of.k_size;
        is_square && of.ab_type == F16 && of.cr_type == F32 && matches!(of.m_size, 8 | 16)
    };
    adapter.cooperative_matrix_properties().iter().filter(|of| fits(of)).map(|of| of.m_size).max()
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({}, {:?})", info.name, info.backend, info.device_type)
}

fn wanted(options: &DeviceOptions) -> String {
    match (options.backend, options.adapter.as_str()) {
        (Backend::Any, "") => "any adapter".to_owned(),
        (Backend::Any, name) => format!("an adapter named {name:?}"),
        (backend, "") => format!("any adapter on {backend:?}"),
        (backend, name) => format!("an adapter named {name:?} on {backend:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_than_there_is() {
        let small = wgpu::Limits::downlevel_defaults();
        assert!(limits(&small).check_limits(&small));
        let large = wgpu::Limits {
            max_buffer_size: 1 << 40,
            max_storage_buffer_binding_size: 1 << 31,
            max_storage_buffers_per_shader_stage: 1000,
            max_bind_groups: 32,
            ..wgpu::Limits::default()
        };
        let asked = limits(&large);
        assert_eq!(asked.max_buffer_size, 1 << 40);
        assert_eq!(asked.max_storage_buffer_binding_size, 1 << 31);
        assert_eq!(asked.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS);
        assert_eq!(asked.max_bind_groups, wgpu::Limits::default().max_bind_groups);
    }
}
