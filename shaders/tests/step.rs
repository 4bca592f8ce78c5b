//! Whole steps of tiny random models: against each other, however a prompt is cut and whoever shares the
//! step.

mod common;

use std::ops::Range;
use std::sync::Arc;

use quern_gguf::tiny::{self, Arch, TinySpec};
use quern_gguf::{Gguf, TensorType};
use quern_shaders::lora::LoraMatrices;
use quern_shaders::model::Model;
use quern_shaders::sampling::{Draw, SampleRow, SampleShape};
use quern_shaders::step::{AdapterError, Batch, BatchRow, DrawnRow, Runner, Split, StepLimits};
use quern_shaders::{Device, DeviceOptions, Subgroups, twins};

const LIMITS: StepLimits = StepLimits {
    max_rows: 48,
    max_outputs: 8,
    num_pages: 16,
    max_sequence_len: 200,
    adapter_slots: [2, 1, 0, 0],
    draws: true,
};

fn runner(device: &Device, spec: &TinySpec) -> Runner {
    Runner::new(device, &model(device, spec), LIMITS).expect("a tiny model works")
}

fn model(device: &Device, spec: &TinySpec) -> Arc<Model> {
    let folder = tempfile::tempdir().expect("a tiny model works");
    let path = folder.path().join("tiny.gguf");
    tiny::write(&path, spec).expect("a tiny model works");
    let gguf = Gguf::open(&path).expect("a tiny model works");
    let mut parts = Vec::new();
    let model = Model::load(device, &gguf, &mut |part| {
        parts.push(part);
        true
    });
    assert!(parts.is_sorted() && parts.last() == Some(&1.0), "progress ends at 1: {parts:?}");
    Arc::new(model.expect("a tiny model works"))
}

/// A sequence: its tokens so far and its pages.
struct Seq<'a> {
    tokens: &'a [u32],
    pages: &'a [u32],
}

