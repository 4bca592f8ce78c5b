//! A forward reader that knows how many bytes are left, so that no count is believed before it is checked.

use std::io::{ErrorKind, Read};

use crate::error::Problem;

/// The header of a real model takes about 10 MB; this leaves room and still bounds what a hostile file
/// can make us read and hold.
pub(crate) const MAX_HEADER_BYTES: u64 = 256 << 20;

pub(crate) struct Cursor<R> {
    reader: R,
    position: u64,
    size_bytes: u64,
}

impl<R: Read> Cursor<R> {
    /// Reads from the start of a file of `size_bytes`.
    pub(crate) fn new(reader: R, size_bytes: u64) -> Cursor<R> {
        Cursor { reader, position: 0, size_bytes }
    }

    /// Bytes consumed so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Fails unless `count` things of at least `min_bytes` each can still follow.
    pub(crate) fn expect(&self, count: u64, min_bytes: u64) -> Result<(), Problem> {
        let end = count.checked_mul(min_bytes).and_then(|bytes| bytes.checked_add(self.position));
        match end {
            Some(end) if end <= self.size_bytes.min(MAX_HEADER_BYTES) => Ok(()),
            Some(end) if end <= self.size_bytes => {
                Err(Problem::TooLarge { what: "the header's size", found: end, limit: MAX_HEADER_BYTES })
            }
            _ => Err(Problem::EndsInHeader { size_bytes: self.size_bytes }),
        }
    }

    /// Appends `count` bytes to `out`. The memory grows with what was really read, never ahead of it by
    /// more than a doubling.
    pub(crate) fn append(&mut self, count: u64, out: &mut Vec<u8>) -> Result<(), Problem> {
        self.expect(count, 1)?;
        let read = self.reader.by_ref().take(count).read_to_end(out)?;
        self.position += read as u64;
        // The file may have shrunk since its size was taken.
        if (read as u64) < count {
            return Err(Problem::EndsInHeader { size_bytes: self.position });
        }
        Ok(())
    }

    /// The next `N` bytes.
    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        self.expect(N as u64, 1)?;
        let mut buffer = [0; N];
        match self.reader.read_exact(&mut buffer) {
            Ok(()) => {
                self.position += N as u64;
                Ok(buffer)
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Problem::EndsInHeader { size_bytes: self.position })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Problem> {
        Ok(u8::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A number that counts something, held against a limit of its own.
    pub(crate) fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, Problem> {
        let found = self.u64()?;
        if found > limit { Err(Problem::TooLarge { what, found, limit }) } else { Ok(found) }
    }

    /// A string with its length before it.
    pub(crate) fn string(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, Problem> {
        let length = self.count(what, limit)?;
        let mut bytes = Vec::new();
        self.append(length, &mut bytes)?;
        Ok(bytes)
    }
}
