//! The book: who lies where, what is refused, and whether bytes are what went in.

use half::f16;

use super::*;
use crate::twins::{LoraBuffers, lora_expand, lora_shrink};

const MODULES: [LoraModule; 3] = [
    LoraModule { name: "q_proj", input: 19, output: 12 },
    LoraModule { name: "k_proj", input: 19, output: 5 },
    LoraModule { name: "down_proj", input: 30, output: 19 },
];
const NUM_LAYERS: u32 = 2;

fn book(num_slots: [u32; 4]) -> LoraBook {
    LoraBook::new(MODULES.to_vec(), NUM_LAYERS, num_slots)
}

/// Matrices for one place, with values that tell places apart.
struct Owned {
    layer_idx: u32,
    module_idx: u32,
    rank: u32,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Owned {
    fn new(layer_idx: u32, module_idx: u32, rank: u32) -> Owned {
        let LoraModule { input, output, .. } = MODULES[module_idx as usize];
        let value = |idx: u32| ((idx * 7 + layer_idx * 3 + module_idx * 5) % 23) as f32 / 16.0 - 0.6;
        let (a, b) = ((0..rank * input).map(value).collect(), (0..rank * output).map(value).collect());
        Owned { layer_idx, module_idx, rank, a, b }
    }

    fn pair(&self) -> LoraMatrices<'_> {
        let &Owned { layer_idx, module_idx, rank, ref a, ref b } = self;
        LoraMatrices { layer_idx, module_idx, rank, a, b, scale: 0.5 }
    }
}

fn load(book: &mut LoraBook, adapter_id: u32, rank: u32) -> Result<Vec<Upload>, LoraError> {
    book.load(adapter_id, &[Owned::new(0, 0, rank).pair()])
}

#[test]
fn an_adapter_gets_the_smallest_slot_that_is_free() {
    let mut book = book([2, 1, 0, 1]);
    for (adapter_id, rank, slot) in [(10, 3, 0), (11, 8, 1), (12, 8, 2), (13, 20, 3)] {
        load(&mut book, adapter_id, rank).unwrap();
        assert_eq!(book.slot_of(adapter_id), Some(slot), "rank {rank}");
    }
    assert_eq!(book.num_free(), [0; 4]);
    let full = load(&mut book, 14, 9).unwrap_err();
    assert_eq!(full, LoraError::NoSlot { rank: 9, num_slots: 2 });
    book.unload(12).unwrap();
    assert_eq!((book.slot_of(12), book.num_free()), (None, [0, 1, 0, 0]));
    load(&mut book, 14, 9).unwrap();
    assert_eq!(book.slot_of(14), Some(2));
}

#[test]
fn slots_lie_apart_and_inside_the_pool() {
    let mut book = book([2, 2, 1, 1]);
    let mut ranges = Vec::new();
    for (adapter_id, rank) in [(1, 64), (2, 8), (3, 16), (4, 1), (5, 32), (6, 12)] {
        for upload in load(&mut book, adapter_id, rank).unwrap() {
            assert_eq!(upload.offset_bytes % 16, 0);
            ranges.push((
                upload.layer_idx,
                upload.offset_bytes,
                upload.offset_bytes + upload.words.len() as u64 * 4,
            ));
        }
    }
    ranges.sort_unstable();
    assert_eq!(ranges.len(), 12);
    assert!(ranges.windows(2).all(|pair| pair[0].0 < pair[1].0 || pair[0].2 == pair[1].1));
    assert_eq!(ranges.last().map(|range| range.2), Some(book.pool_bytes()));
}

#[test]
fn what_cannot_be_served_is_refused_and_changes_nothing() {
    let mut book = book([1, 0, 0, 0]);
    load(&mut book, 1, 4).unwrap();
    book.unload(1).unwrap();
    let before = book.clone();
    let mut check = |pairs: &[LoraMatrices<'_>], expected: LoraError| {
        assert_eq!(book.load(7, pairs).unwrap_err(), expected);
        assert_eq!(book, before);
    };
    let good = Owned::new(1, 2, 8);
    let module = "down_proj";

    let twice = LoraError::TwiceDefined { layer_idx: 1, module };
    check(&[good.pair(), good.pair()], twice);
    for rank in [0, 65] {
        let (a, b) = (vec![0.0; rank as usize * 30], vec![0.0; rank as usize * 19]);
        let pair = LoraMatrices { rank, a: &a, b: &b, ..good.pair() };
        check(&[pair], LoraError::BadRank { layer_idx: 1, module, rank, max: 64 });
    }
    check(&[Owned::new(0, 0, 9).pair()], LoraError::NoSlot { rank: 9, num_slots: 0 });
    let short = LoraMatrices { b: &good.b[1..], ..good.pair() };
    check(&[short], LoraError::BadShape { layer_idx: 1, module, which: "B", found: 151, expected: 152 });
    for (layer_idx, module_idx) in [(2, 0), (0, 3)] {
        let nowhere = LoraMatrices { layer_idx, module_idx, ..good.pair() };
        let expected = LoraError::NoSuchModule { layer_idx, module_idx, num_layers: 2, num_modules: 3 };
        check(&[nowhere], expected);
    }
    let mut wild = good.a.clone();
    wild[3] = f32::INFINITY;
    let pair = LoraMatrices { a: &wild, ..good.pair() };
    check(&[pair], LoraError::OutOfRange { layer_idx: 1, module, which: "A", value: f32::INFINITY });
    assert_eq!(book.unload(7), Err(LoraError::NotLoaded { adapter_id: 7 }));
    load(&mut book, 7, 4).unwrap();
    assert_eq!(load(&mut book, 7, 4).unwrap_err(), LoraError::AlreadyLoaded { adapter_id: 7 });
}

