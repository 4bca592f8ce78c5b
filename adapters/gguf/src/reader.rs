//! Where a file's bytes come from: whatever can be read by position.
//!
//! Nothing here knows GGUF. Where next: `file.rs` for what is read.

use std::io::{self, Read};
use std::sync::Arc;

/// What every [`ReadAt`] is: something that threads may share, where there are threads. Holds by itself.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shared: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shared for T {}

/// What every [`ReadAt`] is: on WebAssembly anything, so that what belongs to a page's own thread can be read.
#[cfg(target_arch = "wasm32")]
pub trait Shared {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shared for T {}

/// Bytes that are read by position, as those of a file are. Nothing that it gives is believed.
pub trait ReadAt: Shared {
    /// How many bytes there are.
    ///
    /// # Errors
    ///
    /// What the operating system says, where it is asked.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Reads bytes from `offset` on to the beginning of `out`. How many there were: fewer than `out` has room for
    /// at any time, none at the end and behind it. May block.
    ///
    /// # Errors
    ///
    /// What the operating system says; `Interrupted` is tried again.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, out, offset)
    }
}

impl ReadAt for [u8] {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        rest.read(out)
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> io::Result<u64> {
        self.as_slice().size_bytes()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(out, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn size_bytes(&self) -> io::Result<u64> {
        (**self).size_bytes()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(out, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size_bytes(&self) -> io::Result<u64> {
        (**self).size_bytes()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(out, offset)
    }
}

/// Reads forward from a position on.
pub(crate) struct Forward<'a> {
    source: &'a dyn ReadAt,
    position: u64,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(source: &'a dyn ReadAt, position: u64) -> Forward<'a> {
        Forward { source, position }
    }
}

impl Read for Forward<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(out, self.position)?.min(out.len());
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}
