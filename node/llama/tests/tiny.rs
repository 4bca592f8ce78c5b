//! The engine on tiny random models: every contract check, and bad input.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quern_engine::{AdapterId, Engine as _, EngineError, Output, Row, suite};
use quern_gguf::tiny::{Arch, TinySpec, write};
use quern_gguf::{GgufWriter, TensorType};
use quern_llama::{FlashAttention, KvType, LlamaConfig, LlamaEngine, LlamaModel, LoadError};

/// A folder with one tiny model, removed with the value.
struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    fn new(arch: Arch) -> Tiny {
        let tiny = Tiny { folder: tempfile::tempdir().expect("a temporary folder") };
        write(&tiny.path(), &TinySpec::new(arch, 7)).expect("a tiny model can be written");
        tiny
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }
}

fn small() -> LlamaConfig {
    LlamaConfig {
        kv_capacity: 256,
        max_sequence_len: 96,
        max_sequences: 8,
        max_rows: 64,
        micro_batch_rows: 16,
        max_outputs: 16,
        // One thread: two would wait for each other on a busy machine.
        threads: 1,
        threads_prefill: 1,
        ..LlamaConfig::default()
    }
}

fn load(path: &Path, config: &LlamaConfig) -> LlamaEngine {
    LlamaEngine::load(path, config, &mut |_| true).expect("the model loads")
}

#[track_caller]
fn check_suite(arch: Arch, config: &LlamaConfig, tolerance: f32) {
    let tiny = Tiny::new(arch);
    suite::check_all(&mut || Box::new(load(&tiny.path(), config)), tolerance);
}

/// Weights are f32 here, and keys and values f16: what differs is the order of sums.
const CLOSE: f32 = 2e-3;

#[test]
fn qwen2_passes_the_suite() {
    check_suite(Arch::Qwen2, &small(), CLOSE);
}

#[test]
fn qwen3_passes_the_suite() {
    check_suite(Arch::Qwen3, &small(), CLOSE);
}

#[test]
fn passes_the_suite_without_flash_attention() {
    check_suite(Arch::Qwen2, &LlamaConfig { flash_attention: FlashAttention::Off, ..small() }, CLOSE);
}

/// What one row gives and what several give is only added up in another order.
#[test]
fn passes_the_suite_with_exact_state() {
    for arch in [Arch::Qwen2, Arch::Qwen3] {
        check_suite(arch, &LlamaConfig { kv_type: KvType::F32, ..small() }, CLOSE / 20.0);
    }
}

#[test]
fn passes_the_suite_with_quantised_state() {
    check_suite(Arch::Qwen3, &LlamaConfig { kv_type: KvType::Q8_0, ..small() }, CLOSE);
}

#[test]
fn passes_the_suite_with_two_threads_and_small_pieces() {
    let config = LlamaConfig { threads: 2, threads_prefill: 2, micro_batch_rows: 5, ..small() };
    check_suite(Arch::Qwen2, &config, CLOSE);
}

/// The last logits of a prompt that is computed in two pieces and one step more.
fn last_logits(path: &Path, config: &LlamaConfig) -> Vec<f32> {
    let mut engine = load(path, config);
    let row = |pos: u32| {
        let output = if pos == 20 { Output::Logits } else { Output::None };
        Row { seq: 0, pos, token: 3 + pos * 7, adapter: AdapterId::BASE, output }
    };
    for rows in [0..14, 14..20] {
        engine.step(&rows.map(row).collect::<Vec<_>>()).expect("the prompt fits");
    }
    engine.step(&[row(20)]).expect("one row fits").logits.to_vec()
}

#[test]
fn widened_weights_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write(&path, &TinySpec { kind: TensorType::Q5_0, ..TinySpec::new(Arch::Qwen2, 7) }).unwrap();
    let as_stored = LlamaConfig { repack: false, ..small() };
    assert_eq!(load(&path, &as_stored).model_info().widened_bytes, 0);
    let engine = load(&path, &small());
    // The node computes on the CPU in this test unless a GPU plug-in is beside it.
    let on_cpu = engine.model_info().devices.iter().all(|device| !device.is_gpu);
    assert_eq!(engine.model_info().widened_bytes > 0, on_cpu);
    let (stored, widened) = (last_logits(&path, &as_stored), last_logits(&path, &small()));
    let largest = stored.iter().zip(&widened).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // The same products; kernels may add them up in another order.
    assert!(largest < 1e-3, "{largest}");
}

