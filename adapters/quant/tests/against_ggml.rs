//! Rust's decoders equal ggml's to the last bit, and our files equal those of llama.cpp's quantiser.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

use std::path::{Path, PathBuf};

use quern_adapters::{Codec, CodecError, FileType, Importance, Plain, Summary, Types, Unchanged, rewrite};
use quern_gguf::tiny::{Arch, TinySpec};
use quern_gguf::{Gguf, TensorType};
use quern_quant::{Ggml, quantise_by_llama};

/// Numbers that look like weights, and are the same on every machine.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(|idx| (next() + next()) * if idx % 97 == 0 { 0.3 } else { 0.04 }).collect()
}

#[test]
fn decoders_are_ggml_s_to_the_last_bit() {
    let rows = weights(1024 * 8);
    for kind in TensorType::all().filter(|kind| Ggml.can_encode(*kind)) {
        let mut bytes = vec![0; kind.size_bytes(&[1024, 8]).unwrap() as usize];
        Ggml.encode(kind, &rows, 1024, None, &mut bytes).unwrap();
        let (mut ours, mut ggmls) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
        Plain.decode(kind, &bytes, &mut ours).unwrap();
        Ggml.decode(kind, &bytes, &mut ggmls).unwrap();
        let differs = ours.iter().zip(&ggmls).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{kind}");
        let error: f32 = rows.iter().zip(&ours).map(|(a, b)| (a - b).abs()).sum::<f32>() / rows.len() as f32;
        assert!(error < 0.01, "{kind}: {error}");
    }
}

#[test]
fn random_blocks_decode_alike() {
    let mut state = 7u64;
    for kind in TensorType::all().filter(|kind| kind.block_elements() > 1) {
        let mut bytes = vec![0u8; kind.block_bytes() as usize * 64];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        let mut ours = vec![0.0; kind.block_elements() as usize * 64];
        match Plain.decode(kind, &bytes, &mut ours) {
            Err(CodecError::CannotDecode(_)) => continue,
            decoded => decoded.unwrap(),
        }
        let mut ggmls = vec![0.0; ours.len()];
        Ggml.decode(kind, &bytes, &mut ggmls).unwrap();
        // Scales may be NaN here, whose sign is nobody's business.
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(ours.iter().zip(&ggmls).all(|(a, b)| same(*a, *b)), "{kind}");
    }
}

#[test]
fn simple_encoders_are_ggml_s_too() {
    let rows = weights(256 * 16);
    for kind in TensorType::all().filter(|kind| Plain.can_encode(*kind)) {
        let size = kind.size_bytes(&[256, 16]).unwrap() as usize;
        let (mut ours, mut ggmls) = (vec![0; size], vec![0; size]);
        Plain.encode(kind, &rows, 256, None, &mut ours).unwrap();
        Ggml.encode(kind, &rows, 256, None, &mut ggmls).unwrap();
        assert!(ours == ggmls, "{kind}");
    }
}

#[test]
fn importance_moves_the_numbers_and_wrong_lengths_are_refused() {
    let rows = weights(512);
    let columns: Vec<f32> = (0..256).map(|idx| if idx % 16 == 0 { 100.0 } else { 0.01 }).collect();
    let (mut plain, mut weighed) = (vec![0; 288], vec![0; 288]);
    Ggml.encode(TensorType::Q4_K, &rows, 256, None, &mut plain).unwrap();
    Ggml.encode(TensorType::Q4_K, &rows, 256, Some(&columns), &mut weighed).unwrap();
    assert!(plain != weighed);
    let error = |bytes: &[u8]| {
        let mut back = vec![0.0; 512];
        Ggml.decode(TensorType::Q4_K, bytes, &mut back).unwrap();
        rows.iter().zip(&back).step_by(16).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
    };
    assert!(error(&weighed) < error(&plain));

    let wrong = |rows: &[f32], row_len, columns, out: &mut [u8]| {
        matches!(
            Ggml.encode(TensorType::Q4_K, rows, row_len, columns, out),
            Err(CodecError::WrongSize { .. })
        )
    };
    assert!(wrong(&rows, 256, Some(&columns[1..]), &mut plain));
    assert!(wrong(&rows, 128, None, &mut plain));
    assert!(wrong(&rows, 0, None, &mut plain));
    assert!(wrong(&rows[..300], 300, None, &mut plain));
    assert!(wrong(&rows, 256, None, &mut plain[1..]));
    let nan = Ggml.encode(TensorType::Q4_K, &[f32::NAN; 256], 256, None, &mut plain[..144]);
    assert_eq!(nan, Err(CodecError::NotFinite(TensorType::Q4_K)));
    let needs = Ggml.encode(TensorType::IQ2_XXS, &rows, 256, None, &mut [0; 132]);
    assert_eq!(needs, Err(CodecError::CannotEncode(TensorType::IQ2_XXS)));
}

fn quantise(from: &Path, to: &Path, file_type: FileType) -> Summary {
    weighed(from, to, file_type, None)
}

