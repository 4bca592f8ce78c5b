//! GGUF files: a strict reader, a writer, and a maker of tiny random models.
//!
//! The reader treats every file as hostile: a count, a length or an offset is believed only after it
//! was held against the size of the file. It reads the header with ordinary buffered reads and tensor
//! data with positioned reads, so nothing is mapped and the crate needs no `unsafe` code. Bytes in
//! memory are read as a file is ([`ReadAt`]), and on WebAssembly there is nothing else: opening by path and
//! the writer, which looks after permissions and locks, are Unix's.
//!
//! This crate must not know what the keys mean to an engine, a tokenizer or a server; it only knows the
//! container. The one exception is [`tiny`], which writes whole models and so has to know the keys and
//! tensors of the architectures that it makes.
//!
//! Where next: [`Gguf`] in `file.rs` for use, `header.rs` for the rules that a file must keep.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cursor;
mod error;
mod file;
mod foreign;
mod header;
mod metadata;
mod reader;
mod tensor;
#[cfg(unix)]
pub mod tiny;
mod value;
#[cfg(unix)]
mod writer;

pub use error::{GgufError, Problem};
pub use file::Gguf;
#[cfg(unix)]
pub use file::check;
pub use header::{DEFAULT_ALIGNMENT, Header};
pub use metadata::Metadata;
pub use reader::{ReadAt, Shared};
pub use tensor::{TensorInfo, TensorType};
pub use value::{Array, ByteStrings, Value};
#[cfg(unix)]
pub use writer::{GgufWriter, TensorStream};
