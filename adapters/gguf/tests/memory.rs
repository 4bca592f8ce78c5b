//! Files that are none: bytes in memory, and sources that do not keep their word.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use quern_gguf::{Gguf, GgufWriter, Problem, ReadAt, TensorType, Value};

const NAME: &str = "bytes of a page";

/// A whole file: two tensors that hold 0, 1, 2 and so on.
fn sample() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("the sample is sound");
    let path = folder.path().join("sample.gguf");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "qwen2").expect("the sample is sound");
    // More than is read ahead at a time.
    writer.set("long", Value::String(vec![7; 1 << 19])).expect("the sample is sound");
    writer.tensor("first", &[40], TensorType::F32).expect("the sample is sound");
    writer.tensor("second", &[32], TensorType::F32).expect("the sample is sound");
    let mut stream = writer.create(&path).expect("the sample is sound");
    stream.write("first", |out| out.write_all(&(0..160).collect::<Vec<u8>>())).expect("the sample is sound");
    stream.write("second", |out| out.write_all(&(0..128).collect::<Vec<u8>>())).expect("the sample is sound");
    stream.finish().expect("the sample is sound");
    std::fs::read(&path).expect("the sample is sound")
}

/// A source that claims a size, and has these bytes.
struct Claims(Vec<u8>, u64);

impl ReadAt for Claims {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.1)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(out, offset)
    }
}

/// A source that gives a few bytes at a time, and is interrupted every other time.
struct Stuttering(Vec<u8>, Mutex<bool>);

impl ReadAt for Stuttering {
    fn size_bytes(&self) -> io::Result<u64> {
        self.0.size_bytes()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut stutters = self.1.lock().expect("the sample is sound");
        *stutters = !*stutters;
        if *stutters {
            return Err(ErrorKind::Interrupted.into());
        }
        let count = out.len().min(1000);
        self.0.read_at(&mut out[..count], offset)
    }
}

/// A source that nothing can be read from.
struct Broken;

impl ReadAt for Broken {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::Error::other("the page has gone"))
    }
}

#[track_caller]
fn check_whole(gguf: &Gguf) {
    assert_eq!(gguf.path(), Path::new(NAME));
    assert_eq!(gguf.architecture().expect("the sample is sound"), "qwen2");
    assert_eq!(gguf.get("long"), Some(&Value::String(vec![7; 1 << 19])));
    let second = gguf.require_tensor("second").expect("the sample is sound");
    assert_eq!(gguf.read_tensor(second).expect("the sample is sound"), (0..128).collect::<Vec<u8>>());
    let mut part = [0; 3];
    gguf.read_tensor_part(second, 125, &mut part).expect("the sample is sound");
    assert_eq!(part, [125, 126, 127]);
    let beyond = gguf.read_tensor_part(second, 126, &mut part).expect_err("it is refused");
    assert!(matches!(&beyond.problem, Problem::Io(error) if error.kind() == ErrorKind::InvalidInput));
}

#[test]
fn bytes_in_memory_are_read_as_a_file_is() {
    let bytes = sample();
    let name = Path::new(NAME);
    check_whole(&Gguf::from_reader(bytes.clone(), name).unwrap());
    check_whole(&Gguf::from_reader(Arc::<[u8]>::from(bytes.as_slice()), name).unwrap());
    let leaked: &'static [u8] = bytes.leak();
    check_whole(&Gguf::from_reader(leaked, name).unwrap());
}

#[test]
fn every_cut_is_named() {
    let bytes = sample();
    let header_end = bytes.len() - 160 - 128;
    for end in [0, 3, 20, 100, 1 << 18, (1 << 18) + 100, header_end - 40] {
        let error = Gguf::from_reader(bytes[..end].to_vec(), Path::new(NAME)).unwrap_err();
        let is_named = match error.problem {
            Problem::Foreign { .. } => end < 4,
            Problem::EndsInHeader { size_bytes } => size_bytes == end as u64,
            _ => false,
        };
        assert!(is_named && error.to_string().starts_with(NAME), "cut at {end}: {error}");
    }
    for end in [header_end + 1, bytes.len() - 1] {
        let error = Gguf::from_reader(bytes[..end].to_vec(), Path::new(NAME)).unwrap_err();
        assert!(matches!(error.problem, Problem::Truncated { .. }), "cut at {end}: {error}");
    }
}

#[test]
fn sources_are_not_believed() {
    let bytes = sample();
    let whole = bytes.len() as u64;
    // The header is there, and data ends before its claimed end.
    let short = Claims(bytes[..bytes.len() - 100].to_vec(), whole);
    let gguf = Gguf::from_reader(short, Path::new(NAME)).unwrap();
    let error = gguf.read_tensor(gguf.tensor("second").unwrap()).unwrap_err();
    assert!(matches!(&error.problem, Problem::Io(error) if error.kind() == ErrorKind::UnexpectedEof));
    assert!(error.to_string().starts_with(NAME), "{error}");
    // Not even the header is.
    let shorter = Claims(bytes[..100].to_vec(), whole);
    let error = Gguf::from_reader(shorter, Path::new(NAME)).unwrap_err();
    assert!(matches!(error.problem, Problem::EndsInHeader { .. }), "{error}");
    // There is more than it says.
    let less = Claims(bytes, 100);
    let error = Gguf::from_reader(less, Path::new(NAME)).unwrap_err();
    assert!(matches!(error.problem, Problem::EndsInHeader { size_bytes: 100 }), "{error}");
    let error = Gguf::from_reader(Broken, Path::new(NAME)).unwrap_err();
    assert_eq!(error.to_string(), format!("{NAME}: the page has gone"));
}

#[test]
fn reads_may_be_short_and_interrupted() {
    let source = Stuttering(sample(), Mutex::default());
    check_whole(&Gguf::from_reader(source, Path::new(NAME)).unwrap());
}

#[test]
fn there_is_nothing_behind_the_end() {
    let bytes: &[u8] = &[1, 2, 3];
    let mut out = [0; 2];
    for offset in [3, 4, u64::MAX - 1, u64::MAX] {
        assert_eq!(bytes.read_at(&mut out, offset).unwrap(), 0, "offset {offset}");
    }
    assert_eq!(bytes.read_at(&mut out, 2).unwrap(), 1);
    assert_eq!(out, [3, 0]);
}
