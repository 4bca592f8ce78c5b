//! A GPU, or what passes for one: chosen by name, asked for what it can do, and told what to build.
//!
//! Everything that depends on the adapter is decided here and kept in a [`Profile`]; kernels and steps
//! read it and ask wgpu nothing. Nothing here knows models or kernels' meaning. Where next: `kernels.rs`
//! for what is built, `buffers.rs` for memory.

mod choose;
mod health;
#[cfg(not(target_arch = "wasm32"))]
mod survey;
mod unchecked;
mod wait;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DeviceError;
use crate::kernels::{Kernel, Text};
use health::Health;
#[cfg(not(target_arch = "wasm32"))]
pub use survey::{Surveyed, survey};

/// Textures that the hungriest kernel binds.
const TEXTURES: u32 = 4;

/// Which system interface reaches the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Whichever has a fitting adapter; Vulkan before the others. In a browser there is WebGPU alone.
    #[default]
    Any,
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// DirectX 12.
    Dx12,
}

/// Whether kernels may use operations between the threads of a subgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subgroups {
    /// Where the adapter has them in one fixed size.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// What to choose an adapter by, and how to build shaders for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    /// A part of the adapter's name, in any case; empty takes the fastest kind there is.
    pub adapter: String,
    /// The system interface.
    pub backend: Backend,
    /// Operations between threads.
    pub subgroups: Subgroups,
    /// Multiply many columns at once by cooperative matrices (tensor cores). The adapter must have them; what a
    /// row gives then depends, by rounding, on whether many rows stand beside it.
    pub cooperative_matrices: bool,
    /// Keep wgpu's checks of every access and loop. For tests: some kernels take several times as long.
    pub checked: bool,
}

/// What the engine needs to know of a device. Constant for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The adapter's name, such as `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub name: String,
    /// The interface that it is reached by, such as `vulkan`.
    pub backend: &'static str,
    /// The driver and its version.
    pub driver: String,
    /// Whether the adapter is a CPU.
    pub is_cpu: bool,
    /// Threads of a subgroup, where it is one fixed number and kernels may use subgroups.
    pub subgroup_size: Option<u32>,
    /// Rows and columns of cooperative matrices, 8 or 16, where kernels are to use them: halves in, f32 sums.
    pub cooperative_size: Option<u32>,
    /// Whether passes can be timed.
    pub has_timestamps: bool,
    /// Largest range of a buffer that a kernel can see, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Whether planes of weights are textures: where the adapter is a CPU and not asked for cooperative
    /// matrices; see `texels.rs`.
    pub reads_texels: bool,
    /// Largest width and height of a texture, in texels.
    pub max_texture_side: u32,
    /// Whether shaders are built with checks.
    pub is_checked: bool,
}

/// An open device. May be shared by threads; clones are the same device.
#[derive(Clone)]
pub struct Device {
    pub(crate) wgpu: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    profile: Arc<Profile>,
    health: Arc<Health>,
    /// Variants that were compiled, by name: each costs up to a second on some drivers.
    compiled: Arc<Mutex<HashMap<String, Arc<Kernel>>>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Device {
    /// Opens the adapter that fits best. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::NoAdapter`] names what there is and what each lacks; [`DeviceError::Refused`] when
    /// the driver opens nothing.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(options: &DeviceOptions) -> Result<Device, DeviceError> {
        pollster::block_on(Device::open_async(options))
    }

    /// As [`Device::open`], for hosts that must not block.
    ///
    /// # Errors
    /// The same.
    pub async fn open_async(options: &DeviceOptions) -> Result<Device, DeviceError> {
        let adapter = choose::adapter(options).await?;
        let (info, limits) = (adapter.get_info(), choose::limits(&adapter.limits()));
        let optional = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let cooperative = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
        let mut features = adapter.features() & optional;
        if info.backend == wgpu::Backend::BrowserWebGpu {
            // Browsers want `enable subgroups;` before a text that uses them, and naga does not know it.
            features.remove(wgpu::Features::SUBGROUP);
        }
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if options.cooperative_matrices {
            features |= cooperative;
            experimental_features = unchecked::experimental();
        }
        let one_size = info.subgroup_min_size == info.subgroup_max_size;
        let has_subgroups = features.contains(wgpu::Features::SUBGROUP) && one_size;
        let profile = Profile {
            name: info.name.clone(),
            backend: info.backend.to_str(),
            driver: format!("{} {}", info.driver, info.driver_info),
            is_cpu: info.device_type == wgpu::DeviceType::Cpu,
            subgroup_size: (has_subgroups && options.subgroups == Subgroups::Auto)
                .then_some(info.subgroup_min_size),
            cooperative_size: choose::cooperative_size(&adapter)
                .filter(|_| options.cooperative_matrices && options.subgroups == Subgroups::Auto),
            has_timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            reads_texels: info.device_type == wgpu::DeviceType::Cpu
                && !options.cooperative_matrices
                && limits.max_storage_textures_per_shader_stage >= TEXTURES,
            max_texture_side: limits.max_texture_dimension_2d,
            is_checked: options.checked,
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("quern"),
            required_features: features,
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::Performance,
            experimental_features,
            ..Default::default()
        };
        let refused = |error: wgpu::RequestDeviceError| DeviceError::Refused {
            adapter: info.name,
            why: error.to_string(),
        };
        let (wgpu, queue) = adapter.request_device(&descriptor).await.map_err(refused)?;
        let health = Arc::new(Health::watch(&wgpu));
        Ok(Device { wgpu, queue, profile: Arc::new(profile), health, compiled: Arc::default() })
    }

    /// What this device is and can do.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether the device still works and refused nothing since the last call.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] from the moment the device is gone, [`DeviceError::Failed`] once for each call
    /// that it refused.
    pub fn check(&self) -> Result<(), DeviceError> {
        self.health.take()
    }

    /// Whether the device is gone, and all memory on it. Known once something was waited for.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.health.is_lost()
    }

    /// Takes the device away from everybody who has it, as a driver does that fails. For tests of what
    /// follows.
    pub fn lose(&self) {
        self.wgpu.destroy();
    }

    /// A compiled variant, shared by all who ask for it. Blocks the first time.
    ///
    /// # Errors
    /// As [`Kernel::new`].
    pub fn kernel(&self, text: &Text) -> Result<Arc<Kernel>, DeviceError> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = compiled.get(text.name()) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(Kernel::new(self, text)?);
        compiled.insert(text.name().to_owned(), Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Ends a scope around memory for `what`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when there was not enough; a browser says so only where its device is
    /// waited for.
    pub(crate) fn close_scope(
        &self,
        scope: wgpu::ErrorScopeGuard,
        what: &str,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        self.health.close(scope, DeviceError::OutOfMemory { what: what.to_owned(), bytes })
    }

    /// Builds a kernel's module, with checks where the device was opened with them.
    pub(crate) fn module(&self, text: &Text) -> wgpu::ShaderModule {
        if !self.profile.is_checked {
            return unchecked::module(&self.wgpu, text);
        }
        let source = wgpu::ShaderSource::Wgsl(Cow::Borrowed(text.wgsl()));
        self.wgpu.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(text.name()), source })
    }
}
