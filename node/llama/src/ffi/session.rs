//! A context on a model: it computes batches and keeps sequences' state.

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use quern_engine::{Output, Row};

use super::batch::{BatchArrays, position};
use super::c_path;
use super::model::Model;
use super::tap::{Tap, TapState, on_tensor};
use crate::config::{FlashAttention, KvType, LlamaConfig};
use crate::inputs::Inputs;
use crate::operations::Operations;

struct Context(NonNull<sys::llama_context>);

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by `Session::new`, freed only here, before its model and its tap.
        unsafe { sys::llama_free(self.0.as_ptr()) }
    }
}

struct Adapter {
    handle: NonNull<sys::llama_adapter_lora>,
    model: Arc<Model>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _changes = self.model.writes_adapters();
        // SAFETY: created by `Session::load_adapter`, freed only here, before
        // its model and after the context stopped using it.
        unsafe { sys::llama_adapter_lora_free(self.handle.as_ptr()) }
    }
}

/// How a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decode {
    /// All rows are computed.
    Done,
    /// There was no room; nothing has changed.
    NoRoom,
    /// llama.cpp failed with this number; some rows may have been kept.
    Failed(i32),
}

/// A share of a model, one context on it, and its adapters. Fields drop in this order:
/// the context first, then what it points to.
pub(crate) struct Session {
    context: Context,
    adapters: BTreeMap<u32, Adapter>,
    /// The one that the context points to.
    present: Option<u32>,
    model: Arc<Model>,
    tap: Tap,
    batch: BatchArrays,
    max_outputs: usize,
    max_sequences: u32,
}

// SAFETY: a session owns all of its handles but the model, which may be shared,
// and llama.cpp binds none of them to a thread: its thread pools are its own, and
// the log callback finds its state by the calling thread. `&mut self` keeps calls
// apart. It is not `Sync`.
unsafe impl Send for Session {}

