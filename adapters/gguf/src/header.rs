//! The header of a GGUF file and the rules that it must keep.
//!
//! The parser reads forward once from any reader and needs only the size of the file, so that tests and
//! fuzzers run it on bytes in memory. It must not know about paths.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashMap;
use std::io::Read;

use crate::cursor::Cursor;
use crate::error::Problem;
use crate::foreign;
use crate::metadata::Metadata;
use crate::tensor::{TensorInfo, TensorType};
use crate::value::{Array, ByteStrings, Value};

/// The alignment of tensor data where a file names none.
pub const DEFAULT_ALIGNMENT: u64 = 32;

const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_STRING_BYTES: u64 = 64 << 20;
const MAX_ARRAY_LEN: u64 = 1 << 26;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_DIMS: u32 = 4;

/// Everything before the tensor data, checked against the size of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The container's version: 2 or 3.
    pub version: u32,
    /// Tensor data begins at multiples of this.
    pub alignment: u64,
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section begins in the file.
    pub data_start: u64,
}

impl Header {
    /// Reads the header of a file of `size_bytes` and checks the whole structure: every range lies in the
    /// file, is aligned, and overlaps no other. Tensor data is not read.
    ///
    /// # Errors
    ///
    /// The first [`Problem`] met.
    pub fn parse(reader: impl Read, size_bytes: u64) -> Result<Header, Problem> {
        let mut cursor = Cursor::new(reader, size_bytes);
        let version = parse_version(&mut cursor, size_bytes)?;
        let num_tensors = cursor.count("the number of tensors", MAX_TENSORS)?;
        let num_entries = cursor.count("the number of metadata entries", MAX_ENTRIES)?;
        // An entry has at least a key's length, a type and a byte; a tensor a name's length, the number of
        // dimensions, one dimension, a type and an offset.
        cursor.expect(num_entries, 13)?;
        cursor.expect(num_tensors, 32)?;

        let mut metadata = Metadata::new();
        for entry_idx in 0..num_entries {
            let (key, value) = parse_entry(&mut cursor, entry_idx)?;
            metadata.insert(&key, value)?;
        }
        let alignment = parse_alignment(&metadata)?;

        let mut tensors = Vec::new();
        for tensor_idx in 0..num_tensors {
            tensors.push(parse_tensor(&mut cursor, tensor_idx, alignment)?);
        }
        let data_start = cursor.position().next_multiple_of(alignment);
        check_names(&tensors)?;
        check_ranges(&tensors, data_start, size_bytes)?;
        Ok(Header { version, alignment, metadata, tensors, data_start })
    }
}

fn parse_version<R: Read>(cursor: &mut Cursor<R>, size_bytes: u64) -> Result<u32, Problem> {
    let mut head = Vec::new();
    cursor.append(size_bytes.min(4), &mut head)?;
    if head == b"FUGG" {
        return Err(Problem::ByteSwapped);
    }
    if head != b"GGUF" {
        cursor.append((size_bytes - head.len() as u64).min(60), &mut head)?;
        return Err(Problem::Foreign { looks_like: foreign::looks_like(&head) });
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        // Big-endian files keep the magic as it is and swap everything after it.
        version if matches!(version.swap_bytes(), 1..=3) => Err(Problem::ByteSwapped),
        version => Err(Problem::UnsupportedVersion { version }),
    }
}

fn parse_entry<R: Read>(cursor: &mut Cursor<R>, entry_idx: u64) -> Result<(String, Value), Problem> {
    let key = cursor.string("the length of a metadata key", MAX_NAME_BYTES)?;
    let key = String::from_utf8(key).ok().filter(|key| !key.is_empty());
    let key = key.ok_or(Problem::BadKey { entry_idx })?;
    let number = cursor.u32()?;
    let value = parse_value(cursor, &key, number)?;
    Ok((key, value))
}

fn parse_value<R: Read>(cursor: &mut Cursor<R>, key: &str, number: u32) -> Result<Value, Problem> {
    Ok(match number {
        0 => Value::U8(cursor.u8()?),
        1 => Value::I8(i8::from_le_bytes(cursor.bytes()?)),
        2 => Value::U16(u16::from_le_bytes(cursor.bytes()?)),
        3 => Value::I16(i16::from_le_bytes(cursor.bytes()?)),
        4 => Value::U32(cursor.u32()?),
        5 => Value::I32(i32::from_le_bytes(cursor.bytes()?)),
        6 => Value::F32(f32::from_le_bytes(cursor.bytes()?)),
        7 => Value::Bool(truth(cursor.u8()?, key)?),
        8 => Value::String(cursor.string("the length of a metadata string", MAX_STRING_BYTES)?),
        9 => Value::Array(parse_array(cursor, key, 1)?),
        10 => Value::U64(cursor.u64()?),
        11 => Value::I64(i64::from_le_bytes(cursor.bytes()?)),
        12 => Value::F64(f64::from_le_bytes(cursor.bytes()?)),
        _ => return Err(Problem::UnknownValueType { key: key.to_owned(), number }),
    })
}

