//! The fence around llama.cpp: the only file of the node that names C symbols
//! and the only one with `unsafe`.
//!
//! Mostly safe: every handle has one owner and one `Drop`, every length, index
//! and batch size that llama.cpp would abort the process for is checked here.
//! What is left to callers: rows must continue their sequences (llama.cpp
//! refuses the batch otherwise), and a context must be large enough for its
//! machine. C++ exceptions that llama.cpp does not catch itself (out of memory
//! in the middle of a step) end the process.
#![expect(unsafe_code, reason = "llama.cpp is a C library; this file is the fence around it")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use llama_cpp_sys_2 as sys;
use quern_engine::{Output, Row};

use crate::config::{FlashAttention, KvType, LlamaConfig, Split};
use crate::log::{self, Level};

// === Process-wide state ===

/// Sends llama.cpp's log lines to [`crate::log`].
pub(crate) fn route_log() {
    static ROUTED: Once = Once::new();
    // SAFETY: `on_log` has the expected signature, lives forever and uses no user data.
    ROUTED.call_once(|| unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) });
}

/// Prepares llama.cpp. Only after plug-ins are loaded: where it finds none, it
/// would load those of the folder that it was built in.
pub(crate) fn init() {
    static INIT: Once = Once::new();
    // SAFETY: called once, under the lock of `backends::load_once`.
    INIT.call_once(|| unsafe { sys::llama_backend_init() });
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a zero-terminated string that lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let level = match level {
        sys::GGML_LOG_LEVEL_CONT => None,
        sys::GGML_LOG_LEVEL_DEBUG => Some(Level::Debug),
        sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
        sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
        _ => Some(Level::Info),
    };
    // A panic must not cross into C++; the line is lost then.
    let _ = std::panic::catch_unwind(|| log::on_text(level, &text));
}

/// Loads one plug-in; says whether ggml took it.
pub(crate) fn load_plugin(file: &Path) -> bool {
    let Some(file) = c_path(file) else { return false };
    // SAFETY: a zero-terminated path. Callers hold the lock of `backends::load_once`.
    !unsafe { sys::ggml_backend_load(file.as_ptr()) }.is_null()
}

/// Loads the best plug-in of each kind that lies in `folder`.
pub(crate) fn load_plugins_in(folder: &Path) {
    let Some(folder) = c_path(folder) else { return };
    // SAFETY: a zero-terminated path. Callers hold the lock of `backends::load_once`.
    unsafe { sys::ggml_backend_load_all_from_path(folder.as_ptr()) }
}

/// Whether a CPU backend is loaded.
pub(crate) fn has_cpu() -> bool {
    // SAFETY: reads ggml's registry.
    !unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) }.is_null()
}

/// A device that ggml can compute on: name, description, whether it is a GPU,
/// free and total memory in bytes.
pub(crate) fn devices() -> Vec<(String, String, bool, u64, u64)> {
    // SAFETY: indices are below the count; ggml keeps devices and their names
    // for the life of the process.
    unsafe {
        let device = |idx| {
            let device = sys::ggml_backend_dev_get(idx);
            let kind = sys::ggml_backend_dev_type(device);
            let is_gpu =
                kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU;
            let (mut free, mut total) = (0, 0);
            sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
            let name = text(sys::ggml_backend_dev_name(device));
            let description = text(sys::ggml_backend_dev_description(device));
            (name, description, is_gpu, free as u64, total as u64)
        };
        (0..sys::ggml_backend_dev_count()).map(device).collect()
    }
}

/// The instruction sets and options that the loaded backends use.
pub(crate) fn system_info() -> String {
    // SAFETY: the string is static; callers hold the lock of `engine`'s loading.
    unsafe { text(sys::llama_print_system_info()) }
}

/// llama.cpp's own version.
pub(crate) fn version() -> String {
    // SAFETY: the string is static.
    unsafe { text(sys::llama_version()) }
}

/// Hands memory that was freed back to the system, as far as the allocator can:
/// glibc keeps what many threads allocated and freed, and loading frees much.
pub(crate) fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's own, with this signature; safe to call at any time from any thread.
        unsafe { malloc_trim(0) };
    }
}

