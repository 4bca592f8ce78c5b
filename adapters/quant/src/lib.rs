//! ggml's own quantisers as a [`Codec`](quern_adapters::Codec): what they write is what llama.cpp's
//! quantiser writes, byte for byte.
//!
//! Only `ffi.rs` names C symbols and holds `unsafe`. Nothing here knows files' contents, adapters or models.
#![deny(missing_docs)]

mod ffi;

pub use ffi::{Ggml, quantise_by_llama};