fn parse_array<R: Read>(cursor: &mut Cursor<R>, key: &str, depth: u32) -> Result<Array, Problem> {
    if depth > MAX_ARRAY_DEPTH {
        return Err(Problem::NestedTooDeep { key: key.to_owned(), limit: MAX_ARRAY_DEPTH });
    }
    let number = cursor.u32()?;
    let len = cursor.count("the length of a metadata array", MAX_ARRAY_LEN)?;
    Ok(match number {
        0 => Array::U8(numbers(cursor, len, u8::from_le_bytes)?),
        1 => Array::I8(numbers(cursor, len, i8::from_le_bytes)?),
        2 => Array::U16(numbers(cursor, len, u16::from_le_bytes)?),
        3 => Array::I16(numbers(cursor, len, i16::from_le_bytes)?),
        4 => Array::U32(numbers(cursor, len, u32::from_le_bytes)?),
        5 => Array::I32(numbers(cursor, len, i32::from_le_bytes)?),
        6 => Array::F32(numbers(cursor, len, f32::from_le_bytes)?),
        7 => {
            let bytes = numbers(cursor, len, u8::from_le_bytes)?;
            Array::Bool(bytes.into_iter().map(|byte| truth(byte, key)).collect::<Result<_, _>>()?)
        }
        8 => Array::Strings(strings(cursor, len)?),
        9 => {
            // Each inner array has at least its type and its length.
            cursor.expect(len, 12)?;
            let mut arrays = Vec::new();
            for _ in 0..len {
                arrays.push(parse_array(cursor, key, depth + 1)?);
            }
            Array::Arrays(arrays)
        }
        10 => Array::U64(numbers(cursor, len, u64::from_le_bytes)?),
        11 => Array::I64(numbers(cursor, len, i64::from_le_bytes)?),
        12 => Array::F64(numbers(cursor, len, f64::from_le_bytes)?),
        _ => return Err(Problem::UnknownValueType { key: key.to_owned(), number }),
    })
}

fn numbers<R: Read, T, const N: usize>(
    cursor: &mut Cursor<R>,
    len: u64,
    decode: fn([u8; N]) -> T,
) -> Result<Vec<T>, Problem> {
    cursor.expect(len, N as u64)?;
    let mut bytes = Vec::new();
    cursor.append(len * N as u64, &mut bytes)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect())
}

fn strings<R: Read>(cursor: &mut Cursor<R>, len: u64) -> Result<ByteStrings, Problem> {
    cursor.expect(len, 8)?;
    let mut all = ByteStrings::new();
    for _ in 0..len {
        let length = cursor.count("the length of a metadata string", MAX_STRING_BYTES)?;
        cursor.append(length, all.bytes_mut())?;
        all.close_last();
    }
    all.shrink();
    Ok(all)
}

fn truth(byte: u8, key: &str) -> Result<bool, Problem> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Problem::BadBool { key: key.to_owned(), found }),
    }
}

pub(crate) fn parse_alignment(metadata: &Metadata) -> Result<u64, Problem> {
    match metadata.u32("general.alignment") {
        Ok(found) if found.is_power_of_two() && (8..=1 << 20).contains(&found) => Ok(found.into()),
        Ok(found) => Err(Problem::BadAlignment { found: found.into() }),
        Err(Problem::MissingKey { .. }) => Ok(DEFAULT_ALIGNMENT),
        Err(problem) => Err(problem),
    }
}

fn parse_tensor<R: Read>(
    cursor: &mut Cursor<R>,
    tensor_idx: u64,
    alignment: u64,
) -> Result<TensorInfo, Problem> {
    let name = cursor.string("the length of a tensor's name", MAX_NAME_BYTES)?;
    let name = String::from_utf8(name).ok().filter(|name| !name.is_empty());
    let name = name.ok_or(Problem::BadTensorName { tensor_idx })?;
    let num_dims = cursor.u32()?;
    if num_dims > MAX_DIMS {
        let (found, limit) = (num_dims.into(), MAX_DIMS.into());
        return Err(Problem::TooLarge { what: "a tensor's number of dimensions", found, limit });
    }
    let mut shape = Vec::with_capacity(num_dims as usize);
    for _ in 0..num_dims {
        shape.push(cursor.u64()?);
    }
    let number = cursor.u32()?;
    let offset = cursor.u64()?;
    let Some(kind) = TensorType::from_number(number) else {
        return Err(Problem::UnknownTensorType { tensor: name, number });
    };
    let size_bytes = match kind.size_bytes(&shape) {
        Ok(size_bytes) => size_bytes,
        Err(reason) => return Err(Problem::BadShape { tensor: name, shape, reason }),
    };
    if !offset.is_multiple_of(alignment) {
        return Err(Problem::Unaligned { tensor: name, offset, alignment });
    }
    Ok(TensorInfo { name, shape, kind, offset, size_bytes })
}

pub(crate) fn check_names(tensors: &[TensorInfo]) -> Result<(), Problem> {
    let mut seen = HashMap::new();
    for (idx, tensor) in tensors.iter().enumerate() {
        if seen.insert(tensor.name.as_str(), idx).is_some() {
            return Err(Problem::DuplicateTensor { tensor: tensor.name.clone() });
        }
    }
    Ok(())
}

fn check_ranges(tensors: &[TensorInfo], data_start: u64, size_bytes: u64) -> Result<(), Problem> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    // Sizes stay under 2^63, so an end saturates only where it lies beyond any file.
    let end = |tensor: &TensorInfo| tensor.offset.saturating_add(tensor.size_bytes);
    for pair in by_offset.windows(2) {
        if end(pair[0]) > pair[1].offset {
            return Err(Problem::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    if let Some(last) = by_offset.last() {
        let needed_bytes = data_start.saturating_add(end(last));
        if needed_bytes > size_bytes {
            return Err(Problem::Truncated { size_bytes, needed_bytes, tensor: last.name.clone() });
        }
    }
    Ok(())
}
