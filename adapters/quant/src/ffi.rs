//! The fence around ggml's quantisers: the only file of `adapters` that names C symbols and the only one
//! with `unsafe`.
//!
//! Safe: ggml ends the process when a length is no whole number of blocks, reads as many numbers and writes
//! as many bytes as the lengths say, and needs an importance matrix for some types; all of that is checked
//! or refused here. Its quantisers keep no state but tables that it guards with a lock of its own, so they
//! may run on many threads.
#![expect(unsafe_code, reason = "ggml is a C library; this file is the fence around it")]

use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use llama_cpp_sys_2 as sys;
use quern_adapters::{Codec, CodecError, FileType, check_numbers, check_sizes};
use quern_gguf::TensorType;

/// The types that can be written without an importance matrix.
const ENCODED: &[TensorType] = &[
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// The codec that decodes every type that ggml decodes, and encodes what files are stored as.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ggml;

impl Codec for Ggml {
    fn decode(&self, kind: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
        check_sizes(kind, out.len(), bytes.len())?;
        if kind == TensorType::F32 {
            bytes.chunks_exact(4).zip(out).for_each(|(bytes, out)| {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            });
            return Ok(());
        }
        // SAFETY: `kind` is a number that ggml defines, and the traits are constants of the library.
        let traits = unsafe { &*sys::ggml_get_type_traits(kind.number()) };
        let sizes = (traits.blck_size as u64, traits.type_size as u64);
        if sizes != (kind.block_elements(), kind.block_bytes()) {
            return Err(CodecError::CannotDecode(kind));
        }
        let decode = traits.to_float.ok_or(CodecError::CannotDecode(kind))?;
        // SAFETY: both slices have exactly the lengths that so many elements take, see above; blocks hold
        // nothing wider than two bytes that ggml reads in place, and our buffers come from the allocator,
        // which aligns them to more, in multiples of whole blocks of even size.
        unsafe { decode(bytes.as_ptr().cast::<c_void>(), out.as_mut_ptr(), out.len() as i64) };
        Ok(())
    }

    fn encode(
        &self,
        kind: TensorType,
        rows: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        check_sizes(kind, rows.len(), out.len())?;
        if !self.can_encode(kind) {
            return Err(CodecError::CannotEncode(kind));
        }
        let wrong = CodecError::WrongSize { kind, num_elements: rows.len(), num_bytes: out.len() };
        let is_whole = row_len > 0
            && rows.len().is_multiple_of(row_len)
            && (row_len as u64).is_multiple_of(kind.block_elements())
            && importance.is_none_or(|columns| columns.len() == row_len);
        if !is_whole {
            return Err(wrong);
        }
        check_numbers(kind, rows)?;
        let num_rows = rows.len() / row_len;
        let columns = importance.map_or(ptr::null(), <[f32]>::as_ptr);
        // SAFETY: `rows` holds `num_rows * row_len` numbers in whole blocks and `out` exactly the bytes that
        // they take in this type, see above; `columns` is null or holds `row_len` numbers; the type is one
        // that needs no importance matrix.
        let written = unsafe {
            sys::ggml_quantize_chunk(
                kind.number(),
                rows.as_ptr(),
                out.as_mut_ptr().cast::<c_void>(),
                0,
                num_rows as i64,
                row_len as i64,
                columns,
            )
        };
        if written != out.len() {
            return Err(wrong);
        }
        // SAFETY: `out` holds exactly this many bytes of whole blocks.
        let valid = unsafe { sys::ggml_validate_row_data(kind.number(), out.as_ptr().cast(), out.len()) };
        if valid { Ok(()) } else { Err(CodecError::NotFinite(kind)) }
    }

    fn can_encode(&self, kind: TensorType) -> bool {
        ENCODED.contains(&kind)
    }
}

/// Quantises a file by llama.cpp's own quantiser: what ours is held against in tests. It is slower to stop
/// and leaves half a file behind when it fails. Silences llama.cpp's log for the whole process.
///
/// `importance` has matrices' names and the importance of their columns; there is none where it is empty.
///
/// # Errors
///
/// A path or a name holds a zero byte, or llama.cpp refused.
#[doc(hidden)]
pub fn quantise_by_llama(
    from: &Path,
    to: &Path,
    file_type: FileType,
    importance: &[(String, Vec<f32>)],
) -> Result<(), &'static str> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a path or a name holds a zero byte");
    let (from, to) = (text(from.as_os_str().as_bytes())?, text(to.as_os_str().as_bytes())?);
    let names: Vec<CString> =
        importance.iter().map(|(name, _)| text(name.as_bytes())).collect::<Result<_, _>>()?;
    let entry = |(name, (_, columns)): (&CString, &(String, Vec<f32>))| sys::llama_model_imatrix_data {
        name: name.as_ptr(),
        data: columns.as_ptr(),
        size: columns.len(),
    };
    let end = sys::llama_model_imatrix_data { name: ptr::null(), data: ptr::null(), size: 0 };
    let entries: Vec<_> = names.iter().zip(importance).map(entry).chain([end]).collect();
    // SAFETY: `quiet` has the expected signature, lives forever and uses no user data.
    unsafe { sys::llama_log_set(Some(quiet), ptr::null_mut()) };
    // SAFETY: takes nothing and returns a plain struct.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = file_type.number();
    params.allow_requantize = true;
    if !importance.is_empty() {
        params.imatrix = entries.as_ptr();
    }
    // SAFETY: both paths are strings that outlive the call, and so do the importance's entries, names and
    // numbers, whose lengths are those of their slices and whose last entry has no name, which ends them.
    // llama.cpp catches its own exceptions there.
    let code = unsafe { sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) };
    if code == 0 { Ok(()) } else { Err("llama.cpp refused") }
}

unsafe extern "C" fn quiet(_level: sys::ggml_log_level, _text: *const c_char, _data: *mut c_void) {}
