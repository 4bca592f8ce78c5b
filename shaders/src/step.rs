//! One step: a ragged batch of rows through the whole model, in one pass and one submission.
//!
//! Everything that can be known before is made when a [`Runner`] is made: pipelines, buffers for the largest
//! batch, and a list of dispatches with their bind groups. A step writes one piece of metadata, encodes the
//! list, and reads back what was asked for. Where next: `step/plan.rs` for the list of dispatches,
//! `step/product.rs` for those of matrices, `step/attention.rs` for those of long sequences, `step/layout.rs` for the
//! metadata, `step/adapters.rs` for adapters, `step/draw.rs` for tokens, `step/blocking.rs` for hosts that may block,
//! `pages.rs` for who holds which page.

mod adapters;
mod attention;
#[cfg(not(target_arch = "wasm32"))]
mod blocking;
mod dispatch;
mod draw;
mod halves;
mod inputs;
mod layout;
mod plan;
mod product;

use std::sync::Arc;
use std::time::Duration;

use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::error::DeviceError;
use crate::lora::{LoraError, LoraMatrices, RANKS};
use crate::model::Model;
use crate::pages::{PAGE_TOKENS, PageCopy};
use crate::sampling::NO_TOKEN;
use adapters::Adapters;
pub use adapters::MODULES;
use attention::Sharing;
pub use attention::Split;
use draw::Drawing;
pub use draw::DrawnRow;
use layout::Layout;
pub use layout::{Batch, BatchRow};
use plan::{Counts, Memory, Plan};

/// How large a runner's buffers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows in one step.
    pub max_rows: u32,
    /// Rows with an output in one step.
    pub max_outputs: u32,
    /// Pages of keys and values, of [`PAGE_TOKENS`] tokens each.
    pub num_pages: u32,
    /// Longest sequence, in tokens.
    pub max_sequence_len: u32,
    /// Adapters that can be loaded at once, by their ranks; see [`RANKS`].
    pub adapter_slots: [u32; RANKS.len()],
    /// Whether steps draw tokens.
    pub draws: bool,
}

/// Why a runner cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The device has no room, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// One buffer would be larger than a kernel of this device can see.
    #[error("{what} take {bytes} bytes, and kernels of this device see {limit} at most: lower {setting}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it would be.
        bytes: u64,
        /// How large it may be.
        limit: u64,
        /// What to lower.
        setting: &'static str,
    },
}

/// Why an adapter was not loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// It does not fit the model or the slots.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What a step gave back, borrowed from the runner.
#[derive(Debug, Clone, Copy)]
pub struct StepResult<'a> {
    /// `[num_logits, vocab]`, row-major.
    pub logits: &'a [f32],
    /// `[num_hidden, hidden]`, row-major, after the last norm.
    pub hidden: &'a [f32],
    /// `[num_drawn]`; `None` where no token that may be drawn has a logit above negative infinity.
    pub tokens: &'a [Option<u32>],
}

/// How long one dispatch of a step took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchTime {
    /// The kernel with its variant's values.
    pub kernel: String,
    /// Its workgroups.
    pub workgroups: [u32; 3],
    /// By the device's clock.
    pub took: Duration,
}

/// Computes steps of one model, with keys and values of its own.
#[derive(Debug)]
pub struct Runner {
    device: Device,
    model: Arc<Model>,
    layout: Layout,
    memory: Memory,
    adapters: Adapters,
    drawing: Option<Drawing>,
    plan: Plan,
    /// The metadata of the present step.
    words: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    tokens: Vec<Option<u32>>,
}

impl Runner {
    /// Makes buffers, pipelines and bind groups. Blocks, but in a browser, where what its device refuses is an
    /// error of the first step.
    ///
    /// # Errors
    /// [`RunnerError`] with the sizes, when something does not fit.
    pub fn new(device: &Device, model: &Arc<Model>, limits: StepLimits) -> Result<Runner, RunnerError> {
        Runner::with_split(device, model, limits, Split::of(device.profile()))
    }

    /// As [`Runner::new`], with attention of long sequences split as wished and not as fits the device: for tests
    /// and measurements.
    ///
    /// # Errors
    /// The same.
    ///
    /// # Panics
    /// When [`Split::part_keys`] is not a multiple of 128, or 0.
    pub fn with_split(
        device: &Device,
        model: &Arc<Model>,
        limits: StepLimits,
        split: Option<Split>,
    ) -> Result<Runner, RunnerError> {
        let heads = [model.shape.heads, model.shape.kv_heads];
        let sharing = Sharing::new(split, heads, limits, device.profile().max_binding_bytes);
        let layout = Layout { limits, sharing };
        let memory = Memory::new(device, &model.shape, limits, &layout)?;
        let adapters = Adapters::new(device, &model.shape, limits)?;
        let drawing = || Drawing::new(device, model.shape.vocab, limits.max_outputs);
        let drawing = limits.draws.then(drawing).transpose()?;
        let plan = Plan::new(device, model, &memory, &adapters, drawing.as_ref(), &layout)?;
        Ok(Runner {
            device: device.clone(),
            model: Arc::clone(model),
            layout,
            memory,
            adapters,
            drawing,
            plan,
            words: Vec::new(),
            logits: Vec::new(),
            hidden: Vec::new(),
            tokens: Vec::new(),
        })
    }