/// scale * B * A * x, from the matrices as they were given.
fn direct(pair: &LoraMatrices<'_>, x: &[f32]) -> Vec<f64> {
    let rank = pair.rank as usize;
    let dot = |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum() };
    let x: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
    let y: Vec<f64> = pair.a.chunks(x.len()).map(|row| dot(row, &x)).collect();
    pair.b.chunks(rank).map(|row| dot(row, &y) * f64::from(pair.scale)).collect()
}

#[test]
fn slots_hold_what_was_loaded() {
    let mut book = book([1, 1, 0, 0]);
    // Ranks differ within an adapter; layer 1 has less than layer 0.
    let owned = [Owned::new(0, 0, 3), Owned::new(0, 2, 11), Owned::new(1, 2, 16)];
    let pairs = owned.iter().map(Owned::pair).collect::<Vec<_>>();
    load(&mut book, 1, 8).unwrap();
    let uploads = book.load(2, &pairs).unwrap();
    let x: Vec<f32> = (0..30).map(|idx| (idx as f32 * 0.37).sin()).collect();

    for layer_idx in 0..NUM_LAYERS {
        let mut pool = vec![0x7e00_7e00; book.pool_bytes() as usize / 4];
        let upload = &uploads[layer_idx as usize];
        pool[upload.offset_bytes as usize / 4..][..upload.words.len()].copy_from_slice(&upload.words);
        for (module_idx, module) in MODULES.iter().enumerate() {
            let shape = book.shape(&[(module_idx as u32, 2)], 40);
            let (slots, row_slots) = (book.table(), [1, NO_SLOT]);
            let buffers = LoraBuffers { shape: &shape, slots: &slots, row_slots: &row_slots, pool: &pool };
            let x = x[..module.input as usize].repeat(2);
            let (mut shrunk, mut out) = (vec![f32::NAN; 2 * MAX_RANK], vec![1.0; 80]);
            lora_shrink(buffers, &x, &mut shrunk);
            lora_expand(buffers, &shrunk, &mut out);

            let pair =
                pairs.iter().find(|pair| (pair.layer_idx, pair.module_idx) == (layer_idx, module_idx as u32));
            let added = pair
                .map_or(vec![0.0; module.output as usize], |pair| direct(pair, &x[..module.input as usize]));
            let mut expected = vec![1.0; 80];
            expected[2..].iter_mut().zip(added).for_each(|(out, added)| *out += added);
            let distance = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs();
            let error = out.iter().zip(&expected).map(distance).fold(0.0, f64::max);
            assert!(error < 4e-3, "layer {layer_idx}, {}: {error}", module.name);
        }
    }
}

#[test]
fn tiny_values_keep_their_bits() {
    // The largest B is below the smallest normal f16; unbalanced, it would keep five bits.
    let mut owned = Owned::new(0, 0, 8);
    owned.b.iter_mut().for_each(|value| *value *= 2e-6);
    let mut book = book([1, 0, 0, 0]);
    let uploads = book.load(1, &[owned.pair()]).unwrap();
    let values: Vec<f64> = uploads[0]
        .words
        .iter()
        .flat_map(|word| [*word as u16, (word >> 16) as u16])
        .map(|bits| f16::from_bits(bits).to_f64())
        .collect();
    let (a, b) = values.split_at(8 * 24);
    for (column, row) in owned.b.chunks(8).enumerate() {
        for (rank, value) in row.iter().enumerate() {
            // Products with one value of A tell what is kept of B, whatever the factor.
            let (exact, kept) =
                (f64::from(owned.a[0]) * f64::from(*value) * 0.5, a[0] * b[column * 8 + rank]);
            assert!((exact - kept).abs() <= exact.abs() * 2e-3, "{exact:e} is kept as {kept:e}");
        }
    }
}