fn weighed(from: &Path, to: &Path, file_type: FileType, importance: Option<&Importance>) -> Summary {
    let source = Gguf::open(from).unwrap();
    rewrite(&source, &mut Unchanged, Types::Of(file_type, importance), &Ggml, to, &mut |_| {}).unwrap()
}

/// Columns of all matrices with layers, no two alike and some far more important than others.
fn columns(model: &Path) -> Vec<(String, Vec<f32>)> {
    let tensors = Gguf::open(model).unwrap().tensors().to_vec();
    let matrices = tensors.iter().filter(|one| one.name.starts_with("blk.") && one.shape.len() == 2);
    let column = |(idx, weight): (usize, f32)| weight.abs() * if idx % 53 == 7 { 900.0 } else { 1.0 };
    let named = matrices.enumerate().map(|(idx, matrix)| {
        let weights = weights(matrix.shape[0] as usize + idx).split_off(idx);
        (matrix.name.clone(), weights.into_iter().enumerate().map(column).collect())
    });
    named.collect()
}

/// Every tensor has the same type and the same bytes.
fn assert_same(ours: &Path, llamas: &Path, file_type: FileType) {
    let (ours, llamas) = (Gguf::open(ours).unwrap(), Gguf::open(llamas).unwrap());
    assert_eq!(ours.tensors().len(), llamas.tensors().len());
    for tensor in ours.tensors() {
        let other = llamas.tensor(&tensor.name).unwrap();
        assert_eq!(tensor.kind, other.kind, "{file_type}: {}", tensor.name);
        assert!(ours.read_tensor(tensor).unwrap() == llamas.read_tensor(other).unwrap(), "{}", tensor.name);
    }
    assert_eq!(ours.u32("general.file_type").unwrap(), llamas.u32("general.file_type").unwrap());
    assert_eq!(ours.metadata().len(), llamas.metadata().len());
}

#[test]
fn files_of_all_types_are_llama_cpp_s_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Rows of 256 fit every block; those of 288 fit only blocks of 32, as in the default model.
    for (arch, tied, hidden, heads, kv_heads) in
        [(Arch::Qwen2, true, 256, 4, 2), (Arch::Qwen3, false, 256, 8, 2), (Arch::Qwen2, false, 288, 9, 3)]
    {
        let spec = TinySpec { layers: 9, hidden, heads, kv_heads, tied, ..TinySpec::new(arch, 5) };
        quern_gguf::tiny::write(&path("source.gguf"), &spec).unwrap();
        for file_type in FileType::all() {
            quantise(&path("source.gguf"), &path("ours.gguf"), file_type);
            quantise_by_llama(&path("source.gguf"), &path("llamas.gguf"), file_type, &[]).unwrap();
            assert_same(&path("ours.gguf"), &path("llamas.gguf"), file_type);
        }
    }
}

#[test]
fn weighed_files_of_all_types_are_llama_cpp_s_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (hidden, heads, kv_heads) in [(256, 4, 2), (288, 9, 3)] {
        let spec = TinySpec { layers: 9, hidden, heads, kv_heads, ..TinySpec::new(Arch::Qwen2, 5) };
        quern_gguf::tiny::write(&path("source.gguf"), &spec).unwrap();
        let columns = columns(&path("source.gguf"));
        let importance = Importance::from_columns(columns.iter().cloned().collect());
        for file_type in FileType::all() {
            weighed(&path("source.gguf"), &path("ours.gguf"), file_type, Some(&importance));
            quantise_by_llama(&path("source.gguf"), &path("llamas.gguf"), file_type, &columns).unwrap();
            assert_same(&path("ours.gguf"), &path("llamas.gguf"), file_type);
        }
        quantise(&path("source.gguf"), &path("ours.gguf"), FileType::Q2_K);
        weighed(&path("source.gguf"), &path("weighed.gguf"), FileType::Q2_K, Some(&importance));
        let [plain, weighed] = ["ours.gguf", "weighed.gguf"].map(|name| std::fs::read(path(name)).unwrap());
        assert!(plain != weighed, "importance makes a difference");
    }
}

#[test]
fn the_default_model_is_quantised_as_by_llama_cpp() {
    let Some(model) = default_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let summary = quantise(&model, &path("bf16.gguf"), FileType::Bf16);
    assert!(summary.num_encoded > 100 && summary.num_requantised == 0);
    for file_type in [FileType::Q8_0, FileType::Q4_K_M] {
        quantise(&path("bf16.gguf"), &path("ours.gguf"), file_type);
        quantise_by_llama(&path("bf16.gguf"), &path("llamas.gguf"), file_type, &[]).unwrap();
        assert_same(&path("ours.gguf"), &path("llamas.gguf"), file_type);
    }
}

fn default_model() -> Option<PathBuf> {
    let name = "quern/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
    let cache = || match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")),
    };
    let given = std::env::var_os("QUERN_TEST_MODEL").map(PathBuf::from);
    let path = given.or_else(|| cache().map(|cache| cache.join(name))).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: the default model is not on this machine; name it with QUERN_TEST_MODEL");
    }
    path
}
