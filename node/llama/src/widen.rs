//! Widening Q5_0 weights to Q8_0 before a CPU computes with them.
//!
//! A Q5_0 block holds 32 numbers of 5 bits and a scale, a Q8_0 block 32 of 8
//! bits and the same kind of scale: every Q5_0 number fits, so that nothing is
//! rounded and the model says what it said before. ggml has no rearranged
//! layout for Q5_0 on any CPU, and takes its blocks apart again for each pair of
//! rows in a step; Q8_0 it uses as it lies. It costs 12 bytes for each 32
//! weights of such tensors. Small models have many: a width that is no multiple
//! of 256, the block of the K formats, is what makes Q4_K_M fall back to Q5_0.
//!
//! The widened file lies in memory and is gone with its last user; the disk is
//! left alone. Formats of which llama.cpp may make a rearranged copy come last
//! in it: what llama.cpp does not use in place it unmaps at a file's ends, and
//! [`Widened::release_unmapped`] gives that memory back.
//!
//! This file knows GGUF and nothing of llama.cpp; `load` decides when to widen.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use quern_gguf::{Gguf, GgufWriter, Header, TensorInfo, TensorType};

/// Bytes of one block of 32 weights.
const Q5_0_BYTES: usize = 22;
const Q8_0_BYTES: usize = 34;

/// Blocks that are read, widened and written at once: some hundreds of KiB.
const BLOCKS_AT_ONCE: usize = 1 << 14;

/// Why a file is served as it lies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WidenError {
    /// The file is cut; llama.cpp will say how it sees that.
    #[error(transparent)]
    Gguf(#[from] quern_gguf::GgufError),
    /// The header could not be written again.
    #[error(transparent)]
    Header(#[from] quern_gguf::Problem),
    /// No memory for the file, or no such files on this system.
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// A model's file in memory, in which no tensor is Q5_0.
pub(crate) struct Widened {
    file: File,
    /// Bytes by which its tensors are larger than those of the file it came from.
    pub(crate) added_bytes: u64,
}

impl Widened {
    /// A path by which this process can open it while `self` lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Gives back the memory of all parts that this process does not map, and
    /// says how many bytes that were, up to a page. Only for a model that is loaded: what is not
    /// mapped now must not be read again.
    pub(crate) fn release_unmapped(&self) -> io::Result<u64> {
        let meta = self.file.metadata()?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let mut released = 0;
        for unmapped in gaps(mapped_ranges(&maps, meta.ino()), meta.len().next_multiple_of(MAX_PAGE_BYTES)) {
            release(&self.file, unmapped.start, unmapped.end - unmapped.start)?;
            released += unmapped.end - unmapped.start;
        }
        Ok(released)
    }
}

/// What the file with this number has mapped, by offset, from the lines of
/// `/proc/self/maps`: addresses, rights, offset, device, file number, name.
fn mapped_ranges(maps: &str, inode: u64) -> Vec<Range<u64>> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let offset = hex(words.nth(1)?)?;
        let number: u64 = words.nth(1)?.parse().ok()?;
        let is_ours = number == inode && words.next()?.contains(MEMORY_FILE);
        is_ours.then_some(offset..offset + (hex(end)? - hex(start)?))
    };
    maps.lines().filter_map(range).collect()
}

/// What `taken` leaves of the bytes up to `end`.
fn gaps(mut taken: Vec<Range<u64>>, end: u64) -> Vec<Range<u64>> {
    taken.sort_by_key(|range| range.start);
    taken.push(end..end);
    let mut free_from = 0;
    let mut gaps = Vec::new();
    for range in taken {
        if range.start > free_from {
            gaps.push(free_from..range.start);
        }
        free_from = free_from.max(range.end);
    }
    gaps
}

/// Widens a model with so many threads; `None` when it has nothing to widen.
pub(crate) fn widen(from: &Gguf, threads: u32) -> Result<Option<Widened>, WidenError> {
    if !from.tensors().iter().any(|tensor| tensor.kind == TensorType::Q5_0) {
        return Ok(None);
    }
    let (header, to) = layout(from)?;
    let sizes = |tensors: &[TensorInfo]| tensors.iter().map(|tensor| tensor.size_bytes).sum::<u64>();
    let added_bytes = sizes(&to.tensors) - sizes(from.tensors());
    let file = memory_file()?;
    file.set_len(end(&to))?;
    file.write_all_at(&header, 0)?;

    let pairs: Vec<_> = in_place_first(from.tensors()).into_iter().zip(&to.tensors).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), WidenError> {
        let mut buffers = Buffers::default();
        while let Some((tensor, place)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy_tensor(from, tensor, &file, to.data_start + place.offset, &mut buffers)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("copying does not panic"))
    })?;
    Ok(Some(Widened { file, added_bytes }))
}

