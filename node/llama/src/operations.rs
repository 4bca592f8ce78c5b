//! What each operation of a step takes, timed one at a time. Knows names, numbers and
//! instants, and nothing of llama.cpp but what its graphs call things; `ffi/tap.rs` brings
//! the operations.

use std::time::{Duration, Instant};

/// One operation of a graph, computed alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// ggml's name, such as `MUL_MAT`; of a function of single elements, which one it is, such as `SWIGLU`.
    pub op: String,
    /// What llama.cpp's graph calls the result, such as `Qcur-0`.
    pub tensor: String,
    /// Elements of the result, those that lie side by side first.
    pub shape: [u64; 4],
    /// ggml's name of the memory that the result lies in, such as `CPU` or `CUDA0`.
    pub memory: String,
    /// The weight that it reads, where it reads one.
    pub weight: Option<Weight>,
    /// Multiplications and additions; none but of products of matrices.
    pub flop: Option<u64>,
    /// When the scheduler set out to compute it.
    pub began: Instant,
    /// When it was done, and the device with it.
    pub ended: Instant,
}

/// A tensor of the model's file that an operation reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// In the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// ggml's name of the format that it has in memory, such as `q4_K`.
    pub kind: String,
    /// Elements, those of a row first.
    pub shape: [u64; 4],
    /// Bytes of all of it in this format.
    pub size_bytes: u64,
}

impl Operation {
    /// From its beginning to its end.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended.saturating_duration_since(self.began)
    }

    /// The layer that it belongs to, counted from 0; none for what stands before and behind the layers,
    /// and for results that llama.cpp gives no name of their own.
    #[must_use]
    pub fn layer(&self) -> Option<u32> {
        if let Some(rest) = self.weight.as_ref().and_then(|weight| weight.name.strip_prefix("blk.")) {
            return rest.split('.').next()?.parse().ok();
        }
        let (name, _) = self.tensor.split_once(' ').unwrap_or((&self.tensor, ""));
        let suffix = name.rsplit_once('-').or_else(|| name.rsplit_once("_l"))?.1;
        suffix.parse().ok()
    }

    /// Which of a layer's products of matrices it is: the matrix's name in the file without its layer, such
    /// as `attn_q` or `ffn_down`; `head` for that of the vocabulary; and what the graph calls a product
    /// without a weight, such as `kq`. None for all that is no product.
    #[must_use]
    pub fn part(&self) -> Option<&str> {
        self.flop?;
        let Some(weight) = &self.weight else { return self.tensor.split(['-', ' ']).next() };
        let name = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
        match name {
            "output" | "token_embd" => Some("head"),
            _ => {
                Some(name.strip_prefix("blk.").and_then(|rest| Some(rest.split_once('.')?.1)).unwrap_or(name))
            }
        }
    }
}

/// All operations since timing began, in their order.
#[derive(Debug)]
pub(crate) struct Operations {
    done: Vec<Operation>,
    began: Instant,
}

impl Operations {
    pub(crate) fn new() -> Operations {
        Operations { done: Vec::new(), began: Instant::now() }
    }

    /// The next operation begins now.
    pub(crate) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// When the present operation began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn add(&mut self, operation: Operation) {
        self.done.push(operation);
    }

    pub(crate) fn into_done(self) -> Vec<Operation> {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(tensor: &str, weight: Option<&str>, flop: Option<u64>) -> Operation {
        let now = Instant::now();
        let weight = weight.map(|name| Weight {
            name: name.to_owned(),
            kind: "q4_K".to_owned(),
            shape: [256, 256, 1, 1],
            size_bytes: 36_864,
        });
        let (op, memory) = ("MUL_MAT".to_owned(), "CPU".to_owned());
        Operation {
            op,
            tensor: tensor.to_owned(),
            shape: [1; 4],
            memory,
            weight,
            flop,
            began: now,
            ended: now,
        }
    }

    #[test]
    fn layers_are_read_from_weights_and_results() {
        let cases = [
            ("node_7", Some("blk.12.attn_q.bias"), Some(12)),
            ("l_out-3", None, Some(3)),
            ("Qcur-21 (reshaped)", None, Some(21)),
            ("cache_k_l4 (view)", None, Some(4)),
            ("result_output", Some("output.weight"), None),
            ("node_7", None, None),
            ("attn-", None, None),
            ("", None, None),
        ];
        for (tensor, weight, layer) in cases {
            assert_eq!(operation(tensor, weight, None).layer(), layer, "{tensor} {weight:?}");
        }
    }

    #[test]
    fn products_are_named_after_their_matrices() {
        let cases = [
            ("Qcur-0", Some("blk.0.attn_q.weight"), Some("attn_q")),
            ("result_output", Some("output.weight"), Some("head")),
            ("result_output", Some("token_embd.weight"), Some("head")),
            ("x", Some("cls.weight"), Some("cls")),
            ("kq-5", None, Some("kq")),
        ];
        for (tensor, weight, part) in cases {
            assert_eq!(operation(tensor, weight, Some(8)).part(), part, "{tensor} {weight:?}");
        }
        assert_eq!(operation("Qcur-0", Some("blk.0.attn_q.bias"), None).part(), None, "a sum is no product");
    }
}
