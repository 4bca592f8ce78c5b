//! The fence around llama.cpp: this file and its folder are the only place of the
//! node that names C symbols, and the only one with `unsafe`. Here stands what
//! belongs to the whole process; a model is in `model.rs`, a context on it in
//! `session.rs`, its batches in `batch.rs`, and the way to hidden states in `tap.rs`.
//!
//! Mostly safe: every handle has one owner and one `Drop`, every length, index
//! and batch size that llama.cpp would abort the process for is checked here.
//! What is left to callers: rows must continue their sequences (llama.cpp
//! refuses the batch otherwise), and a context must be large enough for its
//! machine. C++ exceptions that llama.cpp does not catch itself (out of memory
//! in the middle of a step) end the process.
#![expect(unsafe_code, reason = "llama.cpp is a C library; this file is the fence around it")]

mod batch;
mod model;
mod session;
mod tap;

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use crate::log::{self, Level};

pub(crate) use model::{Model, VocabularySize};
pub(crate) use session::{Decode, Session};

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
