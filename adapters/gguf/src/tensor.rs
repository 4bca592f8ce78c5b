//! Tensor types with their block sizes, and what a file says about one tensor.
//!
//! The numbers and sizes are ggml's (`ggml.h`, `ggml-common.h`).

use std::fmt;

/// How a tensor's elements are stored. The discriminant is the number in the file.
#[allow(missing_docs)] // The variants are ggml's own names and have nothing to add to them.
#[allow(non_camel_case_types)] // Written as everybody writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// Type, name, elements in a block, bytes of a block.
const TABLE: &[(TensorType, &str, u64, u64)] = &[
    (TensorType::F32, "F32", 1, 4),
    (TensorType::F16, "F16", 1, 2),
    (TensorType::Q4_0, "Q4_0", 32, 18),
    (TensorType::Q4_1, "Q4_1", 32, 20),
    (TensorType::Q5_0, "Q5_0", 32, 22),
    (TensorType::Q5_1, "Q5_1", 32, 24),
    (TensorType::Q8_0, "Q8_0", 32, 34),
    (TensorType::Q8_1, "Q8_1", 32, 36),
    (TensorType::Q2_K, "Q2_K", 256, 84),
    (TensorType::Q3_K, "Q3_K", 256, 110),
    (TensorType::Q4_K, "Q4_K", 256, 144),
    (TensorType::Q5_K, "Q5_K", 256, 176),
    (TensorType::Q6_K, "Q6_K", 256, 210),
    (TensorType::Q8_K, "Q8_K", 256, 292),
    (TensorType::IQ2_XXS, "IQ2_XXS", 256, 66),
    (TensorType::IQ2_XS, "IQ2_XS", 256, 74),
    (TensorType::IQ3_XXS, "IQ3_XXS", 256, 98),
    (TensorType::IQ1_S, "IQ1_S", 256, 50),
    (TensorType::IQ4_NL, "IQ4_NL", 32, 18),
    (TensorType::IQ3_S, "IQ3_S", 256, 110),
    (TensorType::IQ2_S, "IQ2_S", 256, 82),
    (TensorType::IQ4_XS, "IQ4_XS", 256, 136),
    (TensorType::I8, "I8", 1, 1),
    (TensorType::I16, "I16", 1, 2),
    (TensorType::I32, "I32", 1, 4),
    (TensorType::I64, "I64", 1, 8),
    (TensorType::F64, "F64", 1, 8),
    (TensorType::IQ1_M, "IQ1_M", 256, 56),
    (TensorType::BF16, "BF16", 1, 2),
    (TensorType::TQ1_0, "TQ1_0", 256, 54),
    (TensorType::TQ2_0, "TQ2_0", 256, 66),
    (TensorType::MXFP4, "MXFP4", 32, 17),
    (TensorType::NVFP4, "NVFP4", 64, 36),
    (TensorType::Q1_0, "Q1_0", 128, 18),
    (TensorType::Q2_0, "Q2_0", 64, 18),
];

impl TensorType {
    /// All types, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this number in a file, if it is known and still supported.
    pub fn from_number(number: u32) -> Option<TensorType> {
        TensorType::all().find(|kind| kind.number() == number)
    }

    /// The number in a file.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The usual name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// How many elements are stored together.
    pub fn block_elements(self) -> u64 {
        self.row().2
    }

    /// How many bytes such a block takes.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// The bytes of a tensor of this shape, innermost dimension first.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the shape: no or too many dimensions, an empty one, rows that are not whole
    /// blocks, or a size beyond 2^63.
    pub fn size_bytes(self, shape: &[u64]) -> Result<u64, &'static str> {
        if shape.is_empty() || shape.len() > 4 {
            return Err("a tensor has 1 to 4 dimensions");
        }
        if shape.contains(&0) {
            return Err("a dimension is empty");
        }
        if !shape[0].is_multiple_of(self.block_elements()) {
            return Err("a row is not a whole number of blocks");
        }
        let num_blocks = shape[1..]
            .iter()
            .try_fold(shape[0] / self.block_elements(), |product, &dim| product.checked_mul(dim));
        num_blocks
            .and_then(|blocks| blocks.checked_mul(self.block_bytes()))
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .ok_or("its size overflows")
    }

    fn row(self) -> &'static (TensorType, &'static str, u64, u64) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row in the table")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the header says about one tensor. The range was checked against the file when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The dimensions, innermost (the length of a row) first; one to four.
    pub shape: Vec<u64>,
    /// How the elements are stored.
    pub kind: TensorType,
    /// Where the data begins, counted from the start of the data section.
    pub offset: u64,
    /// How many bytes the data takes, without padding.
    pub size_bytes: u64,
}

impl TensorInfo {
    /// How many elements the tensor has.
    pub fn num_elements(&self) -> u64 {
        self.size_bytes / self.kind.block_bytes() * self.kind.block_elements()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_their_types() {
        for kind in TensorType::all() {
            assert_eq!(TensorType::from_number(kind.number()), Some(kind));
        }
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(TensorType::from_number(removed), None);
        }
    }

    #[test]
    fn sizes_count_blocks() {
        assert_eq!(TensorType::F32.size_bytes(&[3, 5]), Ok(60));
        assert_eq!(TensorType::Q4_K.size_bytes(&[512, 3]), Ok(6 * 144));
        assert!(TensorType::Q4_K.size_bytes(&[896, 3]).is_err());
        assert!(TensorType::Q8_0.size_bytes(&[1 << 40, 1 << 40]).is_err());
        assert!(TensorType::F32.size_bytes(&[]).is_err());
        assert!(TensorType::F32.size_bytes(&[1, 0]).is_err());
        assert!(TensorType::F32.size_bytes(&[1, 1, 1, 1, 1]).is_err());
    }
}
