//! The engine on tiny random models: every contract check, and bad input.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quern_engine::{AdapterId, Draw, Engine as _, EngineError, Output, Row, suite};
use quern_gguf::tiny::{Arch, TinySpec, write};
use quern_gguf::{GgufWriter, TensorType};
use quern_scheduler::request::SamplingParams;
use quern_scheduler::sampler::Sampler;
use quern_wgsl::{DeviceOptions, LoadError, WgslConfig, WgslEngine, WgslModel};

/// A folder with one tiny model, removed with the value.
struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    fn new(spec: &TinySpec) -> Tiny {
        let tiny = Tiny { folder: tempfile::tempdir().expect("a temporary folder") };
        write(&tiny.path(), spec).expect("a tiny model can be written");
        tiny
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }
}

fn small() -> WgslConfig {
    WgslConfig {
        kv_capacity: 256,
        max_sequence_len: 96,
        max_sequences: 8,
        max_rows: 64,
        max_outputs: 16,
        adapter_slots: [2, 1, 0, 0],
        sample_on_device: Some(true),
        ..WgslConfig::default()
    }
}

fn load(path: &Path, config: &WgslConfig) -> Result<WgslModel, LoadError> {
    WgslModel::load(path, config, &mut |_| true)
}

/// A token of sequence 0 whose logits are asked for.
fn row(pos: u32, token: u32) -> Row {
    Row { seq: 0, pos, token, adapter: AdapterId::BASE, output: Output::Logits }
}

/// The likeliest token after this one.
fn next(engine: &mut WgslEngine, pos: u32, token: u32) -> Result<u32, EngineError> {
    let logits = engine.step(&[row(pos, token)])?.logits;
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    Ok(best.expect("there is a vocabulary") as u32)
}

/// Results are the same to the last bit, however rows are batched.
#[track_caller]
fn check_suite(spec: &TinySpec) {
    let tiny = Tiny::new(spec);
    let model = Arc::new(load(&tiny.path(), &small()).expect("the model loads"));
    suite::check_all(&mut || Box::new(WgslEngine::on(&model).expect("there is room")), 0.0);
}

#[test]
fn qwen2_passes_the_suite_exactly() {
    check_suite(&TinySpec::new(Arch::Qwen2, 7));
}

#[test]
fn qwen3_passes_the_suite_exactly() {
    check_suite(&TinySpec { kind: TensorType::Q8_0, tied: true, ..TinySpec::new(Arch::Qwen3, 7) });
}

#[test]
fn tokens_are_drawn_where_the_configuration_says() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    for (sample_on_device, samples) in [(Some(true), Some(true)), (Some(false), Some(false)), (None, None)] {
        let config = WgslConfig { sample_on_device, ..small() };
        let model = Arc::new(load(&tiny.path(), &config).expect("the model loads"));
        // Left open, a CPU leaves it to the scheduler.
        let samples = samples.unwrap_or(!model.profile().is_cpu);
        let mut engine = WgslEngine::on(&model).expect("there is room");
        assert_eq!(engine.capabilities().samples, samples);
        let drawn = engine.step(&[Row { output: Output::Token(Draw::GREEDY), ..row(0, 5) }]);
        assert_eq!(drawn.is_ok(), samples);
    }
}

#[test]
fn answers_drawn_on_the_device_are_the_host_sampler_s() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    let model = Arc::new(load(&tiny.path(), &small()).expect("the model loads"));
    let [mut drawing, mut host] = [0, 1].map(|_| WgslEngine::on(&model).expect("there is room"));
    assert!(drawing.capabilities().samples);
    let warm = Draw { temperature: 1.0, seed: 3, ..Draw::GREEDY };
    let draws = [
        Draw::GREEDY,
        warm,
        Draw { top_k: 20, top_p: 0.8, temperature: 0.7, ..warm },
        Draw { top_p: 0.95, seed: 4, ..warm },
        Draw { min_p: 0.05, temperature: 1.4, ..warm },
        Draw { top_k: 5, seed: 5, ..warm },
    ];
    let mut samplers = draws.map(|Draw { temperature, top_k, top_p, min_p, seed, .. }| {
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() };
        Sampler::new(params, &[], None)
    });
    let vocab = drawing.capabilities().vocab_size;
    let mut last = draws.map(|_| 5);
    for pos in 0..32 {
        let rows = |output: &dyn Fn(usize) -> Output| -> Vec<Row> {
            let row =
                |(seq, token): (usize, u32)| Row { seq: seq as u32, output: output(seq), ..row(pos, token) };
            last.into_iter().enumerate().map(row).collect()
        };
        let (asked, plain) = (rows(&|seq| Output::Token(draws[seq])), rows(&|_| Output::Logits));
        let logits = host.step(&plain).expect("rows are computed").logits;
        let rows = samplers.iter_mut().zip(logits.chunks(vocab));
        let wanted: Vec<Option<u32>> = rows
            .map(|(sampler, logits)| sampler.sample(logits, u64::from(pos) + 1, None).ok())
            .map(|sampled| sampled.map(|sampled| sampled.token))
            .collect();
        let output = drawing.step(&asked).expect("rows are computed");
        assert!(output.logits.is_empty(), "logits stay on the device");
        assert_eq!(output.tokens, wanted, "behind position {pos}");
        last.iter_mut().zip(wanted).for_each(|(last, token)| *last = token.expect("there are tokens"));
    }
}