#[test]
fn states_of_another_configuration_are_refused() {
    let tiny = Tiny::new(Arch::Qwen2);
    let mut engine = load(&tiny.path(), &small());
    let row = Row { seq: 0, pos: 0, token: 1, adapter: AdapterId::BASE, output: Output::None };
    engine.step(&[row]).unwrap();
    let state = engine.save(0).unwrap();
    let mut other = load(&tiny.path(), &LlamaConfig { kv_type: KvType::Q8_0, ..small() });
    assert!(matches!(other.restore(0, &state), Err(EngineError::Failed(_))));
    load(&tiny.path(), &small()).restore(3, &state).unwrap();
}

#[test]
fn describes_itself() {
    let tiny = Tiny::new(Arch::Qwen3);
    let engine = load(&tiny.path(), &LlamaConfig { kv_capacity: 300, max_sequence_len: 0, ..small() });
    let info = engine.model_info();
    assert_eq!((info.architecture.as_str(), info.num_layers, info.hidden_size), ("qwen3", 2, 256));
    assert_eq!(info.trained_context, 4096);
    assert!(info.system_info.contains("CPU"), "{}", info.system_info);
    let cpus = info.devices.iter().filter(|device| !device.is_gpu).count();
    assert_eq!(cpus, 1, "the best plug-in of one folder is loaded, and no other: {:?}", info.devices);
    assert!(info.kv_bytes.is_some() && info.compute_bytes.is_some() && info.output_bytes.is_some());
    // llama.cpp rounds the capacity up, and a sequence may take all of it.
    assert_eq!(engine.capabilities().kv_capacity, 512);
    assert_eq!(engine.capabilities().max_sequence_len, 512);
}

/// Feeds a sequence token by token and gives all logits.
fn all_logits(engine: &mut LlamaEngine) -> Vec<f32> {
    let rows = (0..40).map(|pos| Row {
        seq: 1,
        pos,
        token: (pos * 7 + 3) % 200,
        adapter: AdapterId::BASE,
        output: Output::Logits,
    });
    let logits = rows.flat_map(|row| engine.step(&[row]).expect("it computes").logits.to_vec()).collect();
    engine.truncate(1, 0).expect("a sequence can be dropped");
    logits
}

#[test]
fn engines_on_the_same_weights_compute_side_by_side() {
    let tiny = Tiny::new(Arch::Qwen2);
    let model = Arc::new(LlamaModel::load(&tiny.path(), &small(), &mut |_| true).expect("the model loads"));
    suite::check_all(&mut || Box::new(LlamaEngine::on(&model).expect("another context")), CLOSE);

    let [mut one, mut other] = [(); 2].map(|()| LlamaEngine::on(&model).expect("another context"));
    let weights = Arc::downgrade(&model);
    drop(model);
    let alone = all_logits(&mut one);
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| all_logits(&mut one));
        let second = scope.spawn(|| all_logits(&mut other));
        (first.join().unwrap(), second.join().unwrap())
    });
    assert!(alone == first && alone == second, "what others compute changes nothing");
    drop(one);
    assert!(weights.upgrade().is_some(), "an engine keeps its weights");
    drop(other);
    assert!(weights.upgrade().is_none(), "the last engine's end frees them");
}

#[test]
fn progress_can_end_the_loading() {
    let tiny = Tiny::new(Arch::Qwen2);
    let mut parts = Vec::new();
    let mut note = |part| {
        parts.push(part);
        true
    };
    LlamaEngine::load(&tiny.path(), &small(), &mut note).unwrap();
    assert_eq!(parts.last(), Some(&1.0));
    let refused = LlamaEngine::load(&tiny.path(), &small(), &mut |_| false);
    assert!(matches!(refused, Err(LoadError::Cancelled)), "{refused:?}");
}

#[test]
fn bad_files_are_named() {
    let tiny = Tiny::new(Arch::Qwen2);
    let good = std::fs::read(tiny.path()).unwrap();
    let refused = |name: &str, bytes: Option<&[u8]>| {
        let path = tiny.folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = LlamaEngine::load(&path, &small(), &mut |_| true).expect_err("a bad file is refused");
        assert!(error.to_string().contains(name), "{error}");
        error
    };
    assert!(matches!(refused("missing.gguf", None), LoadError::File { .. }));
    assert!(matches!(refused("empty.gguf", Some(b"")), LoadError::NotGguf { .. }));
    assert!(matches!(refused("text.gguf", Some(b"this is no model")), LoadError::NotGguf { .. }));
    assert!(matches!(refused("header.gguf", Some(&good[..40])), LoadError::Model { .. }));
    assert!(matches!(refused("cut.gguf", Some(&good[..good.len() - 1000])), LoadError::Model { .. }));
    let mut foreign = good.clone();
    let name = b"general.architecture";
    let at = foreign.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8;
    assert_eq!(&foreign[at..at + 5], b"qwen2");
    foreign[at..at + 5].copy_from_slice(b"qwenX");
    let error = refused("foreign.gguf", Some(&foreign));
    assert!(
        matches!(&error, LoadError::UnknownArchitecture { reason, .. } if reason.contains("qwenX")),
        "{error}"
    );
}

