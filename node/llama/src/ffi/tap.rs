//! Looks into a running computation: takes the final hidden states out of it, at
//! the tensor behind the final norm, and adds up what goes into its matrices.

use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::inputs::Inputs;

/// Owns what the evaluation callback works on. It is reached through this
/// pointer only, on both sides of the fence.
pub(super) struct Tap(pub(super) NonNull<TapState>);

/// What is looked for, and what was found.
pub(super) struct TapState {
    /// Whether this step wants hidden states.
    pub(super) wanted: bool,
    /// Whether the computation may end there, because no row wants logits.
    pub(super) ends: bool,
    pub(super) hidden_size: usize,
    /// `[num_outputs, hidden_size]` of the present step.
    pub(super) rows: Vec<f32>,
    /// What went into the model's matrices, where that is measured.
    pub(super) inputs: Option<Inputs>,
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
    if !state.wanted && state.inputs.is_none() {
        return !asks;
    }
    // SAFETY: ggml passes a tensor of the running graph.
    let view = unsafe { &*tensor };
    if let Some(inputs) = &mut state.inputs {
        // SAFETY: as above; it was computed just now, unless `asks`.
        if unsafe { add_input(view, asks, inputs) } {
            return true;
        }
    }
    if !state.wanted {
        return !asks;
    }
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

/// Adds what went into a product with one of the model's matrices to the sums; says
/// whether the tensor is such a product.
///
/// # Safety
/// `product` is of the running graph and, unless `asks`, was computed just now: only
/// then does its input still hold its values.
unsafe fn add_input(product: &sys::ggml_tensor, asks: bool, inputs: &mut Inputs) -> bool {
    if product.op != sys::GGML_OP_MUL_MAT {
        return false;
    }
    let [matrix, input] = [product.src[0], product.src[1]];
    // SAFETY: ggml keeps pointers to the sources of a node of the running graph.
    let (Some(matrix), Some(view)) = (unsafe { matrix.as_ref() }, unsafe { input.as_ref() }) else {
        return false;
    };
    // The name is a zero-terminated array of C's char.
    let name = matrix.name.map(|c| c as u8);
    let name = name.split(|&byte| byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
    let Some(name) = name.and_then(Inputs::weight_name) else { return false };
    let (row_len, num_rows) = (usize::try_from(view.ne[0]), usize::try_from(view.ne[1]));
    let (Ok(row_len), Ok(num_rows)) = (row_len, num_rows) else { return false };
    let is_rows = view.type_ == sys::GGML_TYPE_F32
        && view.nb[0] == size_of::<f32>()
        && view.nb[1] == row_len * size_of::<f32>()
        && view.ne[2..] == [1, 1];
    if !is_rows || row_len == 0 || num_rows == 0 {
        return false;
    }
    if !asks {
        let values = inputs.buffer(row_len * num_rows);
        // SAFETY: the tensor is contiguous f32 of exactly this size (checked above),
        // and what follows its product in the graph has not been computed yet.
        unsafe { sys::ggml_backend_tensor_get(input, values.as_mut_ptr().cast(), 0, size_of_val(values)) };
        inputs.add(name, row_len);
    }
    true
}
