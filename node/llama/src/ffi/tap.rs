//! Looks into a running computation: takes the final hidden states out of it, at
//! the tensor behind the final norm, adds up what goes into its matrices, and times
//! its operations.
//!
//! ggml's scheduler walks over the nodes of a graph and asks for each whether anybody
//! wants to see it. Nodes up to the first that somebody wants are computed together,
//! then the device is waited for, and the node is shown. So whoever wants every node
//! has each computed alone, from the last question to its showing.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::text;
use crate::inputs::{Inputs, name_in_file};
use crate::operations::{Operation, Operations, Weight};

/// Owns what the evaluation callback works on. It is reached through this
/// pointer only, on both sides of the fence.
pub(super) struct Tap(pub(super) NonNull<TapState>);

/// What is looked for, and what was found.
pub(super) struct TapState {
    /// Whether this step wants hidden states.
    pub(super) wanted: bool,
    /// Whether the computation may end there, because no row wants logits.
    pub(super) ends: bool,
    hidden_size: usize,
    /// `[num_outputs, hidden_size]` of the present step.
    pub(super) rows: Vec<f32>,
    /// What went into the model's matrices, where that is measured.
    pub(super) inputs: Option<Inputs>,
    /// What operations take, where they are timed.
    pub(super) operations: Option<Operations>,
    /// A panic of the callback, on its way around C.
    pub(super) panic: Option<Box<dyn Any + Send>>,
}

impl TapState {
    /// Looks for nothing yet.
    pub(super) fn new(hidden_size: usize) -> TapState {
        let (rows, inputs, operations, panic) = (Vec::new(), None, None, None);
        TapState { wanted: false, ends: false, hidden_size, rows, inputs, operations, panic }
    }
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
    if state.panic.is_some() {
        // What is computed still is of no use.
        return false;
    }
    // SAFETY: as the caller promises.
    let looked = catch_unwind(AssertUnwindSafe(|| unsafe { look(state, tensor, asks) }));
    // A panic must not cross into C++; `Session::decode` lets it go on.
    looked.unwrap_or_else(|panic| {
        state.panic = Some(panic);
        false
    })
}

/// # Safety
/// `tensor` is of the running graph; unless `asks`, it was computed just now.
unsafe fn look(state: &mut TapState, tensor: *mut sys::ggml_tensor, asks: bool) -> bool {
    if !state.wanted && state.inputs.is_none() && state.operations.is_none() {
        return !asks;
    }
    // Before anything else: what follows is our own work.
    let now = Instant::now();
    // SAFETY: ggml passes a tensor of the running graph.
    let view = unsafe { &*tensor };
    if let Some(operations) = state.operations.as_mut().filter(|_| !asks) {
        // SAFETY: as above.
        let operation = unsafe { operation(view, operations.began(), now) };
        operations.add(operation);
    }
    // SAFETY: as the caller promises.
    let answer = unsafe { look_at_values(state, tensor, asks) };
    match &mut state.operations {
        Some(operations) if asks => {
            let answer = answer || computes(view);
            operations.begin();
            answer
        }
        _ => answer,
    }
}

