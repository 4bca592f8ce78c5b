//! Rows laid out as llama.cpp wants them.

use llama_cpp_sys_2 as sys;
use quern_engine::{Output, Row};

/// The arrays behind a `llama_batch`, kept between steps.
#[derive(Default)]
pub(super) struct BatchArrays {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    num_seqs: Vec<i32>,
    seqs: Vec<sys::llama_seq_id>,
    seq_pointers: Vec<*mut sys::llama_seq_id>,
    outputs: Vec<i8>,
}

impl BatchArrays {
    /// Lays `rows` out as llama.cpp wants them. The result points into `self`.
    pub(super) fn fill(&mut self, rows: &[Row]) -> sys::llama_batch {
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

pub(super) fn position(pos: u32) -> sys::llama_pos {
    i32::try_from(pos).unwrap_or(i32::MAX)
}
