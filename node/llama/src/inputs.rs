//! What goes into a model's matrices: the squares of each column of their inputs,
//! added up over steps. Knows names and numbers, and nothing of llama.cpp; `ffi/tap.rs`
//! brings the inputs.

use std::collections::BTreeMap;

/// The inputs of one matrix, added up.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixInputs {
    /// The matrix in the model's file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The sum of squares of each column of the inputs; as many as the matrix's rows are long.
    pub sums: Vec<f64>,
    /// How many inputs were added.
    pub num_rows: u64,
}

/// The file's name of a tensor that a graph names. Copies for another device are
/// called `DEVICE#name#number`.
pub(crate) fn name_in_file(in_graph: &str) -> &str {
    in_graph.split('#').nth(1).unwrap_or(in_graph)
}

/// Sums of all matrices that were met so far.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    sums: BTreeMap<String, (Vec<f64>, u64)>,
    buffer: Vec<f32>,
}

impl Inputs {
    /// The file's name of a matrix as a graph calls it, if it is one of the model's
    /// weights and not an adapter's.
    pub(crate) fn weight_name(in_graph: &str) -> Option<&str> {
        let name = name_in_file(in_graph);
        name.ends_with(".weight").then_some(name)
    }

    /// Room for the next matrix's inputs, to be filled before [`Inputs::add`].
    pub(crate) fn buffer(&mut self, len: usize) -> &mut [f32] {
        self.buffer.resize(len, 0.0);
        &mut self.buffer
    }

    /// Adds the rows in the buffer. Rows of another length than a matrix had before
    /// are no inputs of it and are passed over.
    pub(crate) fn add(&mut self, name: &str, row_len: usize) {
        if !self.sums.contains_key(name) {
            self.sums.insert(name.to_owned(), (vec![0.0; row_len], 0));
        }
        let Some((sums, num_rows)) = self.sums.get_mut(name).filter(|(sums, _)| sums.len() == row_len) else {
            return;
        };
        for row in self.buffer.chunks_exact(row_len) {
            *num_rows += 1;
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) * f64::from(value));
        }
    }

    pub(crate) fn into_matrices(self) -> Vec<MatrixInputs> {
        let matrices = self.sums.into_iter();
        matrices.map(|(name, (sums, num_rows))| MatrixInputs { name, sums, num_rows }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_added_by_column() {
        let mut inputs = Inputs::default();
        inputs.buffer(4).copy_from_slice(&[1.0, 2.0, -3.0, 4.0]);
        inputs.add("a.weight", 2);
        inputs.buffer(2).copy_from_slice(&[0.5, 0.0]);
        inputs.add("a.weight", 2);
        inputs.buffer(3);
        inputs.add("a.weight", 3);
        let [a] = &inputs.into_matrices()[..] else { panic!("one matrix was met") };
        assert_eq!((a.sums.as_slice(), a.num_rows), ([10.25, 20.0].as_slice(), 3));
    }

    #[test]
    fn only_the_models_weights_count() {
        assert_eq!(Inputs::weight_name("blk.0.attn_q.weight"), Some("blk.0.attn_q.weight"));
        assert_eq!(Inputs::weight_name("CUDA0#blk.1.ffn_up.weight#0"), Some("blk.1.ffn_up.weight"));
        assert_eq!(Inputs::weight_name("blk.0.attn_q.weight.lora_a"), None);
        assert_eq!(Inputs::weight_name("cache_k_l0 (view)"), None);
    }
}