#[test]
fn a_bad_adapter_leaves_nothing_behind() {
    let tiny = Tiny::new(Arch::Qwen2);
    let mut engine = load(&tiny.path(), &small());
    // A model is no adapter.
    let error = engine.load_adapter(AdapterId(1), &tiny.path()).expect_err("a model is no adapter");
    assert!(matches!(&error, EngineError::Adapter { why, .. } if why.contains("adapter")), "{error}");
    assert!(engine.unload_adapter(AdapterId(1)).is_err());
    assert!(engine.load_adapter(AdapterId::BASE, &tiny.path()).is_err());
}

/// A LoRA on the first layer's queries, which changes all that follows.
fn lora(path: &Path, amount: f32) {
    const HIDDEN: u64 = 256;
    const RANK: u64 = 2;
    let mut writer = GgufWriter::new();
    for (key, value) in
        [("general.architecture", "qwen2"), ("general.type", "adapter"), ("adapter.type", "lora")]
    {
        writer.set(key, value).expect("a tiny adapter can be written");
    }
    writer.set("adapter.lora.alpha", RANK as f32).expect("a tiny adapter can be written");
    let names = ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"];
    writer.tensor(names[0], &[HIDDEN, RANK], TensorType::F32).expect("a tiny adapter can be written");
    writer.tensor(names[1], &[RANK, HIDDEN], TensorType::F32).expect("a tiny adapter can be written");
    let mut stream = writer.create(path).expect("a tiny adapter can be written");
    for (name, salt) in names.into_iter().zip([3u64, 5]) {
        let number = |idx: u64| ((idx * salt % 17) as f32 - 8.0) * amount;
        let bytes: Vec<u8> = (0..HIDDEN * RANK).flat_map(|idx| number(idx).to_le_bytes()).collect();
        stream.write(name, |out| out.write_all(&bytes)).expect("a tiny adapter can be written");
    }
    stream.finish().expect("a tiny adapter can be written");
}

#[test]
fn adapters_change_what_is_computed_and_nothing_else() {
    let tiny = Tiny::new(Arch::Qwen2);
    let model = Arc::new(LlamaModel::load(&tiny.path(), &small(), &mut |_| true).expect("the model loads"));
    let mut engine = LlamaEngine::on(&model).expect("a context fits");
    let mut other = LlamaEngine::on(&model).expect("another one fits");
    let [one, two] = [(AdapterId(1), 0.02), (AdapterId(2), 0.03)].map(|(id, amount)| {
        let path = tiny.folder.path().join(format!("{}.gguf", id.0));
        lora(&path, amount);
        (id, path)
    });
    fn logits(engine: &mut LlamaEngine, adapter: AdapterId) -> Vec<f32> {
        let row = |pos: u32| {
            let output = if pos == 5 { Output::Logits } else { Output::None };
            Row { seq: 0, pos, token: 3 + pos * 7, adapter, output }
        };
        let rows: Vec<Row> = (0..6).map(row).collect();
        let logits = engine.step(&rows).expect("the step works").logits.to_vec();
        engine.truncate(0, 0).expect("a sequence can be dropped");
        logits
    }
    let base = logits(&mut engine, AdapterId::BASE);
    for (id, path) in [&one, &two] {
        engine.load_adapter(*id, path).expect("it fits the model");
        // What was loaded needs its file no more.
        std::fs::remove_file(path).unwrap();
    }
    let with_one = logits(&mut engine, one.0);
    let with_two = logits(&mut engine, two.0);
    assert!(base != with_one && with_one != with_two && base != with_two);
    assert_eq!(logits(&mut engine, AdapterId::BASE), base);
    // Letting go of another than the present one changes nothing.
    assert_eq!(logits(&mut engine, two.0), with_two);
    engine.unload_adapter(one.0).expect("it is loaded");
    assert_eq!(logits(&mut engine, two.0), with_two);
    engine.unload_adapter(two.0).expect("it is loaded, and the present one");
    assert_eq!(logits(&mut engine, AdapterId::BASE), base);
    let row = Row { seq: 0, pos: 0, token: 1, adapter: two.0, output: Output::None };
    assert!(matches!(engine.step(&[row]), Err(EngineError::InvalidBatch { .. })));
    // A number may be used again, and an engine's adapters are its own.
    lora(&one.1, 0.02);
    engine.load_adapter(two.0, &one.1).expect("its number is free");
    assert_eq!(logits(&mut engine, two.0), with_one);
    assert_eq!(logits(&mut other, AdapterId::BASE), base);
    assert!(matches!(other.step(&[row]), Err(EngineError::InvalidBatch { .. })));
}
