//! Which adapter lies in which slot of the device's pools, and what its bytes are.
//!
//! Each layer has one pool, and all pools are laid out alike: slots of a few fixed
//! ranks, each with room for every module of a layer. Slots are made once, with the
//! pools; to load an adapter is to write into a free slot, so no buffer, bind group
//! or pipeline changes. Kernels find a slot by the table, and a row's slot is data:
//! rows of one batch may use different adapters, or none.
//!
//! This is the book alone. It knows no device and no files: it takes matrices and
//! gives back bytes with the place where they belong. Where next: `lora/pack.rs`
//! for the bytes, `wgsl/lora_shrink.wgsl` and `wgsl/lora_expand.wgsl` for their use.

mod pack;
mod shape;
#[cfg(test)]
mod tests;

use pack::pack_layer;
pub use shape::{LoraShape, MAX_MODULES, SHAPE_WORDS};

/// The ranks that slots come in. An adapter's ranks are filled up with zeros to its slot's.
pub const RANKS: [u32; 4] = [8, 16, 32, 64];

/// The largest of them.
pub const MAX_RANK: usize = RANKS[RANKS.len() - 1] as usize;

/// What a row without an adapter has in place of a slot.
pub const NO_SLOT: u32 = u32::MAX;

/// Words in a slot's entry of [`LoraBook::table`].
pub const SLOT_WORDS: usize = 4;

/// Values that the pools count in: 16 bytes of f16.
pub(crate) const UNIT: u32 = 8;

/// One linear map of a layer that adapters may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraModule {
    /// What it is called, such as `q_proj`; for messages.
    pub name: &'static str,
    /// The length of its input.
    pub input: u32,
    /// The length of its output.
    pub output: u32,
}

impl LoraModule {
    /// Its input as it is stored, filled up with zeros.
    pub(crate) fn padded_input(&self) -> u32 {
        self.input.next_multiple_of(UNIT)
    }
}

/// One module of an adapter: the layer's map becomes `W + scale * B * A`.
#[derive(Debug, Clone, Copy)]
pub struct LoraMatrices<'a> {
    /// The layer.
    pub layer_idx: u32,
    /// The module's position in the book's list.
    pub module_idx: u32,
    /// The inner dimension of the pair.
    pub rank: u32,
    /// `[rank, input]`, row-major.
    pub a: &'a [f32],
    /// `[output, rank]`, row-major.
    pub b: &'a [f32],
    /// What the product is multiplied with. It is folded into the stored B.
    pub scale: f32,
}

/// What to write into one layer's pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    /// The layer.
    pub layer_idx: u32,
    /// Where in its pool, in bytes; a multiple of 16.
    pub offset_bytes: u64,
    /// The whole slot: two f16 a word, the first in the low half.
    pub words: Vec<u32>,
}