    /// The model that this computes.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of keys and values, and of everything else that this runner keeps on the device.
    #[must_use]
    pub fn memory_bytes(&self) -> [u64; 2] {
        let [kv, others] = self.memory.bytes();
        [kv, others + self.adapters.bytes() + self.drawing.as_ref().map_or(0, Drawing::bytes)]
    }

    /// Dispatches of a step with logits, without adapters, draws and split attention.
    #[must_use]
    pub fn num_dispatches(&self) -> usize {
        self.plan.num_dispatches()
    }

    /// Computes a batch, for hosts that must not block; others call `run`. On a native device it blocks until
    /// it is done. When it is dropped before its end, keys and values of the batch's rows are unknown.
    ///
    /// # Errors
    /// [`DeviceError`] when the device failed or is lost; keys and values of the batch's rows are then
    /// unknown.
    ///
    /// # Panics
    /// When the batch is empty or larger than the limits, names an adapter or a mask that is not there, or
    /// draws and the limits say that steps do not.
    pub async fn run_async(&mut self, batch: &Batch<'_>) -> Result<StepResult<'_>, DeviceError> {
        let mut encoder = self.device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (counts, with_adapters) = self.write(batch);
        self.plan.encode(&mut encoder, counts, with_adapters);
        let shape = &self.model.shape;
        let logits_bytes = u64::from(counts.logits) * u64::from(shape.vocab) * 4;
        let row_bytes = u64::from(shape.hidden) * 4;
        let hidden_bytes = u64::from(counts.hidden) * row_bytes;
        let (memory, staging) = (&self.memory, &self.memory.staging.wgpu);
        if logits_bytes > 0 {
            encoder.copy_buffer_to_buffer(&memory.logits.wgpu, 0, staging, 0, logits_bytes);
        }
        if hidden_bytes > 0 {
            let from = u64::from(counts.with_logits()) * row_bytes;
            encoder.copy_buffer_to_buffer(&memory.outputs.wgpu, from, staging, logits_bytes, hidden_bytes);
        }
        if let (Some(drawing), 1..) = (&self.drawing, counts.drawn) {
            let (tokens, to) = (&drawing.tokens.wgpu, logits_bytes + hidden_bytes);
            encoder.copy_buffer_to_buffer(tokens, 0, staging, to, u64::from(counts.drawn) * 4);
        }
        self.device.queue.submit([encoder.finish()]);
        let [num_logits, num_hidden] = [logits_bytes, hidden_bytes].map(|bytes| bytes as usize / 4);
        self.read_back(num_logits, num_hidden, counts.drawn as usize).await?;
        Ok(self.last())
    }

    /// Computes a batch as [`Runner::run_async`] does, but with each dispatch in a pass of its own, and says how
    /// long each took by the device's clock; `None` where it has none. Nothing is read back.
    ///
    /// # Errors
    /// As [`Runner::run_async`].
    ///
    /// # Panics
    /// As [`Runner::run_async`].
    pub async fn time_async(&mut self, batch: &Batch<'_>) -> Result<Option<Vec<DispatchTime>>, DeviceError> {
        if !self.device.profile().has_timestamps {
            return Ok(None);
        }
        let mut encoder = self.device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (counts, with_adapters) = self.write(batch);
        let (clock, dispatches) = self.plan.encode_timed(&self.device, &mut encoder, counts, with_adapters);
        self.device.queue.submit([encoder.finish()]);
        let times = clock.read(&self.device).await?;
        let timed = |((kernel, workgroups), took)| DispatchTime { kernel, workgroups, took };
        Ok(Some(dispatches.into_iter().zip(times).map(timed).collect()))
    }

    /// Tells the kernels what the batch is. What there is of it, and whether it has adapters.
    fn write(&mut self, batch: &Batch<'_>) -> (Counts, bool) {
        let shared = self.layout.fill(batch, &mut self.words);
        self.memory.step_info.write(&self.device, 0, bytemuck::cast_slice(&self.words));
        let with_adapters = self.adapters.assign(&self.device, batch.rows);
        match &self.drawing {
            Some(drawing) => drawing.write(&self.device, batch),
            None => assert!(batch.drawn.is_empty(), "steps of this runner draw no tokens"),
        }
        (Counts::of(batch, shared), with_adapters)
    }

    /// What the last step gave back.
    #[must_use]
    pub fn last(&self) -> StepResult<'_> {
        StepResult { logits: &self.logits, hidden: &self.hidden, tokens: &self.tokens }
    }

