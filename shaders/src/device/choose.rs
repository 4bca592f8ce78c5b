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
        Backend::Any => wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
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
    let mut adapters = instance.enumerate_adapters(backends).await;
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
