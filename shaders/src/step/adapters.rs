//! Adapters of a runner: their slots' memory, and which row uses which.

use super::layout::BatchRow;
use super::{AdapterError, RunnerError, StepLimits};
use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::lora::{
    LoraBook, LoraError, LoraMatrices, LoraModule, LoraShape, MAX_MODULES, MAX_RANK, NO_SLOT, RANKS,
    SLOT_WORDS,
};
use crate::model::ModelShape;

/// The modules of a layer that adapters may change, as PEFT calls them.
pub const MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Modules that share an input and an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Qkv,
    AttentionOut,
    GateUp,
    Down,
}

/// The slots of a runner. Without any, there are no pools and a few words of the rest.
#[derive(Debug)]
pub(super) struct Adapters {
    book: LoraBook,
    /// A buffer a layer.
    pub pools: Vec<Buffer>,
    /// What kernels know of the slots.
    pub table: Buffer,
    /// The slot of each row of the step.
    pub row_slots: Buffer,
    /// `[rows, MAX_MODULES, MAX_RANK]`.
    pub shrunk: Buffer,
}

impl Adapters {
    /// Workgroups for the ranks of a slot: each takes eight.
    pub const RANK_GROUPS: u32 = MAX_RANK as u32 / RANKS[0];

    pub fn new(device: &Device, shape: &ModelShape, limits: StepLimits) -> Result<Adapters, RunnerError> {
        let num_slots: u32 = limits.adapter_slots.iter().sum();
        let book = LoraBook::new(modules(shape), shape.layers, limits.adapter_slots);
        let (bytes, limit) = (book.pool_bytes(), device.profile().max_binding_bytes);
        if bytes > limit {
            let what = "slots for adapters in a layer";
            return Err(RunnerError::TooLarge { what, bytes, limit, setting: "adapter_slots" });
        }
        let buffer = |what: &str, bytes| Buffer::new(device, what, bytes, Use::Storage);
        let num_pools = if num_slots == 0 { 0 } else { shape.layers };
        let shrunk_words = u64::from(limits.max_rows) * (MAX_MODULES * MAX_RANK) as u64;
        Ok(Adapters {
            pools: (0..num_pools).map(|_| buffer("adapters", bytes)).collect::<Result<_, _>>()?,
            table: buffer("slots of adapters", u64::from(num_slots) * SLOT_WORDS as u64 * 4)?,
            row_slots: buffer("rows' adapters", u64::from(limits.max_rows) * 4)?,
            shrunk: buffer(
                "rows between an adapter's matrices",
                if num_slots == 0 { 0 } else { shrunk_words * 4 },
            )?,
            book,
        })
    }

    pub fn bytes(&self) -> u64 {
        let others = [&self.table, &self.row_slots, &self.shrunk];
        self.pools.iter().chain(others).map(Buffer::size_bytes).sum()
    }

    /// What kernels are told of the modules of a place.
    pub fn shape(&self, place: Place, model: &ModelShape) -> LoraShape {
        let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        match place {
            Place::Qkv => self.book.shape(&[(0, 0), (1, queries), (2, queries + keys)], model.qkv_width()),
            Place::AttentionOut => self.book.shape(&[(3, 0)], model.hidden),
            Place::GateUp => self.book.shape(&[(4, 0), (5, model.ffn)], 2 * model.ffn),
            Place::Down => self.book.shape(&[(6, 0)], model.hidden),
        }
    }

    pub fn has(&self, adapter_id: u32) -> bool {
        self.book.slot_of(adapter_id).is_some()
    }

    /// Tells kernels which row uses which slot, if any does.
    ///
    /// # Panics
    /// When a row's adapter is not loaded.
    pub fn assign(&self, device: &Device, rows: &[BatchRow]) -> bool {
        if rows.iter().all(|row| row.adapter_id.is_none()) {
            return false;
        }
        let slot = |id: u32| self.book.slot_of(id).expect("a row's adapter is loaded");
        let slots: Vec<u32> = rows.iter().map(|row| row.adapter_id.map_or(NO_SLOT, slot)).collect();
        self.row_slots.write(device, 0, bytemuck::cast_slice(&slots));
        true
    }

    pub async fn load(
        &mut self,
        device: &Device,
        adapter_id: u32,
        matrices: &[LoraMatrices<'_>],
    ) -> Result<(), AdapterError> {
        let uploads = self.book.load(adapter_id, matrices)?;
        for upload in uploads {
            let pool = &self.pools[upload.layer_idx as usize];
            pool.write(device, upload.offset_bytes, bytemuck::cast_slice(&upload.words));
        }
        self.write_table(device);
        // What was written is copied by now; a device that failed at it has not loaded anything.
        let written = device.wait_async().await;
        if written.is_err() {
            self.unload(device, adapter_id)?;
        }
        Ok(written?)
    }

    pub fn unload(&mut self, device: &Device, adapter_id: u32) -> Result<(), LoraError> {
        self.book.unload(adapter_id)?;
        self.write_table(device);
        Ok(())
    }

    fn write_table(&self, device: &Device) {
        self.table.write(device, 0, bytemuck::cast_slice(&self.book.table()));
    }
}

fn modules(shape: &ModelShape) -> Vec<LoraModule> {
    let (hidden, ffn) = (shape.hidden, shape.ffn);
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let sizes = [
        (hidden, queries),
        (hidden, keys),
        (hidden, keys),
        (queries, hidden),
        (hidden, ffn),
        (hidden, ffn),
        (ffn, hidden),
    ];
    MODULES.into_iter().zip(sizes).map(|(name, (input, output))| LoraModule { name, input, output }).collect()
}