/// Feeds a range of each sequence's tokens in one step and gives the logits after each.
fn step(runner: &mut Runner, parts: &[(&Seq<'_>, Range<usize>)]) -> Vec<Vec<f32>> {
    let vocab = runner.model().shape.vocab as usize;
    with_batch(parts, |batch| {
        let result = runner.run(batch).expect("a tiny model works");
        assert_eq!(result.logits.len(), parts.len() * vocab);
        assert!(result.logits.iter().all(|logit| logit.is_finite()));
        result.logits.chunks(vocab).map(<[f32]>::to_vec).collect()
    })
}

fn with_batch<T>(parts: &[(&Seq<'_>, Range<usize>)], run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let lists: Vec<&[u32]> = parts.iter().map(|(seq, _)| seq.pages).collect();
    let (mut rows, mut logits) = (Vec::new(), Vec::new());
    for (list, (seq, range)) in parts.iter().enumerate() {
        let row = |position: usize| BatchRow {
            token: seq.tokens[position],
            position: position as u32,
            list,
            adapter_id: None,
        };
        rows.extend(range.clone().map(row));
        logits.push(rows.len() as u32 - 1);
    }
    run(&Batch { rows: &rows, lists: &lists, logits: &logits, ..Batch::default() })
}

#[track_caller]
fn check(arch: Arch, kind: TensorType, tied: bool) {
    // Without subgroups, products of many rows are made in tiles.
    for subgroups in [Subgroups::Auto, Subgroups::Off] {
        let options = DeviceOptions { subgroups, ..DeviceOptions::default() };
        check_on(&Device::open(&options).expect("there is a device"), arch, kind, tied);
    }
}

#[track_caller]
fn check_on(device: &Device, arch: Arch, kind: TensorType, tied: bool) {
    let spec = TinySpec { kind, tied, ..TinySpec::new(arch, 11) };
    let mut runner = runner(device, &spec);
    let tokens: Vec<u32> = (0..45).map(|idx| (idx * 37 + 11) % runner.model().shape.vocab).collect();
    let seq = Seq { tokens: &tokens, pages: &[3, 0] };
    let whole = step(&mut runner, &[(&seq, 0..45)]).remove(0);
    assert!(whole.iter().any(|logit| *logit != whole[0]), "logits tell tokens apart");

    // Cut into steps of any size, on other pages.
    for size in [1, 2, 3, 7, 16] {
        let other = Seq { tokens: &tokens, pages: &[5, 9] };
        let mut last = Vec::new();
        for start in (0..45).step_by(size) {
            last = step(&mut runner, &[(&other, start..(start + size).min(45))]).remove(0);
        }
        assert_eq!(last, whole, "in steps of {size}");
    }
    // Beside others, in every place of the batch.
    let others: Vec<Vec<u32>> =
        (1..4).map(|seed| tokens.iter().map(|token| (token * seed) % 200).collect()).collect();
    let others: Vec<Seq<'_>> = others
        .iter()
        .zip([[6, 7], [8, 10], [11, 12]].iter())
        .map(|(tokens, pages)| Seq { tokens, pages })
        .collect();
    let own = Seq { tokens: &tokens, pages: &[1, 2] };
    step(&mut runner, &[(&own, 0..44)]);
    let alone: Vec<_> = others.iter().map(|other| step(&mut runner, &[(other, 0..10)]).remove(0)).collect();
    let mixed =
        step(&mut runner, &[(&others[0], 0..10), (&others[1], 0..10), (&own, 44..45), (&others[2], 0..10)]);
    assert_eq!(mixed[2], whole, "beside others");
    assert_eq!([&mixed[0], &mixed[1], &mixed[3]], [&alone[0], &alone[1], &alone[2]], "the others");
}

#[test]
fn results_do_not_depend_on_company() {
    check(Arch::Qwen2, TensorType::F32, false);
    check(Arch::Qwen2, TensorType::Q5_0, true);
    check(Arch::Qwen3, TensorType::Q8_0, false);
    check(Arch::Qwen3, TensorType::BF16, true);
}

/// The kernels that a step of so many rows of one sequence dispatches; `None` where the device has no clock.
fn kernels_of(device: &Device, num_rows: u32) -> Option<Vec<String>> {
    let mut runner = runner(device, &TinySpec::new(Arch::Qwen2, 11));
    let row = |position| BatchRow { token: position, position, list: 0, adapter_id: None };
    let rows: Vec<BatchRow> = (0..num_rows).map(row).collect();
    let batch = Batch { rows: &rows, lists: &[&[3, 0]], logits: &[num_rows - 1], ..Batch::default() };
    let times = runner.time(&batch).expect("a tiny model works")?;
    Some(times.into_iter().map(|time| time.kernel).collect())
}

#[test]
fn products_have_a_kernel_by_rows() {
    let options = DeviceOptions { subgroups: Subgroups::Off, ..DeviceOptions::default() };
    let plain = Device::open(&options).expect("there is a device");
    let devices = [(Some(plain), "matmul_tile"), (common::cooperative(), "matmul_coop")];
    for (device, kernel) in devices.into_iter().filter_map(|(device, kernel)| Some((device?, kernel))) {
        for (num_rows, has_many) in [(1, false), (32, false), (33, true), (45, true)] {
            let Some(kernels) = kernels_of(&device, num_rows) else { continue };
            let takes = |name: &str| kernels.iter().any(|kernel| kernel.starts_with(name));
            assert_eq!(takes(kernel), has_many, "{kernel} for {num_rows} rows: {kernels:?}");
            // The head always multiplies few columns; layers do where nothing else takes them.
            assert!(takes("matmul QUANT"), "{num_rows} rows: {kernels:?}");
            assert_eq!(takes("halve"), has_many && kernel == "matmul_coop", "{num_rows} rows: {kernels:?}");
        }
    }
}

#[test]
fn cooperative_matrices_come_near() {
    let Some(device) = common::cooperative() else { return };
    let plain = Device::open(&DeviceOptions::default()).expect("there is a device");
    let spec = TinySpec { kind: TensorType::Q5_0, ..TinySpec::new(Arch::Qwen2, 11) };
    let tokens: Vec<u32> = (0..45).map(|idx| idx * 5 + 1).collect();
    let seq = Seq { tokens: &tokens, pages: &[3, 0] };
    let logits = |device: &Device, num_rows: usize| {
        let mut runner = runner(device, &spec);
        let mut last = Vec::new();
        for start in (0..45).step_by(num_rows) {
            last = step(&mut runner, &[(&seq, start..(start + num_rows).min(45))]).remove(0);
        }
        last
    };
    let want = logits(&plain, 45);
    let many = logits(&device, 45);
    quern_shaders::harness::assert_close("many rows", &many, &want, 1e-5);
    assert_ne!(many, want, "many rows are multiplied by cooperative matrices");
    // Few rows are not.
    let few = logits(&device, 32);
    quern_shaders::harness::assert_close("few rows", &few, &want, 1e-9);
}

/// How a step's attention is taken, as its dispatches in the first layer say; nothing where the device has no clock.
fn attention_of(runner: &mut Runner, parts: &[(&Seq<'_>, Range<usize>)]) -> Option<String> {
    let times = with_batch(parts, |batch| runner.time(batch).expect("a tiny model works"))?;
    let kernels: Vec<String> = times.into_iter().map(|time| time.kernel).collect();
    let first = kernels.iter().position(|kernel| kernel.starts_with("attention "))?;
    let way = kernels[first].split_once("PARTS=")?.1.to_owned();
    let is_merged = kernels[first + 1].starts_with("attention_merge ");
    Some(if is_merged { way + ", merged" } else { way })
}

#[test]
fn long_sequences_are_split_and_nothing_changes() {
    const LONG: StepLimits = StepLimits { num_pages: 19, max_sequence_len: 270, ..LIMITS };
    const LAST: usize = 260;
    // Never split; where a row would keep the others waiting; and wherever there is a long row.
    const WAYS: [(u32, [&str; 3]); 3] = [
        (0, ["all", "all", "all"]),
        (8, ["each, merged", "each, merged", "all"]),
        (10_000, ["each, merged", "each, merged", "each, merged"]),
    ];
    let pages: Vec<u32> = (0..19).rev().collect();
    for device in quern_shaders::harness::devices() {
        let model = model(device, &TinySpec::new(Arch::Qwen2, 6));
        let vocab = model.shape.vocab;
        let tokens: Vec<u32> = (0..=LAST as u32).map(|idx| (idx * 37 + 11) % vocab).collect();
        let others: Vec<u32> = tokens.iter().map(|token| (token * 3 + 1) % vocab).collect();
        let long = Seq { tokens: &tokens, pages: &pages[..9] };
        let other = Seq { tokens: &others, pages: &pages[9..18] };
        let short = Seq { tokens: &others, pages: &pages[18..] };
        let logits = WAYS.map(|(workgroups, ways)| {
            let split = Split { part_keys: 128, workgroups };
            let runner = Runner::with_split(device, &model, LONG, Some(split));
            let mut runner = runner.expect("a tiny model works");
            for (seq, size) in [(&other, 48), (&long, if workgroups == 8 { 31 } else { 48 })] {
                for start in (0..LAST).step_by(size) {
                    step(&mut runner, &[(seq, start..(start + size).min(LAST))]);
                }
            }
            let last = (&long, LAST..LAST + 1);
            let company = [(&short, 0..5), (&other, LAST - 40..LAST)];
            let [alone, short, many] =
                [vec![last.clone()], vec![company[0].clone(), last.clone()], vec![company[1].clone(), last]];
            for (parts, way) in [&alone, &short, &many].into_iter().zip(ways) {
                let used = attention_of(&mut runner, parts);
                assert!(used.as_deref().is_none_or(|used| used == way), "{workgroups}: {used:?}, not {way}");
            }
            let used = attention_of(&mut runner, &short[..1]);
            assert!(used.as_deref().is_none_or(|used| used == "one"), "{workgroups}: {used:?}");

            let whole = step(&mut runner, &alone).remove(0);
            let beside_short = step(&mut runner, &short);
            assert_eq!(beside_short[1], whole, "{workgroups}: beside a short one");
            assert_eq!(beside_short[0], step(&mut runner, &short[..1])[0], "{workgroups}: the short one");
            let beside_many = step(&mut runner, &many);
            assert_eq!(beside_many[1], whole, "{workgroups}: beside many rows");
            [whole, beside_short[0].clone(), beside_many[0].clone()]
        });
        assert!(
            logits[1..].iter().all(|others| *others == logits[0]),
            "split and not, {:?}",
            device.profile()
        );
    }
}

#[test]
fn kinds_of_devices_agree() {
    let spec = TinySpec { kind: TensorType::Q8_0, ..TinySpec::new(Arch::Qwen3, 3) };
    let tokens: Vec<u32> = (0..20).map(|idx| idx * 9).collect();
    let seq = Seq { tokens: &tokens, pages: &[2] };
    let mut all = quern_shaders::harness::devices().iter().map(|device| {
        let mut runner = runner(device, &spec);
        step(&mut runner, &[(&seq, 0..20)]).remove(0)
    });
    let first = all.next().expect("there is one");
    for other in all {
        quern_shaders::harness::assert_close("logits", &other, &first, 1e-9);
    }
}

#[test]
fn hidden_states_come_beside_logits() {
    let device = Device::open(&DeviceOptions::default()).expect("there is a device");
    let mut runner = runner(&device, &TinySpec::new(Arch::Qwen2, 4));
    let row = |position| BatchRow { token: 5 + position, position, list: 0, adapter_id: None };
    let rows: Vec<BatchRow> = (0..6).map(row).collect();
    let mut run = |logits: &[u32], hidden: &[u32]| {
        let batch = Batch { rows: &rows, lists: &[&[1]], logits, hidden, ..Batch::default() };
        let result = runner.run(&batch).expect("a tiny model works");
        (result.logits.to_vec(), result.hidden.to_vec())
    };
    let (logits, hidden) = run(&[1, 4], &[5, 0]);
    assert_eq!(run(&[1, 4], &[]), (logits.clone(), Vec::new()));
    assert_eq!(run(&[], &[5, 0]), (Vec::new(), hidden.clone()));
    assert_eq!(hidden.len(), 2 * 256);
    assert_ne!(hidden[..256], hidden[256..]);
    assert_eq!(run(&[], &[]), (Vec::new(), Vec::new()));
}

/// How wrong a device's sums may be, as a part of the total.
const SLACK: f64 = 5e-6;

#[test]
fn tokens_are_drawn_from_logits_that_stay() {
    const WARM: Draw = Draw { temperature: 1.3, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 5 };
    let device = Device::open(&DeviceOptions::default()).expect("there is a device");
    let mut runner = runner(&device, &TinySpec::new(Arch::Qwen2, 4));
    let shape = SampleShape { vocab_size: runner.model().shape.vocab };
    let (vocab, words) = (shape.vocab_size as usize, shape.mask_words() as usize);
    let row = |position| BatchRow { token: 5 + position, position, list: 0, adapter_id: None };
    let rows: Vec<BatchRow> = (0..8).map(row).collect();
    let batch = Batch { rows: &rows, lists: &[&[1]], ..Batch::default() };
    let all: Vec<u32> = (0..8).collect();
    let logits = runner.run(&Batch { logits: &all, ..batch }).expect("a tiny model works").logits.to_vec();
    let hidden = runner.run(&Batch { hidden: &[5, 0], ..batch }).expect("a tiny model works").hidden.to_vec();

    // A mask with every fifth token, and one with none.
    let mut masks = vec![0; 2 * words];
    (0..vocab).step_by(5).for_each(|token| masks[token / 32] |= 1 << (token % 32));
    let drawn = [
        (2, Draw::GREEDY, None),
        (6, WARM, None),
        (3, Draw { top_k: 9, top_p: 0.8, min_p: 0.01, ..WARM }, Some(0)),
        (7, WARM, Some(1)),
        (2, Draw { seed: 6, ..WARM }, None),
    ];
    let drawn = drawn.map(|(row, draw, mask)| DrawnRow { row, draw, mask });
    let wanted: Vec<SampleRow> =
        drawn.iter().map(|d| SampleRow::new(d.draw, d.row + 1, d.row, d.mask)).collect();
    let wanted = twins::sample_draw(shape, &logits, &masks, &wanted, SLACK);
    let check = |tokens: &[Option<u32>], drawn: &[usize]| {
        assert_eq!(tokens.len(), drawn.len());
        for (token, wanted) in tokens.iter().zip(drawn.iter().map(|idx| &wanted[*idx])) {
            let is_near = token.is_some_and(|token| wanted.within.contains(&token));
            assert!(*token == wanted.token || is_near, "{token:?}, not {wanted:?}");
        }
    };
    let mixed = Batch { logits: &[1, 4], hidden: &[5, 0], drawn: &drawn[..4], masks: &masks, ..batch };
    let result = runner.run(&mixed).expect("a tiny model works");
    check(result.tokens, &[0, 1, 2, 3]);
    assert_eq!(result.tokens[3], None, "its mask allows nothing");
    assert_eq!(result.logits, [&logits[vocab..][..vocab], &logits[4 * vocab..][..vocab]].concat());
    assert_eq!(result.hidden, hidden);
    // Alone, with nothing else to read back; and a later step has forgotten what an earlier one drew.
    let alone = Batch { drawn: &drawn[4..], ..batch };
    let result = runner.run(&alone).expect("a tiny model works");
    check(result.tokens, &[4]);
    assert!(result.logits.is_empty() && result.hidden.is_empty());
    assert!(runner.run(&batch).expect("a tiny model works").tokens.is_empty());
}

#[test]
fn pages_are_copied_and_kept() {
    let device = Device::open(&DeviceOptions::default()).expect("there is a device");
    let mut runner = runner(&device, &TinySpec::new(Arch::Qwen2, 4));
    let tokens: Vec<u32> = (0..40).collect();
    let want = step(&mut runner, &[(&Seq { tokens: &tokens, pages: &[1, 2] }, 0..39)]).remove(0);
    let last = step(&mut runner, &[(&Seq { tokens: &tokens, pages: &[1, 2] }, 39..40)]).remove(0);
    assert_ne!(want, last);
    runner.copy_pages(&[quern_shaders::pages::PageCopy { from: 2, to: 7, num_tokens: 7 }]);
    assert_eq!(step(&mut runner, &[(&Seq { tokens: &tokens, pages: &[1, 7] }, 39..40)]).remove(0), last);
    let kept = runner.read_pages(&[1, 2]).expect("a tiny model works");
    assert_eq!(kept.len(), 2 * runner.page_bytes());
    runner.write_pages(&[4, 3], &kept);
    assert_eq!(step(&mut runner, &[(&Seq { tokens: &tokens, pages: &[4, 3] }, 39..40)]).remove(0), last);
}

/// Matrices for every other layer's modules.
fn matrices(model: &Model, seed: u64, rank: u32) -> Vec<(u32, u32, Vec<f32>, Vec<f32>)> {
    let shape = &model.shape;
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let sizes = [
        [shape.hidden, queries],
        [shape.hidden, keys],
        [shape.hidden, keys],
        [queries, shape.hidden],
        [shape.hidden, shape.ffn],
        [shape.hidden, shape.ffn],
        [shape.ffn, shape.hidden],
    ];
    let pair = |(module, [input, output]): (usize, [u32; 2])| {
        let seed = seed * 100 + module as u64;
        let a = common::floats(seed, (rank * input) as usize);
        let b: Vec<f32> =
            common::floats(seed + 50, (output * rank) as usize).iter().map(|v| v / 8.0).collect();
        (0, module as u32, a, b)
    };
    sizes.into_iter().enumerate().map(pair).collect()
}

fn load_adapter(runner: &mut Runner, adapter_id: u32, rank: u32) -> Result<(), AdapterError> {
    let matrices = matrices(runner.model(), u64::from(adapter_id), rank);
    let pairs: Vec<LoraMatrices<'_>> = matrices
        .iter()
        .map(|(layer_idx, module_idx, a, b)| LoraMatrices {
            layer_idx: *layer_idx,
            module_idx: *module_idx,
            rank,
            a,
            b,
            scale: 0.05,
        })
        .collect();
    runner.load_adapter(adapter_id, &pairs)
}

#[test]
fn rows_of_a_batch_have_adapters_of_their_own() {
    let device = Device::open(&DeviceOptions::default()).expect("there is a device");
    let mut runner = runner(&device, &TinySpec::new(Arch::Qwen2, 4));
    load_adapter(&mut runner, 7, 5).expect("a tiny model works");
    load_adapter(&mut runner, 9, 16).expect("a tiny model works");
    let full = load_adapter(&mut runner, 8, 16).expect_err("slots are full").to_string();
    assert!(full.contains("all 1 slots for adapters of rank 16 or more are taken"), "{full}");
    let run = |runner: &mut Runner, adapters: &[Option<u32>]| -> Vec<Vec<f32>> {
        let row = |list: usize, position: u32| BatchRow {
            token: 3 + position * 7,
            position,
            list,
            adapter_id: adapters[list],
        };
        let rows: Vec<BatchRow> =
            (0..adapters.len()).flat_map(|list| (0..5).map(move |position| row(list, position))).collect();
        let pages = [[1], [2], [3], [4]];
        let lists: Vec<&[u32]> = pages[..adapters.len()].iter().map(<[u32; 1]>::as_slice).collect();
        let logits: Vec<u32> = (0..adapters.len() as u32).map(|list| list * 5 + 4).collect();
        let batch = Batch { rows: &rows, lists: &lists, logits: &logits, ..Batch::default() };
        let vocab = runner.model().shape.vocab as usize;
        runner.run(&batch).expect("a tiny model works").logits.chunks(vocab).map(<[f32]>::to_vec).collect()
    };
    let wishes = [Some(7), None, Some(9), Some(7)];
    let alone: Vec<_> = wishes.iter().map(|wish| run(&mut runner, &[*wish]).remove(0)).collect();
    assert_ne!(alone[0], alone[1]);
    assert_ne!(alone[0], alone[2]);
    assert_eq!(run(&mut runner, &wishes), alone, "together as alone");
    // A slot is used again, and its former adapter leaves nothing behind.
    runner.unload_adapter(7).expect("a tiny model works");
    assert!(!runner.has_adapter(7) && runner.unload_adapter(7).is_err());
    load_adapter(&mut runner, 3, 8).expect("a tiny model works");
    load_adapter(&mut runner, 7, 5).expect("a tiny model works");
    assert_eq!(run(&mut runner, &[Some(7)]), [alone[0].clone()]);
    assert_eq!(run(&mut runner, &[None]), [alone[1].clone()]);
}
