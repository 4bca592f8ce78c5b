//! What was written is read back, and no damage to a file does worse than a typed error.

use std::fs;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use quern_gguf::{Array, ByteStrings, Gguf, GgufWriter, Header, Problem, TensorType, Value};

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        vec(any::<u8>(), 0..40).prop_map(Value::String),
    ]
}

fn flat_array() -> impl Strategy<Value = Array> {
    let strings = vec(vec(any::<u8>(), 0..12), 0..8);
    prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Array::U8),
        vec(any::<i8>(), 0..20).prop_map(Array::I8),
        vec(any::<u16>(), 0..20).prop_map(Array::U16),
        vec(any::<i16>(), 0..20).prop_map(Array::I16),
        vec(any::<u32>(), 0..20).prop_map(Array::U32),
        vec(any::<i32>(), 0..20).prop_map(Array::I32),
        vec(any::<u64>(), 0..20).prop_map(Array::U64),
        vec(any::<i64>(), 0..20).prop_map(Array::I64),
        vec(any::<f32>(), 0..20).prop_map(Array::F32),
        vec(any::<f64>(), 0..20).prop_map(Array::F64),
        vec(any::<bool>(), 0..20).prop_map(Array::Bool),
        strings.prop_map(|strings| Array::Strings(strings.iter().collect::<ByteStrings>())),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let array = flat_array().prop_recursive(3, 12, 3, |inner| vec(inner, 0..3).prop_map(Array::Arrays));
    prop_oneof![scalar(), array.prop_map(Value::Array)]
}

/// Keys with their values; at times an alignment of the file's own.
fn entries() -> impl Strategy<Value = Vec<(String, Value)>> {
    let alignment = proptest::option::of((3u32..9).prop_map(|power| 1 << power));
    (btree_map("[a-z_.]{1,12}", value(), 0..8), alignment).prop_map(|(entries, alignment)| {
        let own = alignment.map(|bytes| ("general.alignment".to_owned(), Value::U32(bytes)));
        entries.into_iter().chain(own).collect()
    })
}

fn tensors() -> impl Strategy<Value = Vec<(String, Vec<u64>, TensorType)>> {
    let kinds: Vec<TensorType> = TensorType::all().collect();
    let tensor = (1u64..3, vec(1u64..4, 0..4), proptest::sample::select(kinds));
    btree_map("[a-z0-9.]{1,16}", tensor, 0..6).prop_map(|tensors| {
        let shaped = tensors.into_iter().map(|(name, (blocks, outer, kind))| {
            let outer = outer.into_iter().take(3);
            let shape = std::iter::once(blocks * kind.block_elements()).chain(outer).collect();
            (name, shape, kind)
        });
        shaped.collect()
    })
}

fn writer(entries: &[(String, Value)], tensors: &[(String, Vec<u64>, TensorType)]) -> GgufWriter {
    let mut writer = GgufWriter::new();
    for (key, value) in entries {
        writer.set(key, value.clone()).expect("keys are made to differ");
    }
    for (name, shape, kind) in tensors {
        writer.tensor(name, shape, *kind).expect("rows are made of whole blocks");
    }
    writer
}

/// A small whole file with a bit of everything.
fn sample() -> Vec<u8> {
    let strings: ByteStrings = ["a", "bb", "ccc"].iter().collect();
    let entries = [
        ("general.architecture".to_owned(), Value::from("qwen2")),
        ("general.alignment".to_owned(), Value::U32(32)),
        ("tokens".to_owned(), Value::from(strings)),
        ("types".to_owned(), Value::from(vec![1, 2, 3])),
        ("nested".to_owned(), Value::Array(Array::Arrays(vec![Array::Bool(vec![true, false])]))),
        ("eps".to_owned(), Value::F32(1e-6)),
    ];
    let tensors = [
        ("one".to_owned(), vec![32, 2], TensorType::Q8_0),
        ("two".to_owned(), vec![5], TensorType::F32),
        ("three".to_owned(), vec![256, 1, 1, 1], TensorType::Q4_K),
    ];
    let mut bytes = writer(&entries, &tensors).header_bytes().expect("the sample is sound");
    bytes.resize(bytes.len() + 96 + 32 + 160, 0);
    bytes
}

