//! Takes the final hidden states out of a running computation, at the tensor
//! behind the final norm.

use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

/// Owns what the evaluation callback works on. It is reached through this
/// pointer only, on both sides of the fence.
pub(super) struct Tap(pub(super) NonNull<TapState>);

/// Takes the final hidden states out of a running computation.
pub(super) struct TapState {
    /// Whether this step wants them.
    pub(super) wanted: bool,
    /// Whether the computation may end there, because no row wants logits.
    pub(super) ends: bool,
    pub(super) hidden_size: usize,
    /// `[num_outputs, hidden_size]` of the present step.
    pub(super) rows: Vec<f32>,
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
///
/// # Safety
/// `tensor` is of the running graph, and `user_data` a [`TapState`] that nobody else refers to.
pub(super) unsafe extern "C" fn on_tensor(
    tensor: *mut sys::ggml_tensor,
    asks: bool,
    user_data: *mut c_void,
) -> bool {
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
