//! A loaded model: its weights, its vocabulary's size and its metadata.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use llama_cpp_sys_2 as sys;

use super::{c_path, max_devices, release_freed_memory, text};
use crate::config::{LlamaConfig, Split};

/// Owns a loaded model, which several sessions may share. Its getters only read
/// what never changes after loading.
pub(crate) struct Model {
    pub(super) handle: NonNull<sys::llama_model>,
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
    /// With a `vocabulary` llama.cpp knows how many tokens there are, and none of
    /// them. `progress` gets a part from 0 to 1 and ends the loading with `false`.
    pub(crate) fn load(
        path: &Path,
        config: &LlamaConfig,
        vocabulary: Option<&VocabularySize>,
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
        let overrides = vocabulary.and_then(without_vocabulary);
        if let Some(overrides) = &overrides {
            params.kv_overrides = overrides.as_ptr();
        }
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut progress).cast();
        // SAFETY: `path`, `shares`, `overrides` and `progress` outlive the call, and
        // llama.cpp keeps none of them; `shares` has as many entries as it reads, and
        // the last of `overrides` has no key, where it stops.
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
    pub(super) fn reads_adapters(&self) -> RwLockReadGuard<'_, ()> {
        self.adapters.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while the list of adapters changes.
    pub(super) fn writes_adapters(&self) -> RwLockWriteGuard<'_, ()> {
        self.adapters.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many tokens the model of an architecture has.
pub(crate) struct VocabularySize {
    pub(crate) architecture: String,
    pub(crate) num_tokens: u32,
}

/// Metadata as if the file had no vocabulary, with an end mark; `None` for a key that
/// is longer than llama.cpp takes.
fn without_vocabulary(vocabulary: &VocabularySize) -> Option<[sys::llama_model_kv_override; 3]> {
    let entry = |key: &str, tag| {
        let mut entry = sys::llama_model_kv_override {
            tag,
            key: [0; 128],
            __bindgen_anon_1: sys::llama_model_kv_override__bindgen_ty_1 { val_str: [0; 128] },
        };
        write_text(&mut entry.key, key).then_some(entry)
    };
    let mut kind = entry("tokenizer.ggml.model", sys::LLAMA_KV_OVERRIDE_TYPE_STR)?;
    let mut value = [0; 128];
    write_text(&mut value, "none");
    kind.__bindgen_anon_1.val_str = value;
    let size_key = format!("{}.vocab_size", vocabulary.architecture);
    let mut size = entry(&size_key, sys::LLAMA_KV_OVERRIDE_TYPE_INT)?;
    size.__bindgen_anon_1.val_i64 = i64::from(vocabulary.num_tokens);
    Some([kind, size, entry("", sys::LLAMA_KV_OVERRIDE_TYPE_INT)?])
}

/// Copies a text with a zero behind it; false when there is no room for both.
fn write_text(to: &mut [c_char; 128], text: &str) -> bool {
    let fits = text.len() < to.len();
    to.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte as c_char);
    fits
}

unsafe extern "C" fn on_progress(part: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `Model::load` passes a pointer to its `progress`, which outlives
    // the call and is not used by anyone else meanwhile.
    let progress = unsafe { &mut *user_data.cast::<&mut dyn FnMut(f32) -> bool>() };
    // A panic must not cross into C++; loading ends then.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| progress(part))).unwrap_or(false)
}