/// Entries in a list of shares of devices.
pub(crate) fn max_devices() -> usize {
    // SAFETY: returns a constant.
    unsafe { sys::llama_max_devices() }
}

/// # Safety
/// `chars` is null or a zero-terminated string.
unsafe fn text(chars: *const c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned()
}

fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).ok()
}

// === Model ===

/// Owns a loaded model, which several sessions may share. Its getters only read
/// what never changes after loading.
pub(crate) struct Model {
    handle: NonNull<sys::llama_model>,
    /// Guards the one thing that does change: the model's list of adapters. It
    /// is written when one is loaded or freed, and read whenever a context plans
    /// its computation.
    adapters: RwLock<()>,
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: created by `Model::load`, freed only here. Each session holds a
        // share of its model, and drops its context and adapters before it.
        unsafe { sys::llama_model_free(self.handle.as_ptr()) }
        // A node that goes without a model for a while should be as small as it looks.
        release_freed_memory();
    }
}

// SAFETY: llama.cpp binds a model to no thread.
unsafe impl Send for Model {}

// SAFETY: once loaded, a model is only read: llama.cpp's contexts hold it as
// `const llama_model &`, compute with its tensors as inputs, and have backends,
// buffers and thread pools of their own. The one exception is its set of
// adapters, which `llama_adapter_lora_init` and `_free` write and contexts read
// while they plan; `adapters` keeps these apart.
unsafe impl Sync for Model {}

impl Model {
    /// Loads a model; `None` when llama.cpp refuses it, with the reason in its log.
    /// `progress` gets a part from 0 to 1 and ends the loading with `false`.
    pub(crate) fn load(
        path: &Path,
        config: &LlamaConfig,
        mut progress: &mut dyn FnMut(f32) -> bool,
    ) -> Option<Model> {
        let path = c_path(path)?;
        let mut shares = config.tensor_split.clone();
        shares.resize(max_devices(), 0.0);
        // SAFETY: returns a plain struct.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers =
            config.gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX));
        params.split_mode = match config.split {
            Split::None => sys::LLAMA_SPLIT_MODE_NONE,
            Split::Layer => sys::LLAMA_SPLIT_MODE_LAYER,
            Split::Row => sys::LLAMA_SPLIT_MODE_ROW,
        };
        params.main_gpu = i32::try_from(config.main_gpu).unwrap_or(0);
        if !config.tensor_split.is_empty() {
            params.tensor_split = shares.as_ptr();
        }
        params.load_mode = match (config.mmap, config.mlock) {
            (false, false) => sys::LLAMA_LOAD_MODE_NONE,
            (true, false) => sys::LLAMA_LOAD_MODE_MMAP,
            (false, true) => sys::LLAMA_LOAD_MODE_MLOCK,
            (true, true) => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
        };
        params.check_tensors = false;
        params.use_extra_bufts = config.repack;
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut progress).cast();
        // SAFETY: `path`, `shares` and `progress` outlive the call, and llama.cpp
        // keeps none of them; `shares` has as many entries as it reads.
        NonNull::new(unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) })
            .map(|handle| Model { handle, adapters: RwLock::new(()) })
    }

    /// A value of the file's metadata, as text.
    pub(crate) fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = [0 as c_char; 256];
        // SAFETY: the buffer has the length that is passed; llama.cpp ends it with a zero.
        unsafe {
            let len = sys::llama_model_meta_val_str(
                self.handle.as_ptr(),
                key.as_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
            );
            (len >= 0).then(|| text(buffer.as_ptr()))
        }
    }

    /// Kind, size and format in a few words.
    pub(crate) fn description(&self) -> String {
        let mut buffer = [0 as c_char; 256];
        // SAFETY: the buffer has the length that is passed; llama.cpp ends it with a zero.
        unsafe {
            sys::llama_model_desc(self.handle.as_ptr(), buffer.as_mut_ptr(), buffer.len());
            text(buffer.as_ptr())
        }
    }

    /// Whether one token after another is computed from keys and values, and
    /// nothing else: only then can sequences be shared and cut anywhere.
    pub(crate) fn is_plain_decoder(&self) -> bool {
        let model = self.handle.as_ptr();
        // SAFETY: the model lives; these only read it.
        unsafe {
            sys::llama_model_has_decoder(model)
                && !sys::llama_model_has_encoder(model)
                && !sys::llama_model_is_recurrent(model)
                && !sys::llama_model_is_hybrid(model)
                && !sys::llama_model_is_diffusion(model)
        }
    }

    pub(crate) fn vocab_size(&self) -> usize {
        // SAFETY: the model lives, and its vocabulary as long.
        let count = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.handle.as_ptr())) };
        usize::try_from(count).unwrap_or(0)
    }

    pub(crate) fn hidden_size(&self) -> usize {
        // SAFETY: the model lives; this only reads it.
        usize::try_from(unsafe { sys::llama_model_n_embd(self.handle.as_ptr()) }).unwrap_or(0)
    }

    pub(crate) fn num_layers(&self) -> u32 {
        // SAFETY: the model lives; this only reads it.
        u32::try_from(unsafe { sys::llama_model_n_layer(self.handle.as_ptr()) }).unwrap_or(0)
    }

    pub(crate) fn trained_context(&self) -> u32 {
        // SAFETY: the model lives; this only reads it.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.handle.as_ptr()) }).unwrap_or(0)
    }

    pub(crate) fn num_params(&self) -> u64 {
        // SAFETY: the model lives; this only reads it.
        unsafe { sys::llama_model_n_params(self.handle.as_ptr()) }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        // SAFETY: the model lives; this only reads it.
        unsafe { sys::llama_model_size(self.handle.as_ptr()) }
    }

    /// To be held while the list of adapters may be read. It guards nothing on
    /// our side that a panic could leave half done.
    fn reads_adapters(&self) -> RwLockReadGuard<'_, ()> {
        self.adapters.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while the list of adapters changes.
    fn writes_adapters(&self) -> RwLockWriteGuard<'_, ()> {
        self.adapters.write().unwrap_or_else(PoisonError::into_inner)
    }
}