/// Parses and checks what holds of every file that is accepted.
fn parse(bytes: &[u8]) -> Result<Header, Problem> {
    let header = Header::parse(bytes, bytes.len() as u64)?;
    for tensor in &header.tensors {
        assert!(header.data_start + tensor.offset + tensor.size_bytes <= bytes.len() as u64);
        assert_eq!(tensor.kind.size_bytes(&tensor.shape), Ok(tensor.size_bytes));
    }
    Ok(header)
}

/// NaN differs from itself, so values are compared by their written form.
fn written(entries: &[(String, Value)]) -> Vec<u8> {
    writer(entries, &[]).header_bytes().expect("the alignment is a power of two")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_back(entries in entries(), tensors in tensors()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.gguf");
        let mut stream = writer(&entries, &tensors).create(&path).unwrap();
        let content = |idx: usize, size: u64| vec![idx as u8 + 1; size as usize];
        for (idx, (name, shape, kind)) in tensors.iter().enumerate() {
            let size_bytes = kind.size_bytes(shape).unwrap();
            stream.write(name, |out| out.write_all(&content(idx, size_bytes))).unwrap();
        }
        stream.finish().unwrap();

        let gguf = Gguf::open(&path).unwrap();
        let found: Vec<_> = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        prop_assert_eq!(written(&found), written(&entries));
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (idx, (name, shape, kind)) in tensors.iter().enumerate() {
            let tensor = gguf.tensor(name).unwrap();
            prop_assert_eq!((&tensor.shape, tensor.kind), (shape, *kind));
            prop_assert_eq!(gguf.file_offset(tensor) % gguf.alignment(), 0);
            prop_assert_eq!(gguf.read_tensor(tensor).unwrap(), content(idx, tensor.size_bytes));
        }
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_give_a_header_or_an_error(
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut bytes = sample();
        for (place, byte, edit) in edits {
            let idx = place.index(bytes.len());
            match edit {
                0 => bytes[idx] = byte,
                1 => bytes.insert(idx, byte),
                _ => { bytes.remove(idx); }
            }
        }
        if let Err(problem) = parse(&bytes) {
            prop_assert!(!problem.to_string().is_empty());
        }
    }

    #[test]
    fn large_numbers_anywhere_are_refused_without_being_believed(
        place in any::<prop::sample::Index>(),
        number in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 40), Just(1 << 26), any::<u64>()],
    ) {
        let mut bytes = sample();
        let idx = place.index(bytes.len() - 8);
        bytes[idx..idx + 8].copy_from_slice(&number.to_le_bytes());
        let _ = parse(&bytes);
    }

    #[test]
    fn random_bytes_after_the_magic_are_refused(tail in vec(any::<u8>(), 0..200)) {
        let bytes = [b"GGUF\x03\0\0\0", &tail[..]].concat();
        prop_assert!(parse(&bytes).is_err() || tail.len() >= 16);
    }
}

#[test]
fn every_truncation_is_named() {
    let bytes = sample();
    parse(&bytes).unwrap();
    // The last tensor's padding is not needed.
    for size in 0..bytes.len() - 16 {
        let problem = parse(&bytes[..size]).unwrap_err();
        let expected = matches!(problem, Problem::EndsInHeader { .. } | Problem::Truncated { .. });
        assert!(expected || (size < 4 && matches!(problem, Problem::Foreign { .. })), "{size}: {problem}");
    }
}

#[test]
fn what_killed_writers_left_is_removed_and_living_ones_are_let_be() {
    use std::time::{Duration, SystemTime};
    let folder = tempfile::tempdir().unwrap();
    let old = |name: &str| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        file
    };
    let living = old(".gguf-living.partial");
    living.lock().unwrap();
    drop(old(".gguf-killed.partial"));
    drop(old("mine.partial"));
    fs::write(folder.path().join(".gguf-young.partial"), "").unwrap();

    let stream = writer(&[], &[]).create(&folder.path().join("new.gguf")).unwrap();
    stream.finish().unwrap();
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".gguf-living.partial", ".gguf-young.partial", "mine.partial", "new.gguf"]);
}
