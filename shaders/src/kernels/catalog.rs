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

/// All kernels.
pub(crate) const KERNELS: &[Entry] = &[
    Entry { name: "rms_norm", axes: &[SUBGROUPS] },
    Entry { name: "copy", axes: &[] },
    Entry { name: "lora_shrink", axes: &[] },
    Entry { name: "lora_expand", axes: &[] },
    Entry { name: "sample_scan", axes: &[] },
    Entry { name: "sample_draw", axes: &[] },
];