#[track_caller]
fn check_refusal(path: &Path, config: &WgslConfig, expected: &str) {
    let error = load(path, config).expect_err("it cannot be loaded").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    check_refusal(Path::new("no-such-model.gguf"), &small(), "no-such-model.gguf");
    check_refusal(&tiny.path(), &WgslConfig { max_rows: 0, ..small() }, "max_rows is 0");
    let device = DeviceOptions { adapter: "no such card".to_owned(), ..DeviceOptions::default() };
    check_refusal(
        &tiny.path(),
        &WgslConfig { device, ..small() },
        "\"no such card\" was asked for, and there is",
    );
    let narrow = Tiny::new(&TinySpec { heads: 8, ..TinySpec::new(Arch::Qwen2, 7) });
    check_refusal(
        &narrow.path(),
        &small(),
        "32 values of an attention head, and there are kernels for 64 or 128",
    );
}

#[test]
fn other_architectures_and_types_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("other.gguf");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "mamba").expect("a new key");
    writer.tensor("token_embd.weight", &[256, 8], TensorType::F32).expect("a new tensor");
    let mut stream = writer.create(&path).expect("a file can be made");
    stream.write("token_embd.weight", |out| out.write_all(&[0; 256 * 8 * 4])).expect("it can be written");
    stream.finish().expect("it can be finished");
    check_refusal(&path, &small(), "architecture is mamba");
}

#[test]
fn too_much_room_is_refused_with_its_size() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    let config = WgslConfig { kv_capacity: 1 << 26, ..small() };
    let model = Arc::new(load(&tiny.path(), &config).expect("the model loads"));
    let error = WgslEngine::on(&model).expect_err("no device has so much room").to_string();
    assert!(error.contains("lower kv_capacity") || error.contains("no memory for"), "{error}");
}

#[test]
fn loading_can_be_cancelled() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    let cancelled = WgslModel::load(&tiny.path(), &small(), &mut |part| part < 0.5);
    assert!(matches!(cancelled, Err(LoadError::Cancelled)));
}

#[test]
fn engines_share_weights_and_nothing_else() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    let model = Arc::new(load(&tiny.path(), &small()).expect("the model loads"));
    let mut engines = [0, 1].map(|_| WgslEngine::on(&model).expect("there is room"));
    let row = row(0, 5);
    let [first, second] = &mut engines;
    let logits = first.step(&[row]).expect("a row is computed").logits.to_vec();
    assert_eq!(second.step(&[row]).expect("a row is computed").logits, logits);
    assert!(second.step(&[row]).is_err(), "its sequence has gone on");
}

#[test]
fn a_lost_device_is_told_and_another_computes_the_same() {
    let tiny = Tiny::new(&TinySpec::new(Arch::Qwen2, 7));
    let model = Arc::new(load(&tiny.path(), &small()).expect("the model loads"));
    let [mut engine, mut beside] = [0, 1].map(|_| WgslEngine::on(&model).expect("there is room"));
    let mut tokens = vec![5];
    for pos in 0..8 {
        tokens.push(next(&mut engine, pos, tokens[pos as usize]).expect("a row is computed"));
    }
    assert!(!model.is_lost());
    model.lose_device();
    for (engine, pos) in [(&mut engine, 8), (&mut beside, 0)] {
        let lost = next(engine, pos, 5).expect_err("its device is gone");
        assert!(matches!(&lost, EngineError::Lost(why) if why.contains("the device is lost")), "{lost}");
    }
    assert!(model.is_lost());
    engine.truncate(0, 0).expect("the books can still be closed");
    let none = WgslEngine::on(&model).expect_err("nothing can be made on a device that is gone");
    assert!(none.to_string().contains("the device is lost"), "{none}");

    let model = Arc::new(load(&tiny.path(), &small()).expect("the model loads again"));
    let mut engine = WgslEngine::on(&model).expect("there is room");
    for pos in 0..8 {
        let again = next(&mut engine, pos, tokens[pos as usize]).expect("a row is computed");
        assert_eq!(again, tokens[pos as usize + 1], "at position {pos}");
    }
}