/// Takes hidden states and inputs, where they are wanted.
///
/// # Safety
/// As for [`look`].
unsafe fn look_at_values(state: &mut TapState, tensor: *mut sys::ggml_tensor, asks: bool) -> bool {
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
    let name = name_of(matrix);
    let Some(name) = Inputs::weight_name(&name) else { return false };
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

/// Whether a node has work to do: others only look at values in another way, or have none.
fn computes(view: &sys::ggml_tensor) -> bool {
    let looks_only = [
        sys::GGML_OP_NONE,
        sys::GGML_OP_RESHAPE,
        sys::GGML_OP_VIEW,
        sys::GGML_OP_PERMUTE,
        sys::GGML_OP_TRANSPOSE,
    ];
    !looks_only.contains(&view.op) && view.ne.iter().all(|&len| len > 0)
}

/// What was computed just now.
///
/// # Safety
/// `view` is of the running graph.
unsafe fn operation(view: &sys::ggml_tensor, began: Instant, ended: Instant) -> Operation {
    // SAFETY: ggml keeps pointers to the sources of a node of the running graph.
    let mut sources = view.src.iter().filter_map(|source| unsafe { source.as_ref() });
    let first = sources.clone().next();
    let is_product = [sys::GGML_OP_MUL_MAT, sys::GGML_OP_MUL_MAT_ID].contains(&view.op);
    let shape = shape_of(view);
    let num_elements = shape.iter().product::<u64>();
    let flop = first.filter(|_| is_product).map(|matrix| 2 * shape_of(matrix)[0] * num_elements);
    // SAFETY: ggml's names are static and zero-terminated, those of a buffer live as long as
    // the buffer, and the buffer of a tensor that was computed as long as the graph.
    let (op, memory) = unsafe {
        let buffer = view.buffer;
        let memory =
            if buffer.is_null() { String::new() } else { text(sys::ggml_backend_buffer_name(buffer)) };
        (text(sys::ggml_op_desc(view)), memory)
    };
    let weight = sources.find_map(weight);
    Operation { op, tensor: name_of(view), shape, memory, weight, flop, began, ended }
}

/// A source that is a tensor of the model's file.
fn weight(source: &sys::ggml_tensor) -> Option<Weight> {
    let in_graph = name_of(source);
    let name = name_in_file(&in_graph);
    if ![".weight", ".bias"].iter().any(|suffix| name.ends_with(suffix)) {
        return None;
    }
    // SAFETY: reads the tensor; ggml's names of types are static.
    let (kind, size_bytes) =
        unsafe { (text(sys::ggml_type_name(source.type_)), sys::ggml_nbytes(source) as u64) };
    Some(Weight { name: name.to_owned(), kind, shape: shape_of(source), size_bytes })
}

fn shape_of(tensor: &sys::ggml_tensor) -> [u64; 4] {
    tensor.ne.map(|len| u64::try_from(len).unwrap_or(0))
}

/// A zero-terminated array of C's char.
fn name_of(tensor: &sys::ggml_tensor) -> String {
    let bytes = tensor.name.map(|c| c as u8);
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of the final hidden states with this many rows of one number.
    fn hidden(num_rows: i64) -> sys::ggml_tensor {
        // SAFETY: a plain struct of numbers and pointers, which may be null.
        let mut tensor: sys::ggml_tensor = unsafe { std::mem::zeroed() };
        tensor.type_ = sys::GGML_TYPE_F32;
        (tensor.ne, tensor.nb[0], tensor.nb[1]) = ([1, num_rows, 1, 1], 4, 4);
        for (to, &from) in tensor.name.iter_mut().zip(HIDDEN_TENSOR) {
            *to = from as std::ffi::c_char;
        }
        tensor
    }

    #[test]
    fn a_panic_is_kept_and_ends_the_computation() {
        let mut state = TapState::new(1);
        state.wanted = true;
        let mut tensor = hidden(i64::MAX);
        let mut see = |state: &mut TapState, asks| {
            let state: *mut TapState = state;
            // SAFETY: both live for the call, and nobody else refers to them.
            unsafe { on_tensor(&raw mut tensor, asks, state.cast()) }
        };
        assert!(see(&mut state, true) && state.panic.is_none(), "it is what is looked for");
        // No memory holds so many rows.
        assert!(!see(&mut state, false), "the computation ends");
        assert!(state.panic.is_some());
        assert!(!see(&mut state, true), "nothing is looked for any more");
    }

    #[test]
    fn views_and_empty_results_are_no_operations() {
        let mut tensor = hidden(3);
        assert!(!computes(&tensor), "a leaf");
        tensor.op = sys::GGML_OP_MUL_MAT;
        assert!(computes(&tensor));
        tensor.ne[1] = 0;
        assert!(!computes(&tensor), "no rows");
        (tensor.op, tensor.ne[1]) = (sys::GGML_OP_RESHAPE, 3);
        assert!(!computes(&tensor), "a view");
    }
}