    /// Waits for the step and takes so many values of each kind from where they were copied to.
    async fn read_back(
        &mut self,
        num_logits: usize,
        num_hidden: usize,
        num_drawn: usize,
    ) -> Result<(), DeviceError> {
        self.logits.resize(num_logits, 0.0);
        self.hidden.resize(num_hidden, 0.0);
        self.tokens.clear();
        if num_logits + num_hidden + num_drawn == 0 {
            return self.device.wait_async().await;
        }
        let mut drawn = vec![NO_TOKEN; num_drawn];
        let parts = [
            bytemuck::cast_slice_mut(&mut self.logits),
            bytemuck::cast_slice_mut(&mut self.hidden),
            bytemuck::cast_slice_mut(&mut drawn),
        ];
        self.memory.staging.read_mapped_async(&self.device, parts).await?;
        self.tokens.extend(drawn.into_iter().map(|token| (token != NO_TOKEN).then_some(token)));
        Ok(())
    }

    /// Whether an adapter is loaded.
    #[must_use]
    pub fn has_adapter(&self, adapter_id: u32) -> bool {
        self.adapters.has(adapter_id)
    }

    /// Puts an adapter into a free slot. Its matrices name modules by their position in [`MODULES`]. No
    /// pipeline, buffer or bind group changes. For hosts that must not block; others call `load_adapter`. Dropped
    /// before its end, it may have loaded the adapter.
    ///
    /// # Errors
    /// [`AdapterError`] with the reason; nothing is half loaded.
    pub async fn load_adapter_async(
        &mut self,
        adapter_id: u32,
        matrices: &[LoraMatrices<'_>],
    ) -> Result<(), AdapterError> {
        self.adapters.load(&self.device, adapter_id, matrices).await
    }

    /// Frees an adapter's slot.
    ///
    /// # Errors
    /// [`LoraError::NotLoaded`].
    pub fn unload_adapter(&mut self, adapter_id: u32) -> Result<(), LoraError> {
        self.adapters.unload(&self.device, adapter_id)
    }

    /// Copies pages in every layer, before anything that is submitted later.
    pub fn copy_pages(&self, copies: &[PageCopy]) {
        if copies.is_empty() {
            return;
        }
        let mut encoder = self.device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (bytes, scratch) = (self.memory.page_bytes, &self.memory.scratch_page.wgpu);
        for copy in copies {
            let [from, to] = [copy.from, copy.to].map(|page| u64::from(page) * bytes);
            for layer in &self.memory.kv {
                // A buffer cannot be copied into itself.
                encoder.copy_buffer_to_buffer(&layer.wgpu, from, scratch, 0, bytes);
                encoder.copy_buffer_to_buffer(scratch, 0, &layer.wgpu, to, bytes);
            }
        }
        self.device.queue.submit([encoder.finish()]);
    }

    /// Bytes of a page over all layers.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.memory.kv.len() * self.memory.page_bytes as usize
    }

    /// Copies pages to the host: `[pages, layers, page]`. For hosts that must not block; others call
    /// `read_pages`. May be dropped at any time.
    ///
    /// # Errors
    /// [`DeviceError`] when the device has no room for the copy, or failed.
    pub async fn read_pages_async(&self, pages: &[u32]) -> Result<Vec<u8>, DeviceError> {
        let mut out = vec![0; pages.len() * self.page_bytes()];
        if pages.is_empty() {
            return Ok(out);
        }
        let staging = Buffer::new(&self.device, "pages to keep", out.len() as u64, Use::Readback)?;
        let mut encoder = self.device.wgpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (bytes, mut at) = (self.memory.page_bytes, 0);
        for page in pages {
            for layer in &self.memory.kv {
                let page_at = u64::from(*page) * bytes;
                encoder.copy_buffer_to_buffer(&layer.wgpu, page_at, &staging.wgpu, at, bytes);
                at += bytes;
            }
        }
        self.device.queue.submit([encoder.finish()]);
        staging.read_mapped_async(&self.device, [out.as_mut_slice()]).await?;
        Ok(out)
    }

    /// Puts back what [`Runner::read_pages_async`] gave, into as many other pages.
    ///
    /// # Panics
    /// When `bytes` are not those of so many pages.
    pub fn write_pages(&self, pages: &[u32], bytes: &[u8]) {
        assert_eq!(bytes.len(), pages.len() * self.page_bytes(), "whole pages are written");
        let page_bytes = self.memory.page_bytes as usize;
        let mut parts = bytes.chunks_exact(page_bytes);
        for page in pages {
            for layer in &self.memory.kv {
                let part = parts.next().expect("lengths were compared");
                layer.write(&self.device, u64::from(*page) * self.memory.page_bytes, part);
            }
        }
    }

    /// Room for keys and values, in tokens.
    #[must_use]
    pub fn capacity_tokens(&self) -> u32 {
        self.layout.limits.num_pages * PAGE_TOKENS
    }
}