/// Why an adapter was not loaded or unloaded. The book is then unchanged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoraError {
    /// The adapter is there already. Unload it first.
    #[error("adapter {adapter_id} is loaded already")]
    AlreadyLoaded {
        /// The adapter.
        adapter_id: u32,
    },
    /// There is no such adapter.
    #[error("adapter {adapter_id} is not loaded")]
    NotLoaded {
        /// The adapter.
        adapter_id: u32,
    },
    /// All slots of its rank and of larger ones are taken. Unload an adapter, or make more slots.
    #[error("all {num_slots} slots for adapters of rank {rank} or more are taken")]
    NoSlot {
        /// The adapter's largest rank.
        rank: u32,
        /// Slots that it would fit into.
        num_slots: usize,
    },
    /// A rank is 0 or larger than the largest slot's.
    #[error("layer {layer_idx}, {module}: rank {rank} is not in 1..={max}")]
    BadRank {
        /// The layer.
        layer_idx: u32,
        /// The module.
        module: &'static str,
        /// Its rank.
        rank: u32,
        /// The largest rank that there are slots for.
        max: u32,
    },
    /// The adapter changes a place that the model does not have.
    #[error(
        "there is no module {module_idx} in layer {layer_idx}: the model has {num_modules} in each of {num_layers}"
    )]
    NoSuchModule {
        /// The layer.
        layer_idx: u32,
        /// The module's position.
        module_idx: u32,
        /// Layers that there are.
        num_layers: u32,
        /// Modules in each.
        num_modules: usize,
    },
    /// The adapter has two pairs of matrices for one place.
    #[error("layer {layer_idx}, {module}: the adapter has it twice")]
    TwiceDefined {
        /// The layer.
        layer_idx: u32,
        /// The module.
        module: &'static str,
    },
    /// A matrix has another number of values than its shape says.
    #[error("layer {layer_idx}, {module}: {which} has {found} values where its shape has {expected}")]
    BadShape {
        /// The layer.
        layer_idx: u32,
        /// The module.
        module: &'static str,
        /// `A` or `B`.
        which: &'static str,
        /// Values that there are.
        found: usize,
        /// Values that the shape has.
        expected: usize,
    },
    /// A matrix holds a value that is not finite, or that f16 cannot hold beside the others.
    #[error("layer {layer_idx}, {module}: {which} holds {value}, which f16 cannot")]
    OutOfRange {
        /// The layer.
        layer_idx: u32,
        /// The module.
        module: &'static str,
        /// `A` or `B`.
        which: &'static str,
        /// The value.
        value: f32,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Slot {
    rank: u32,
    /// Where it begins in each pool, in units.
    start: u32,
    /// Who lies in it.
    adapter_id: Option<u32>,
    /// A bit for each module that its adapter changes in any layer.
    modules: u32,
}

/// The slots of all pools and who lies in them.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraBook {
    modules: Vec<LoraModule>,
    num_layers: u32,
    /// In ascending order of ranks.
    slots: Vec<Slot>,
    pool_units: u32,
}

impl LoraBook {
    /// A book of free slots: `num_slots[i]` of rank `RANKS[i]`, for a model of `num_layers` layers with
    /// these modules each.
    ///
    /// # Panics
    /// When there are more than 32 modules, or a layer's pool has more than 64 GiB.
    #[must_use]
    pub fn new(modules: Vec<LoraModule>, num_layers: u32, num_slots: [u32; RANKS.len()]) -> LoraBook {
        assert!(modules.len() <= 32, "a slot's modules are bits of one word");
        let mut book = LoraBook { modules, num_layers, slots: Vec::new(), pool_units: 0 };
        for (rank, count) in RANKS.into_iter().zip(num_slots) {
            for _ in 0..count {
                let start = book.pool_units;
                book.slots.push(Slot { rank, start, adapter_id: None, modules: 0 });
                let end = start.checked_add(book.slot_units(rank));
                book.pool_units = end.expect("no device has so large a buffer");
            }
        }
        book
    }