unsafe extern "C" fn on_progress(part: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `Model::load` passes a pointer to its `progress`, which outlives
    // the call and is not used by anyone else meanwhile.
    let progress = unsafe { &mut *user_data.cast::<&mut dyn FnMut(f32) -> bool>() };
    // A panic must not cross into C++; loading ends then.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| progress(part))).unwrap_or(false)
}

// === Handles that a session owns beside its model ===

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

/// Owns what the evaluation callback works on. It is reached through this
/// pointer only, on both sides of the fence.
struct Tap(NonNull<TapState>);

/// Takes the final hidden states out of a running computation.
struct TapState {
    /// Whether this step wants them.
    wanted: bool,
    /// Whether the computation may end there, because no row wants logits.
    ends: bool,
    hidden_size: usize,
    /// `[num_outputs, hidden_size]` of the present step.
    rows: Vec<f32>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: made from a box by `Session::new`; the context that also
        // holds the pointer is dropped before.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The tensor that model graphs call their hidden states after the final norm.
const HIDDEN_TENSOR: &[u8] = b"result_norm\0";

/// ggml asks for each tensor of the graph, before computing it, whether anyone
/// wants to see it, and shows it afterwards; `false` then ends the computation.
unsafe extern "C" fn on_tensor(tensor: *mut sys::ggml_tensor, asks: bool, user_data: *mut c_void) -> bool {
    // SAFETY: the pointer that `Session::new` passed; the state lives as long as
    // the context, and `Session` holds no reference to it during `llama_decode`.
    let state = unsafe { &mut *user_data.cast::<TapState>() };
    if !state.wanted {
        return !asks;
    }
    // SAFETY: ggml passes a tensor of the running graph.
    let view = unsafe { &*tensor };
    let is_hidden = view.name.iter().zip(HIDDEN_TENSOR).all(|(&have, &want)| have as u8 == want);
    let num_rows = usize::try_from(view.ne[1]).unwrap_or(0);
    let is_rows = view.type_ == sys::GGML_TYPE_F32
        && usize::try_from(view.ne[0]) == Ok(state.hidden_size)
        && view.nb[0] == size_of::<f32>()
        && view.nb[1] == state.hidden_size * size_of::<f32>()
        && view.ne[2..] == [1, 1];
    if !is_hidden || !is_rows || num_rows == 0 {
        return !asks;
    }
    if asks {
        return true;
    }
    let old_len = state.rows.len();
    state.rows.resize(old_len + num_rows * state.hidden_size, 0.0);
    let target = &mut state.rows[old_len..];
    // SAFETY: the tensor is contiguous f32 of exactly this size (checked above),
    // and ggml has computed it.
    unsafe { sys::ggml_backend_tensor_get(tensor, target.as_mut_ptr().cast(), 0, size_of_val(target)) };
    !state.ends
}

// === Session ===

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
    model: Arc<Model>,
    tap: Tap,
    batch: BatchArrays,
    max_outputs: usize,
    max_sequences: u32,
}