/// The tensors in the order of the widened file: first what every CPU uses as it
/// lies, last what all rearrange, so that either end can be unmapped.
fn in_place_first(tensors: &[TensorInfo]) -> Vec<&TensorInfo> {
    use TensorType::{IQ4_NL, Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K};
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| match tensor.kind {
        Q3_K | Q5_K | Q6_K => 1,
        Q2_K | Q4_0 | Q4_K | IQ4_NL => 2,
        _ => 0,
    });
    ordered
}

/// A multiple of every page size that Linux runs with: a part of a page is not
/// given back but filled with zeros.
const MAX_PAGE_BYTES: u64 = 1 << 16;

/// What the system calls the file.
const MEMORY_FILE: &str = "quern-widened";

#[cfg(target_os = "linux")]
fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create(MEMORY_FILE, rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

#[cfg(target_os = "linux")]
fn release(file: &File, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    Ok(rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

#[cfg(not(target_os = "linux"))]
fn release(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn memory_file() -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "files in memory are made on Linux only"))
}

/// The header of the widened file, as bytes and as read back.
fn layout(from: &Gguf) -> Result<(Vec<u8>, Header), WidenError> {
    let mut writer = GgufWriter::new();
    for (key, value) in from.metadata().iter() {
        writer.set(key, value.clone())?;
    }
    for tensor in in_place_first(from.tensors()) {
        let kind = if tensor.kind == TensorType::Q5_0 { TensorType::Q8_0 } else { tensor.kind };
        writer.tensor(&tensor.name, &tensor.shape, kind)?;
    }
    let bytes = writer.header_bytes()?;
    // The reader holds ranges against a file's size, which follows from them here.
    let to = Header::parse(&bytes[..], u64::MAX >> 1)?;
    Ok((bytes, to))
}

/// Where the last tensor ends, with its padding.
fn end(header: &Header) -> u64 {
    let ends = header.tensors.iter().map(|tensor| tensor.offset + tensor.size_bytes);
    header.data_start + ends.max().unwrap_or(0).next_multiple_of(header.alignment)
}

#[derive(Default)]
struct Buffers {
    read: Vec<u8>,
    widened: Vec<u8>,
}

fn copy_tensor(
    from: &Gguf,
    tensor: &TensorInfo,
    to: &File,
    to_offset: u64,
    buffers: &mut Buffers,
) -> Result<(), WidenError> {
    let widens = tensor.kind == TensorType::Q5_0;
    let step = (BLOCKS_AT_ONCE * Q5_0_BYTES) as u64;
    let (mut read_at, mut write_at) = (0, to_offset);
    while read_at < tensor.size_bytes {
        let read_bytes = step.min(tensor.size_bytes - read_at);
        buffers.read.resize(read_bytes as usize, 0);
        from.read_tensor_part(tensor, read_at, &mut buffers.read)?;
        let bytes = if widens { buffers.widened() } else { &buffers.read };
        to.write_all_at(bytes, write_at)?;
        read_at += read_bytes;
        write_at += bytes.len() as u64;
    }
    Ok(())
}

impl Buffers {
    fn widened(&mut self) -> &[u8] {
        self.widened.resize(self.read.len() / Q5_0_BYTES * Q8_0_BYTES, 0);
        let (from, _) = self.read.as_chunks::<Q5_0_BYTES>();
        let (to, _) = self.widened.as_chunks_mut::<Q8_0_BYTES>();
        from.iter().zip(to).for_each(|(from, to)| widen_block(from, to));
        &self.widened
    }
}

/// A scale as f16, the fifth bits of 32 numbers, their low four bits with the
/// first sixteen numbers in the low halves; a number stands for itself less 16.
fn widen_block(from: &[u8; Q5_0_BYTES], to: &mut [u8; Q8_0_BYTES]) {
    let fifth = u32::from_le_bytes([from[2], from[3], from[4], from[5]]);
    to[..2].copy_from_slice(&from[..2]);
    for idx in 0..16 {
        let low = (from[6 + idx] & 15) | ((fifth >> idx & 1) << 4) as u8;
        let high = (from[6 + idx] >> 4) | ((fifth >> (idx + 16) & 1) << 4) as u8;
        to[2 + idx] = low.wrapping_sub(16);
        to[18 + idx] = high.wrapping_sub(16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quern_gguf::tiny::{self, Arch, TinySpec};

    #[test]
    fn keeps_every_number_of_a_block() {
        // Number j is j: its low bits in halves of bytes, its fifth bit set from 16 on.
        let mut from = [0; Q5_0_BYTES];
        from[..2].copy_from_slice(&[0xcd, 0xab]);
        from[2..6].copy_from_slice(&0xffff_0000u32.to_le_bytes());
        (0..16).for_each(|idx| from[6 + idx] = (idx | idx << 4) as u8);
        let mut to = [0; Q8_0_BYTES];
        widen_block(&from, &mut to);
        assert_eq!(to[..2], [0xcd, 0xab]);
        let numbers: Vec<i8> = to[2..].iter().map(|&byte| byte as i8).collect();
        assert_eq!(numbers, (-16..16).collect::<Vec<i8>>());
    }

    #[test]
    fn a_widened_file_is_the_same_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        tiny::write(&path, &TinySpec { kind: TensorType::Q5_0, ..TinySpec::new(Arch::Qwen2, 3) }).unwrap();
        let before = Gguf::open(&path).unwrap();
        let widened = widen(&Gguf::open(&path).unwrap(), 2).unwrap().expect("it has Q5_0 tensors");

        // `Gguf` opens files by name only.
        let copy = folder.path().join("widened.gguf");
        std::fs::copy(widened.path(), &copy).unwrap();
        let after = Gguf::open(&copy).unwrap();
        assert_eq!(before.metadata(), after.metadata());
        let mut num_widened = 0;
        for (old, new) in in_place_first(before.tensors()).into_iter().zip(after.tensors()) {
            assert_eq!((&old.name, &old.shape), (&new.name, &new.shape));
            let mut expected = before.read_tensor(old).unwrap();
            if old.kind == TensorType::Q5_0 {
                num_widened += 1;
                assert_eq!(new.kind, TensorType::Q8_0);
                expected = Buffers { read: expected, ..Buffers::default() }.widened().to_vec();
            }
            assert_eq!(after.read_tensor(new).unwrap(), expected, "{}", old.name);
        }
        assert!(num_widened > 0);
        let grown = std::fs::metadata(&copy).unwrap().len() - std::fs::metadata(&path).unwrap().len();
        assert!(grown.abs_diff(widened.added_bytes) < 4096, "{grown} {}", widened.added_bytes);
    }

    #[test]
    fn finds_what_is_not_mapped() {
        let maps = "\
7f00a000-7f00c000 r--s 00003000 00:01 77         /memfd:quern-widened (deleted)
7f010000-7f011000 r--s 00006000 00:01 77         /memfd:quern-widened (deleted)
7f020000-7f021000 r--s 00000000 00:01 78         /memfd:quern-widened (deleted)
7f030000-7f031000 r--p 00000000 08:01 77         /usr/lib/libc.so.6
7f040000-7f041000 rw-p 00000000 00:00 0
";
        let mapped = mapped_ranges(maps, 77);
        assert_eq!(mapped, [0x3000..0x5000, 0x6000..0x7000]);
        assert_eq!(gaps(mapped, 0x8000), [0..0x3000, 0x5000..0x6000, 0x7000..0x8000]);
        assert!(matches!(gaps(vec![], 5).as_slice(), [all] if *all == (0..5)));
        assert!(gaps(vec![0..0x8000, 0..0x1000], 0x7001).is_empty());
    }

    #[test]
    fn memory_that_nobody_maps_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        tiny::write(&path, &TinySpec { kind: TensorType::Q5_0, ..TinySpec::new(Arch::Qwen2, 3) }).unwrap();
        let widened = widen(&Gguf::open(&path).unwrap(), 1).unwrap().expect("it has Q5_0 tensors");
        let blocks = |widened: &Widened| widened.file.metadata().unwrap().blocks();
        assert!(blocks(&widened) > 0);
        let len = widened.file.metadata().unwrap().len();
        assert_eq!(widened.release_unmapped().unwrap(), len.next_multiple_of(MAX_PAGE_BYTES));
        assert_eq!(blocks(&widened), 0);
        assert_eq!(widened.file.metadata().unwrap().len(), len);
    }

    #[test]
    fn a_file_without_such_tensors_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        tiny::write(&path, &TinySpec::new(Arch::Qwen3, 3)).unwrap();
        assert!(widen(&Gguf::open(&path).unwrap(), 1).unwrap().is_none());
    }
}
