//! Which kernels there are, and the values that each of their axes may take.
//!
//! The build script reads this file too: it makes and validates every combination.

/// One file in `wgsl/`, without its extension, and the axes of its variants.
pub(crate) struct Entry {
    pub name: &'static str,
    pub axes: &'static [(&'static str, &'static [&'static str])],
}

/// Whether threads of a subgroup add up together, or all of a workgroup in a tree.
const SUBGROUPS: (&str, &[&str]) = ("SUBGROUPS", &["0", "1"]);

/// Whether threads hand each other what they read, in subgroups of eight.
const SHARE: (&str, &[&str]) = ("SHARE", &["0", "1"]);

/// How a matrix is stored.
const QUANT: (&str, &[&str]) =
    ("QUANT", &["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"]);

/// Whether planes of weights, and what is multiplied with them, are textures.
const TEXELS: (&str, &[&str]) = ("TEXELS", &["0", "1"]);

/// Values of an attention head.
const DIM: (&str, &[&str]) = ("DIM", &["64", "128"]);

/// Query heads that share a key-value head.
const GROUP: (&str, &[&str]) = ("GROUP", &["1", "2", "3", "4", "5", "6", "7", "8"]);

/// How attention takes rows that are longer than a part: there are none, one workgroup takes all parts, or each
/// has its own.
const PARTS: (&str, &[&str]) = ("PARTS", &["one", "all", "each"]);

/// All kernels.
pub(crate) const KERNELS: &[Entry] = &[
    Entry { name: "attention", axes: &[DIM, GROUP, SHARE, PARTS] },
    Entry { name: "attention_merge", axes: &[DIM] },
    Entry { name: "copy", axes: &[] },
    Entry { name: "embed", axes: &[QUANT, TEXELS] },
    Entry { name: "halve", axes: &[] },
    Entry { name: "lora_expand", axes: &[] },
    Entry { name: "lora_shrink", axes: &[] },
    Entry { name: "matmul", axes: &[QUANT, ("COLS", &["1", "2", "4", "8", "16"]), SHARE, TEXELS] },
    Entry { name: "matmul_coop", axes: &[QUANT, ("LANES", &["8", "32"]), ("WIDE", &["0", "1"])] },
    Entry { name: "matmul_tile", axes: &[QUANT, TEXELS] },
    Entry { name: "rms_norm", axes: &[SUBGROUPS] },
    Entry { name: "rope_store", axes: &[DIM, ("NORM", &["0", "1"]), SUBGROUPS] },
    Entry { name: "sample_draw", axes: &[] },
    Entry { name: "sample_scan", axes: &[] },
    Entry { name: "swiglu", axes: &[] },
];