// SAFETY: a session owns all of its handles but the model, which may be shared,
// and llama.cpp binds none of them to a thread: its thread pools are its own, and the log callback finds its state
// by the calling thread. `&mut self` keeps calls apart. It is not `Sync`.
unsafe impl Send for Session {}

/// The arrays behind a `llama_batch`, kept between steps.
#[derive(Default)]
struct BatchArrays {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    num_seqs: Vec<i32>,
    seqs: Vec<sys::llama_seq_id>,
    seq_pointers: Vec<*mut sys::llama_seq_id>,
    outputs: Vec<i8>,
}

impl Session {
    /// Creates a context with checked sizes; `None` when llama.cpp refuses, with
    /// the reason in its log. `threads` are those for one row and for several.
    pub(crate) fn new(model: Arc<Model>, config: &LlamaConfig, threads: (u32, u32)) -> Option<Session> {
        let hidden_size = model.hidden_size();
        let state = Box::new(TapState { wanted: false, ends: false, hidden_size, rows: Vec::new() });
        let tap = Tap(NonNull::from(Box::leak(state)));
        let kv_type = match config.kv_type {
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
    pub(crate) fn decode(&mut self, rows: &[Row]) -> Decode {
        let count = |wanted: Output| rows.iter().filter(|row| row.output == wanted).count();
        let (num_logits, num_hidden) = (count(Output::Logits), count(Output::Hidden));
        assert!(!rows.is_empty() && rows.len() <= self.max_rows(), "rows are within the context's batch");
        assert!(num_logits + num_hidden <= self.max_outputs, "outputs are within the context's buffer");
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
        match unsafe { sys::llama_decode(self.context.0.as_ptr(), batch) } {
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
        unsafe {
            sys::llama_set_adapters_lora(
                self.context.0.as_ptr(),
                &raw mut adapter,
                usize::from(id.is_some()),
                &raw mut scale,
            ) == 0
        }
    }

    /// Frees an adapter; later batches are computed without one until
    /// [`Session::use_adapter`] says otherwise.
    pub(crate) fn forget_adapter(&mut self, id: u32) {
        self.use_adapter(None);
        self.adapters.remove(&id);
    }

    fn seq(&self, seq: u32) -> sys::llama_seq_id {
        assert!(seq < self.max_sequences, "sequences are the context's");
        i32::try_from(seq).expect("sequence numbers are small")
    }
}

impl BatchArrays {
    /// Lays `rows` out as llama.cpp wants them. The result points into `self`.
    fn fill(&mut self, rows: &[Row]) -> sys::llama_batch {
        let signed = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        self.tokens.clear();
        self.tokens.extend(rows.iter().map(|row| signed(row.token)));
        self.positions.clear();
        self.positions.extend(rows.iter().map(|row| position(row.pos)));
        self.num_seqs.clear();
        self.num_seqs.resize(rows.len(), 1);
        self.seqs.clear();
        self.seqs.extend(rows.iter().map(|row| signed(row.seq)));
        self.seq_pointers.clear();
        self.seq_pointers.extend(self.seqs.iter_mut().map(std::ptr::from_mut));
        self.outputs.clear();
        self.outputs.extend(rows.iter().map(|row| i8::from(row.output != Output::None)));
        sys::llama_batch {
            n_tokens: i32::try_from(rows.len()).expect("batches are small"),
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.num_seqs.as_mut_ptr(),
            seq_id: self.seq_pointers.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }
}

fn position(pos: u32) -> sys::llama_pos {
    i32::try_from(pos).unwrap_or(i32::MAX)
}
