//! One test for each rule that a file can break, and for the words that the user then reads.

use std::fs;

use quern_gguf::{Array, Gguf, GgufWriter, Header, Problem, TensorType, Value, check};

/// A header put together by hand, so that it can be wrong.
struct Raw(Vec<u8>);

impl Raw {
    fn new(num_tensors: u64, num_entries: u64) -> Raw {
        let raw = Raw(b"GGUF\x03\0\0\0".to_vec());
        raw.u64(num_tensors).u64(num_entries)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, number: u32) -> Raw {
        self.bytes(&number.to_le_bytes())
    }

    fn u64(self, number: u64) -> Raw {
        self.bytes(&number.to_le_bytes())
    }

    fn string(self, text: &[u8]) -> Raw {
        self.u64(text.len() as u64).bytes(text)
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Raw {
        let raw = self.string(name.as_bytes()).u32(shape.len() as u32);
        shape.iter().fold(raw, |raw, dim| raw.u64(*dim)).u32(kind).u64(offset)
    }

    /// The problem that the reader finds when `num_bytes` of data follow the header.
    fn problem(self, num_bytes: usize) -> Problem {
        let mut bytes = self.0;
        bytes.resize(bytes.len().next_multiple_of(32) + num_bytes, 0);
        Header::parse(&bytes[..], bytes.len() as u64).expect_err("the file is unsound")
    }
}

#[test]
fn foreign_files_are_named() {
    let safetensors = [&64u64.to_le_bytes()[..], b"{\"__metadata__\":{}}"].concat();
    let cases: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (b"PK\x03\x04 and so on", "zip"),
        (&safetensors, "safetensors"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"tjgg\x03\0\0\0", "GGJT"),
        (b"{\"error\":\"not found\"}", "JSON"),
        (&[0; 40], "zero bytes"),
    ];
    for (bytes, word) in cases {
        let problem = Header::parse(bytes, bytes.len() as u64).unwrap_err();
        assert!(matches!(problem, Problem::Foreign { .. }), "{problem}");
        assert!(problem.to_string().contains(word), "{problem}");
    }
}

#[test]
fn versions_and_byte_orders_are_told_apart() {
    let parse = |head: &[u8]| Header::parse(&[head, &[0; 60]].concat()[..], 68).unwrap_err();
    assert!(matches!(parse(b"GGUF\x01\0\0\0"), Problem::UnsupportedVersion { version: 1 }));
    assert!(matches!(parse(b"GGUF\x04\0\0\0"), Problem::UnsupportedVersion { version: 4 }));
    assert!(matches!(parse(b"GGUF\0\0\0\x03"), Problem::ByteSwapped));
    assert!(matches!(parse(b"FUGG\x03\0\0\0"), Problem::ByteSwapped));
}

#[test]
fn counts_are_bounded() {
    assert!(matches!(Raw::new(1 << 40, 0).problem(0), Problem::TooLarge { .. }));
    assert!(matches!(Raw::new(0, 1 << 40).problem(0), Problem::TooLarge { .. }));
    assert!(matches!(Raw::new(1000, 0).problem(0), Problem::EndsInHeader { .. }));
    let long_key = Raw::new(0, 1).u64(1 << 20);
    assert!(matches!(long_key.problem(64), Problem::TooLarge { .. }));
    let long_array = Raw::new(0, 1).string(b"a").u32(9).u32(4).u64(1 << 20);
    assert!(matches!(long_array.problem(64), Problem::EndsInHeader { .. }));
    let many_dims = Raw::new(1, 0).string(b"t").u32(5);
    assert!(matches!(many_dims.problem(64), Problem::TooLarge { .. }));
}

#[test]
fn a_count_is_not_believed_even_where_the_file_claims_to_be_large() {
    // A sparse file can have any size; what is read bounds the memory, and the header has a limit.
    let bytes = Raw::new(0, 1).string(b"a").u32(9).u32(12).u64(1 << 26).0;
    let problem = Header::parse(&bytes[..], 1 << 50).unwrap_err();
    assert!(matches!(problem, Problem::TooLarge { .. }), "{problem}");
    let bytes = Raw::new(0, 1).string(b"a").u32(9).u32(0).u64(1 << 26).0;
    let problem = Header::parse(&bytes[..], 1 << 50).unwrap_err();
    assert!(matches!(problem, Problem::EndsInHeader { .. }), "{problem}");
}

#[test]
fn metadata_rules_are_kept() {
    let twice = Raw::new(0, 2).string(b"a").u32(0).bytes(&[1]).string(b"a").u32(0).bytes(&[1]);
    assert!(matches!(twice.problem(64), Problem::DuplicateKey { key } if key == "a"));
    let empty = Raw::new(0, 1).string(b"").u32(0).bytes(&[1]);
    assert!(matches!(empty.problem(64), Problem::BadKey { entry_idx: 0 }));
    let not_utf8 = Raw::new(0, 1).string(b"\xff").u32(0).bytes(&[1]);
    assert!(matches!(not_utf8.problem(64), Problem::BadKey { entry_idx: 0 }));
    let unknown = Raw::new(0, 1).string(b"a").u32(13);
    assert!(matches!(unknown.problem(64), Problem::UnknownValueType { number: 13, .. }));
    let truth = Raw::new(0, 1).string(b"a").u32(7).bytes(&[2]);
    assert!(matches!(truth.problem(64), Problem::BadBool { found: 2, .. }));
    let nested = (0..6).fold(Raw::new(0, 1).string(b"a").u32(9), |raw, _| raw.u32(9).u64(1));
    assert!(matches!(nested.problem(64), Problem::NestedTooDeep { .. }));
    for alignment in [0, 4, 48, 1 << 21] {
        let raw = Raw::new(0, 1).string(b"general.alignment").u32(4).u32(alignment);
        assert!(matches!(raw.problem(64), Problem::BadAlignment { .. }), "{alignment}");
    }
}