impl Session {
    /// Creates a context with checked sizes; `None` when llama.cpp refuses, with
    /// the reason in its log. `threads` are those for one row and for several.
    pub(crate) fn new(model: Arc<Model>, config: &LlamaConfig, threads: (u32, u32)) -> Option<Session> {
        let hidden_size = model.hidden_size();
        let tap = Tap(NonNull::from(Box::leak(Box::new(TapState::new(hidden_size)))));
        let kv_type = match config.kv_type {
            KvType::F32 => sys::GGML_TYPE_F32,
            KvType::F16 => sys::GGML_TYPE_F16,
            KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
            KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
        };
        // llama.cpp aborts when a context may give fewer outputs than it has sequences.
        let max_outputs = config.max_outputs.max(config.max_sequences);
        // SAFETY: returns a plain struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = config.kv_capacity;
        params.n_batch = config.max_rows;
        params.n_ubatch = config.micro_batch_rows;
        params.n_seq_max = config.max_sequences;
        params.n_outputs_max = max_outputs;
        params.n_outputs_max_per_seq = max_outputs;
        params.n_threads = i32::try_from(threads.0).unwrap_or(1);
        params.n_threads_batch = i32::try_from(threads.1).unwrap_or(1);
        params.flash_attn_type = match config.flash_attention {
            FlashAttention::Auto if config.kv_type == KvType::F32 => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        (params.type_k, params.type_v) = (kv_type, kv_type);
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        params.kv_unified = true;
        params.no_perf = true;
        params.cb_eval = Some(on_tensor);
        params.cb_eval_user_data = tap.0.as_ptr().cast();
        let context = {
            let _list = model.reads_adapters();
            // SAFETY: the model lives longer than the context, and so does the tap
            // whose address the context keeps.
            NonNull::new(unsafe { sys::llama_init_from_model(model.handle.as_ptr(), params) })?
        };
        Some(Session {
            context: Context(context),
            adapters: BTreeMap::new(),
            present: None,
            model,
            tap,
            batch: BatchArrays::default(),
            max_outputs: max_outputs as usize,
            max_sequences: config.max_sequences,
        })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens of state over all sequences, as llama.cpp rounded it.
    pub(crate) fn kv_capacity(&self) -> usize {
        // SAFETY: the context lives; this only reads it.
        unsafe { sys::llama_n_ctx(self.context.0.as_ptr()) as usize }
    }

    /// Rows in one batch, as llama.cpp bounded it.
    pub(crate) fn max_rows(&self) -> usize {
        // SAFETY: the context lives; this only reads it.
        unsafe { sys::llama_n_batch(self.context.0.as_ptr()) as usize }
    }

    /// Computes a batch.
    ///
    /// # Panics
    /// When there are more rows or outputs, or larger sequence numbers, than
    /// the context was made for: llama.cpp would abort or write out of bounds.
    /// And when the tap panicked: it could not through llama.cpp.
    pub(crate) fn decode(&mut self, rows: &[Row]) -> Decode {
        let count = |wanted: Output| rows.iter().filter(|row| row.output == wanted).count();
        let (num_logits, num_hidden) = (count(Output::Logits), count(Output::Hidden));
        assert!(!rows.is_empty() && rows.len() <= self.max_rows(), "rows are within the context's batch");
        let num_outputs = rows.iter().filter(|row| row.output != Output::None).count();
        assert!(num_outputs <= self.max_outputs, "outputs are within the context's buffer");
        assert!(rows.iter().all(|row| row.seq < self.max_sequences), "sequences are the context's");
        // SAFETY: the tap's state is reached through this pointer only, and no
        // computation is running.
        unsafe {
            let state = self.tap.0.as_mut();
            state.wanted = num_hidden > 0;
            state.ends = num_logits == 0;
            state.rows.clear();
        }
        let batch = self.batch.fill(rows);
        let _list = self.model.reads_adapters();
        // SAFETY: the batch's arrays all hold `rows.len()` entries, each row with
        // one sequence, and outlive the call, which copies them.
        let code = unsafe { sys::llama_decode(self.context.0.as_ptr(), batch) };
        // SAFETY: as above.
        if let Some(panic) = unsafe { self.tap.0.as_mut() }.panic.take() {
            std::panic::resume_unwind(panic);
        }
        match code {
            0 => Decode::Done,
            1 => Decode::NoRoom,
            code => Decode::Failed(code),
        }
    }

    /// Waits for the last batch and gives the logits of its `num_outputs`
    /// outputs, `[num_outputs, vocab]`, in the order of its rows. Rows that
    /// asked for hidden states only hold anything. `None` when there are none.
    pub(crate) fn logits(&mut self, num_outputs: usize) -> Option<&mut [f32]> {
        if num_outputs == 0 || num_outputs > self.max_outputs {
            return None;
        }
        // SAFETY: llama.cpp's buffer holds a row of `vocab_size` floats for each
        // output of the last batch; it stays until the next call that takes
        // `&mut self`, and so does the borrow.
        unsafe {
            let logits = NonNull::new(sys::llama_get_logits(self.context.0.as_ptr()))?;
            Some(std::slice::from_raw_parts_mut(logits.as_ptr(), num_outputs * self.model.vocab_size()))
        }
    }

    /// Waits until the last batch is computed.
    pub(crate) fn synchronize(&mut self) {
        // SAFETY: the context lives.
        unsafe { sys::llama_synchronize(self.context.0.as_ptr()) }
    }

    /// The hidden states of all outputs of the last batch, where a row asked for one.
    pub(crate) fn hidden(&mut self) -> &mut Vec<f32> {
        // SAFETY: the tap's state is reached through this pointer only, and no
        // computation runs while `self` is borrowed.
        unsafe { &mut self.tap.0.as_mut().rows }
    }

    /// Begins to measure what goes into the model's matrices, or ends it; gives what was measured so far.
    pub(crate) fn set_inputs(&mut self, inputs: Option<Inputs>) -> Option<Inputs> {
        // SAFETY: as in `hidden`.
        std::mem::replace(unsafe { &mut self.tap.0.as_mut().inputs }, inputs)
    }

    /// Begins to time operations one at a time, or ends it; gives those that were timed so far.
    pub(crate) fn set_operations(&mut self, operations: Option<Operations>) -> Option<Operations> {
        // SAFETY: as in `hidden`.
        std::mem::replace(unsafe { &mut self.tap.0.as_mut().operations }, operations)
    }

    /// The first rows of logits and of hidden states of the last batch, after
    /// [`Session::logits`] and [`Session::hidden`] have made sure that they are there.
    pub(crate) fn outputs(&mut self, num_logits: usize, num_hidden: usize) -> (&[f32], &[f32]) {
        // SAFETY: as in `logits` and `hidden`; both buffers stay until the next
        // call that takes `&mut self`, and so do the borrows.
        unsafe {
            let hidden = &self.tap.0.as_ref().rows;
            let hidden = &hidden[..num_hidden * self.model.hidden_size()];
            let logits = match NonNull::new(sys::llama_get_logits(self.context.0.as_ptr())) {
                Some(logits) if num_logits > 0 && num_logits <= self.max_outputs => {
                    std::slice::from_raw_parts(logits.as_ptr(), num_logits * self.model.vocab_size())
                }
                _ => &[],
            };
            (logits, hidden)
        }
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context lives, and its memory as long.
        unsafe { sys::llama_get_memory(self.context.0.as_ptr()) }
    }

    /// Makes `to` share the first `len` tokens of `from`.
    ///
    /// # Panics
    /// When a sequence is not the context's.
    pub(crate) fn copy_sequence(&mut self, from: u32, to: u32, len: u32) {
        let (from, to, len) = (self.seq(from), self.seq(to), position(len));
        // SAFETY: both sequences are the context's.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, 0, len) }
    }

    /// Forgets `seq` from position `len`; `false` when it cannot be cut there.
    ///
    /// # Panics
    /// When the sequence is not the context's.
    pub(crate) fn cut_sequence(&mut self, seq: u32, len: u32) -> bool {
        let (seq, len) = (self.seq(seq), position(len));
        // SAFETY: the sequence is the context's; -1 means up to its end.
        unsafe { sys::llama_memory_seq_rm(self.memory(), seq, len, -1) }
    }

    /// Copies a sequence's state behind what `into` holds; `false` on failure.
    pub(crate) fn save_sequence(&mut self, seq: u32, into: &mut Vec<u8>) -> bool {
        let (context, seq, start) = (self.context.0.as_ptr(), self.seq(seq), into.len());
        // SAFETY: the target has the length that is passed.
        unsafe {
            let size = sys::llama_state_seq_get_size(context, seq);
            into.resize(start + size, 0);
            size > 0 && sys::llama_state_seq_get_data(context, into[start..].as_mut_ptr(), size, seq) == size
        }
    }

    /// Puts a saved state into a sequence; `false`, and an empty sequence, on failure.
    pub(crate) fn restore_sequence(&mut self, seq: u32, state: &[u8]) -> bool {
        let (context, seq) = (self.context.0.as_ptr(), self.seq(seq));
        // SAFETY: the source has the length that is passed, which llama.cpp checks each read against.
        unsafe { sys::llama_state_seq_set_data(context, state.as_ptr(), state.len(), seq) == state.len() }
    }

    /// Reads an adapter; `false` when llama.cpp refuses it, with the reason in its log.
    pub(crate) fn load_adapter(&mut self, id: u32, path: &Path) -> bool {
        let Some(path) = c_path(path) else { return false };
        let handle = {
            let _changes = self.model.writes_adapters();
            // SAFETY: the model lives longer than the adapter, and nobody reads the
            // list that the model keeps of its adapters meanwhile.
            NonNull::new(unsafe { sys::llama_adapter_lora_init(self.model.handle.as_ptr(), path.as_ptr()) })
        };
        let Some(handle) = handle else { return false };
        self.adapters.insert(id, Adapter { handle, model: Arc::clone(&self.model) });
        true
    }

    /// Whether an adapter is loaded under this number.
    pub(crate) fn has_adapter(&self, id: u32) -> bool {
        self.adapters.contains_key(&id)
    }

    /// Computes later batches with an adapter, or without one. `false` when it is not loaded.
    pub(crate) fn use_adapter(&mut self, id: Option<u32>) -> bool {
        let mut adapter = match id.map(|id| self.adapters.get(&id)) {
            Some(None) => return false,
            Some(Some(adapter)) => adapter.handle.as_ptr(),
            None => std::ptr::null_mut(),
        };
        let mut scale = 1.0;
        let _list = self.model.reads_adapters();
        // SAFETY: lists of one entry each, or none, which the call copies. The
        // adapter stays until `forget_adapter` or the session's end.
        let is_set = unsafe {
            sys::llama_set_adapters_lora(
                self.context.0.as_ptr(),
                &raw mut adapter,
                usize::from(id.is_some()),
                &raw mut scale,
            ) == 0
        };
        if is_set {
            self.present = id;
        }
        is_set
    }

    /// Frees an adapter. Where it was the present one, later batches are computed
    /// without one until [`Session::use_adapter`] says otherwise.
    ///
    /// # Panics
    /// When the context does not let go of the adapter.
    pub(crate) fn forget_adapter(&mut self, id: u32) {
        if self.present == Some(id) {
            assert!(self.use_adapter(None), "the context would point to freed memory");
        }
        self.adapters.remove(&id);
    }

    fn seq(&self, seq: u32) -> sys::llama_seq_id {
        assert!(seq < self.max_sequences, "sequences are the context's");
        i32::try_from(seq).expect("sequence numbers are small")
    }
}