    /// The size of each layer's pool.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        u64::from(self.pool_units) * 16
    }

    /// Slots that are free, by their ranks.
    #[must_use]
    pub fn num_free(&self) -> [usize; RANKS.len()] {
        RANKS.map(|rank| {
            self.slots.iter().filter(|slot| slot.rank == rank && slot.adapter_id.is_none()).count()
        })
    }

    /// The slot that an adapter lies in.
    #[must_use]
    pub fn slot_of(&self, adapter_id: u32) -> Option<u32> {
        let slot_idx = self.slots.iter().position(|slot| slot.adapter_id == Some(adapter_id));
        slot_idx.map(|idx| idx as u32)
    }

    /// What kernels know of the slots, `[num_slots, SLOT_WORDS]`: where a slot begins in units of 16 bytes,
    /// its rank, a bit for each module, and a word that means nothing. Write it after each load and unload.
    #[must_use]
    pub fn table(&self) -> Vec<u32> {
        self.slots.iter().flat_map(|slot| [slot.start, slot.rank, slot.modules, 0]).collect()
    }

    /// Where a module's matrices begin in a slot of rank `UNIT`, in units; other ranks in proportion.
    ///
    /// # Panics
    /// When there is no such module.
    #[must_use]
    pub fn module_start(&self, module_idx: u32) -> u32 {
        let before = &self.modules[..module_idx as usize];
        before.iter().map(|module| module.padded_input() + module.output).sum()
    }

    /// Gives an adapter the smallest slot that it fits into. It is loaded when the uploads, one for each
    /// layer, and the table are written; places that it does not change are zeros.
    ///
    /// # Errors
    /// [`LoraError`] with the reason.
    pub fn load(&mut self, adapter_id: u32, matrices: &[LoraMatrices<'_>]) -> Result<Vec<Upload>, LoraError> {
        if self.slot_of(adapter_id).is_some() {
            return Err(LoraError::AlreadyLoaded { adapter_id });
        }
        self.check(matrices)?;
        let rank = matrices.iter().map(|pair| pair.rank).max().unwrap_or(0);
        let slot_idx = self.free_slot(rank)?;
        let Slot { rank: slot_rank, start, .. } = self.slots[slot_idx];
        let upload = |layer_idx| {
            let words = pack_layer(self, slot_rank, layer_idx, matrices)?;
            Ok(Upload { layer_idx, offset_bytes: u64::from(start) * 16, words })
        };
        let uploads = (0..self.num_layers).map(upload).collect::<Result<Vec<_>, LoraError>>()?;

        let slot = &mut self.slots[slot_idx];
        slot.adapter_id = Some(adapter_id);
        slot.modules = matrices.iter().fold(0, |bits, pair| bits | 1 << pair.module_idx);
        Ok(uploads)
    }

    /// Frees an adapter's slot. What lies in it stays there until another is loaded; no kernel reads it.
    ///
    /// # Errors
    /// [`LoraError::NotLoaded`].
    pub fn unload(&mut self, adapter_id: u32) -> Result<(), LoraError> {
        let slot_idx = self.slot_of(adapter_id).ok_or(LoraError::NotLoaded { adapter_id })?;
        let slot = &mut self.slots[slot_idx as usize];
        (slot.adapter_id, slot.modules) = (None, 0);
        Ok(())
    }

    /// Units that a slot takes in each layer.
    fn slot_units(&self, rank: u32) -> u32 {
        self.module_start(self.modules.len() as u32) * (rank / UNIT)
    }

    fn free_slot(&self, rank: u32) -> Result<usize, LoraError> {
        let fits = |slot: &&Slot| slot.rank >= rank;
        let free = self.slots.iter().position(|slot| fits(&slot) && slot.adapter_id.is_none());
        free.ok_or_else(|| LoraError::NoSlot { rank, num_slots: self.slots.iter().filter(fits).count() })
    }

    fn check(&self, matrices: &[LoraMatrices<'_>]) -> Result<(), LoraError> {
        let mut seen = Vec::with_capacity(matrices.len());
        for &LoraMatrices { layer_idx, module_idx, rank, a, b, .. } in matrices {
            let module = self.modules.get(module_idx as usize).filter(|_| layer_idx < self.num_layers);
            let Some(&LoraModule { name: module, input, output }) = module else {
                let (num_layers, num_modules) = (self.num_layers, self.modules.len());
                return Err(LoraError::NoSuchModule { layer_idx, module_idx, num_layers, num_modules });
            };
            let max = MAX_RANK as u32;
            if !(1..=max).contains(&rank) {
                return Err(LoraError::BadRank { layer_idx, module, rank, max });
            }
            for (which, found, length) in [("A", a.len(), input), ("B", b.len(), output)] {
                let expected = rank as usize * length as usize;
                if found != expected {
                    return Err(LoraError::BadShape { layer_idx, module, which, found, expected });
                }
            }
            if seen.contains(&(layer_idx, module_idx)) {
                return Err(LoraError::TwiceDefined { layer_idx, module });
            }
            seen.push((layer_idx, module_idx));
        }
        Ok(())
    }
}