#[test]
fn tensor_rules_are_kept() {
    let unknown = Raw::new(1, 0).tensor("t", &[32], 4, 0);
    assert!(matches!(unknown.problem(64), Problem::UnknownTensorType { number: 4, tensor } if tensor == "t"));
    let ragged = Raw::new(1, 0).tensor("t", &[33], 8, 0);
    assert!(matches!(ragged.problem(64), Problem::BadShape { .. }));
    let empty = Raw::new(1, 0).tensor("t", &[32, 0], 0, 0);
    assert!(matches!(empty.problem(64), Problem::BadShape { .. }));
    let huge = Raw::new(1, 0).tensor("t", &[1 << 32, 1 << 32], 0, 0);
    assert!(matches!(huge.problem(64), Problem::BadShape { .. }));
    let unaligned = Raw::new(1, 0).tensor("t", &[1], 0, 4);
    assert!(matches!(unaligned.problem(64), Problem::Unaligned { offset: 4, .. }));
    let nameless = Raw::new(1, 0).tensor("", &[1], 0, 0);
    assert!(matches!(nameless.problem(64), Problem::BadTensorName { tensor_idx: 0 }));
    let twice = Raw::new(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32);
    assert!(matches!(twice.problem(64), Problem::DuplicateTensor { .. }));
    let overlap = Raw::new(2, 0).tensor("b", &[8], 0, 32).tensor("a", &[9], 0, 0);
    assert!(
        matches!(overlap.problem(128), Problem::Overlap { first, second } if first == "a" && second == "b")
    );
    let beyond = Raw::new(1, 0).tensor("t", &[8], 0, u64::MAX - 31);
    assert!(matches!(beyond.problem(64), Problem::Truncated { .. }));
}

#[test]
fn a_truncated_file_is_named_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "qwen2").unwrap();
    writer.tensor("weights", &[64], TensorType::F32).unwrap();
    let mut stream = writer.create(&path).unwrap();
    stream.write("weights", |out| out.write_all(&[0; 256])).unwrap();
    stream.finish().unwrap();
    check(&path).unwrap();

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let message = check(&path).unwrap_err().to_string();
    let (ends, needs) = (whole.len() - 100, whole.len());
    let expected = format!("the file ends at byte {ends}, tensor \"weights\" needs {needs}");
    assert!(message.contains(&expected) && message.contains("model.gguf"), "{message}");
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    assert!(matches!(check(folder.path()).unwrap_err().problem, Problem::NotAFile));
    assert!(matches!(check(&path).unwrap_err().problem, Problem::Io(_)));
    GgufWriter::new().create(&path).unwrap().finish().unwrap();
    assert!(check(&path).unwrap_err().is_missing_key());
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "qwen2").unwrap();
    writer.create(&path).unwrap().finish().unwrap();
    assert!(matches!(check(&path).unwrap_err().problem, Problem::NoTensors));
}

#[test]
fn getters_name_the_key_and_what_they_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.gguf");
    let mut writer = GgufWriter::new();
    writer.set("text", "words").unwrap();
    writer.set("bytes", Value::String(vec![0xff])).unwrap();
    writer.set("small", Value::U8(7)).unwrap();
    writer.set("negative", Value::I32(-1)).unwrap();
    writer.set("list", Value::Array(Array::U32(vec![1, 2]))).unwrap();
    assert!(matches!(writer.set("text", "again"), Err(Problem::DuplicateKey { .. })));
    writer.create(&path).unwrap().finish().unwrap();

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.str("text").unwrap(), "words");
    assert_eq!(gguf.u32("small").unwrap(), 7);
    assert_eq!(gguf.u32s("list").unwrap(), [1, 2]);
    let says = |error: quern_gguf::GgufError, words: &str| {
        let message = error.to_string();
        assert!(message.contains(words) && message.contains("keys.gguf"), "{message}");
    };
    says(gguf.u32("text").unwrap_err(), "\"text\" is a string, not a u32");
    says(gguf.u64("negative").unwrap_err(), "\"negative\" is -1, which does not fit a u64");
    says(gguf.str("bytes").unwrap_err(), "\"bytes\" is not UTF-8");
    says(gguf.i32s("list").unwrap_err(), "\"list\" is an array of u32, not an array of i32");
    says(gguf.bool("absent").unwrap_err(), "\"absent\" is missing");
    says(gguf.require_tensor("absent").unwrap_err(), "\"absent\" is missing");
}

#[test]
fn a_writer_that_breaks_its_word_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("never.gguf");
    let declared = || {
        let mut writer = GgufWriter::new();
        writer.tensor("a", &[8], TensorType::F32).unwrap();
        writer.tensor("b", &[8], TensorType::F32).unwrap();
        writer.create(&path).unwrap()
    };
    let mut stream = declared();
    let short = stream.write("a", |out| out.write_all(&[0; 31])).unwrap_err();
    assert!(matches!(short.problem, Problem::WrongTensorSize { expected_bytes: 32, found_bytes: 31, .. }));
    drop(stream);
    let order = declared().write("b", |out| out.write_all(&[0; 32])).unwrap_err();
    assert!(matches!(order.problem, Problem::WrongTensorOrder { .. }));
    let mut stream = declared();
    stream.write("a", |out| out.write_all(&[0; 32])).unwrap();
    assert!(matches!(stream.finish().unwrap_err().problem, Problem::TensorNotWritten { .. }));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
