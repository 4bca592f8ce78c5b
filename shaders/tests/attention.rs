//! `rope_store`, `attention`, `attention_merge` and `swiglu` against their twins.

mod common;

use half::f16;
use quern_shaders::Device;
use quern_shaders::harness::{Content, POISON, Written, assert_close, assert_same, devices, run};
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::twins::{self, HeadNorms, KvShape};

/// Where `step_info` has the number of rows, and where parts begin.
const NUM_ROWS_AT: u32 = 0;
const PARTS_AT: u32 = 1;
/// Where the list of rows begins in it, after something else.
const ROWS_AT: u32 = 3;
/// Keys of a part in these tests.
const PART: usize = 256;
/// Words that a part leaves for a head.
const PARTIAL: usize = 2 * (128 + 1);

#[track_caller]
fn check_rope(dim: usize, heads: usize, kv_heads: usize, with_norms: bool) {
    let shape = KvShape { kv_heads, dim };
    // Slots on two pages, and positions that have nothing to do with them.
    let rows: [(u32, usize); 3] = [(0, 33), (5, 2), (2, 63)];
    let width = (heads + 2 * kv_heads) * dim;
    let qkv = common::floats(1, rows.len() * width);
    let turns: Vec<[f32; 2]> = (0..6 * dim / 2)
        .map(|idx| {
            let (sin, cos) = (idx as f32 * 0.37).sin_cos();
            [cos, sin]
        })
        .collect();
    let (query, key) = (common::floats(2, dim), common::floats(3, dim));
    let norms = with_norms.then_some(HeadNorms { query: &query, key: &key, epsilon: 1e-6 });
    let mut step_info = vec![u32::MAX; ROWS_AT as usize];
    rows.iter().for_each(|(pos, slot)| step_info.extend([u32::MAX, *pos, *slot as u32, u32::MAX]));

    for device in devices() {
        let axes = [
            ("DIM", &*dim.to_string()),
            ("NORM", if with_norms { "1" } else { "0" }),
            ("SUBGROUPS", common::subgroups(device)),
        ];
        let text = Text::new("rope_store", &axes);
        let kernel = Kernel::new(device, &text).expect("a variant compiles");
        let contents = [
            ("params", Content::of(&[heads as u32, kv_heads as u32, ROWS_AT, 1e-6f32.to_bits()])),
            ("step_info", Content::of(&step_info)),
            ("turns", Content::of(&turns)),
            ("query_norm", if with_norms { Content::of(&query) } else { Content::poisoned(dim) }),
            ("key_norm", if with_norms { Content::of(&key) } else { Content::poisoned(dim) }),
            ("qkv", Content::of(&qkv)),
            ("kv", Content::poisoned(2 * shape.page_words())),
        ];
        let workgroups = [rows.len() as u32, (heads + 2 * kv_heads) as u32, 1];
        let written = run(device, &kernel, &contents, workgroups).expect("a kernel runs");
        let (after, kv) = (written.floats("qkv"), written.words("kv"));
        for (row_idx, (pos, slot)) in rows.iter().enumerate() {
            let row = &qkv[row_idx * width..][..width];
            let turns = &turns[*pos as usize * dim / 2..][..dim / 2];
            let want = twins::rope_store(row, [heads, kv_heads], turns, norms);
            let (queries, keys_values) = want.split_at(heads * dim);
            assert_close(text.name(), &after[row_idx * width..][..heads * dim], queries, 1e-12);
            let (keys, values) = keys_values.split_at(kv_heads * dim);
            for head in 0..kv_heads {
                let range = head * dim..(head + 1) * dim;
                // Keys were rounded to f16 after sums that the twin makes in f64: a step apart at most.
                assert_close(text.name(), &shape.key(&kv, *slot, head), &keys[range.clone()], 2e-7);
                let rounded: Vec<f32> = values[range].iter().map(|v| f16::from_f32(*v).to_f32()).collect();
                assert_same(text.name(), &shape.value(&kv, *slot, head), &rounded);
            }
        }
        let written_words = kv.iter().filter(|word| **word != POISON).count();
        assert_eq!(written_words, rows.len() * kv_heads * dim, "nothing else is written");
    }
}

#[test]
fn heads_are_turned_and_stored() {
    check_rope(64, 14, 2, false);
    check_rope(64, 2, 1, true);
    check_rope(128, 4, 2, true);
    check_rope(128, 2, 2, false);
}

#[test]
fn any_value_becomes_the_nearest_f16() {
    // One head of keys that are not turned: cosine 1, sine 0. Every exponent, and the middles.
    let mut values: Vec<f32> = Vec::new();
    for bits in (0..0x7c00u16).step_by(97) {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = (low + high) / 2.0;
        values.extend([low, -low, middle, middle * 1.0001, -middle * 0.9999]);
    }
    values.retain(|value| value.abs() <= 65504.0);
    values.resize(values.len().next_multiple_of(128), 65504.0);
    let num_rows = values.len() / 128;
    let step_info: Vec<u32> = (0..num_rows as u32).flat_map(|row| [0, 0, row, 0]).collect();
    let qkv: Vec<f32> =
        values.chunks(128).flat_map(|row| [vec![0.0; 128], row.to_vec(), row.to_vec()].concat()).collect();
    let shape = KvShape { kv_heads: 1, dim: 128 };
    for device in devices() {
        let axes = [("DIM", "128"), ("NORM", "0"), ("SUBGROUPS", common::subgroups(device))];
        let kernel = Kernel::new(device, &Text::new("rope_store", &axes)).expect("a variant compiles");
        let contents = [
            ("params", Content::of(&[1, 1, 0, 0])),
            ("step_info", Content::of(&step_info)),
            ("turns", Content::of(&[[1f32, 0.0]; 64])),
            ("query_norm", Content::poisoned(1)),
            ("key_norm", Content::poisoned(1)),
            ("qkv", Content::of(&qkv)),
            ("kv", Content::poisoned(num_rows.div_ceil(32) * shape.page_words())),
        ];
        let written = run(device, &kernel, &contents, [num_rows as u32, 3, 1]).expect("a kernel runs");
        let kv = written.words("kv");
        for (slot, row) in values.chunks(128).enumerate() {
            let rounded: Vec<f32> = row.iter().map(|value| f16::from_f32(*value).to_f32()).collect();
            assert_same("keys", &shape.key(&kv, slot, 0), &rounded);
            assert_same("values", &shape.value(&kv, slot, 0), &rounded);
        }
    }
}

/// Two sequences on shuffled pages, the second of which shares the first's first page. What nobody's
/// tokens lie in is NaN.
#[track_caller]
fn check_attention(dim: usize, group: usize, kv_heads: usize, lens: [usize; 2]) {
    let shape = KvShape { kv_heads, dim };
    let (heads, scale) = (group * kv_heads, 1.0 / (dim as f32).sqrt());
    let num_pages = lens.map(|len| len.div_ceil(32));
    // Odd pages backwards, then even ones.
    let mut order: Vec<u32> =
        (0..2 * (num_pages[0] + num_pages[1]) as u32).rev().filter(|page| page % 2 == 1).collect();
    order.swap(0, 1);
    let (first, second) = order.split_at(num_pages[0]);
    let mut second = second.to_vec();
    second[0] = first[0];
    let tables = [first.to_vec(), second];

    let mut kv = vec![POISON; shape.page_words() * 2 * (num_pages[0] + num_pages[1])];
    let slots = |seq: usize, len: usize| -> Vec<usize> {
        (0..len).map(|pos| tables[seq][pos / 32] as usize * 32 + pos % 32).collect()
    };
    let noise = common::floats(5, kv.len() * 2);
    for slot in slots(0, lens[0]).into_iter().chain(slots(1, lens[1])) {
        fill(&mut kv, shape, slot, &noise);
    }
    // Rows of both sequences, and one in the middle of a sequence that sees less of it.
    let rows = [(0, lens[0]), (1, lens[1]), (0, lens[0] / 2 + 1)];
    let mut step_info = vec![u32::MAX; ROWS_AT as usize];
    let tables_at = ROWS_AT + 4 * rows.len() as u32;
    for (seq, len) in rows {
        let table_at = tables_at + if seq == 0 { 0 } else { num_pages[0] as u32 };
        step_info.extend([u32::MAX, len as u32 - 1, u32::MAX, table_at]);
    }
    step_info.extend(tables.iter().flatten());
    let row_lens = rows.map(|(_, len)| len);
    list_parts(&mut step_info, &row_lens);
    let width = (heads + 2 * kv_heads) * dim;
    let mut qkv = common::floats(6, rows.len() * width);
    let mut want = Vec::new();
    for (row, (seq, len)) in qkv.chunks_mut(width).zip(rows) {
        let (queries, others) = row.split_at_mut(heads * dim);
        queries.iter_mut().for_each(|query| *query *= 4.0);
        others.fill(f32::NAN);
        want.extend(twins::attention(queries, shape, &kv, &slots(seq, len), scale));
    }
    let contents = [("qkv", Content::of(&qkv)), ("kv", Content::of(&kv))];
    for device in devices() {
        let case = Case { device, heads, kv_heads, dim, step_info: &step_info, lens: &row_lens };
        case.check(&contents, &want);
    }
}

/// Appends what a step says of parts that have a workgroup each.
fn list_parts(step_info: &mut Vec<u32>, lens: &[usize]) {
    step_info[NUM_ROWS_AT as usize] = lens.len() as u32;
    step_info[PARTS_AT as usize] = step_info.len() as u32;
    let mut first = 0;
    for len in lens {
        step_info.push(first);
        first += num_parts(*len) as u32;
    }
    for (row, len) in (0..).zip(lens) {
        step_info.extend(std::iter::repeat_n(row, num_parts(*len)));
    }
}

fn num_parts(len: usize) -> usize {
    len.div_ceil(PART)
}

/// Attention of a few rows on one device.
struct Case<'a> {
    device: &'static Device,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    step_info: &'a [u32],
    /// Of each row's sequence.
    lens: &'a [usize],
}

impl Case<'_> {
    /// Takes the rows in every way, each near to what is wanted and the same to the last bit.
    #[track_caller]
    fn check(&self, contents: &[(&str, Content)], want: &[f32]) {
        let rows = [self.lens.len() as u32, self.kv_heads as u32];
        let out = [("out", Content::poisoned(want.len()))];
        let [one, all] = ["one", "all"].map(|parts| {
            let (what, written) = self.attention(parts, &[contents, &out].concat(), rows);
            assert_close(&what, &written.floats("out"), want, 1e-11);
            written.words("out")
        });
        let row_width = self.heads * self.dim;
        for (row, len) in self.lens.iter().enumerate().filter(|(_, len)| **len <= PART) {
            let range = row * row_width..(row + 1) * row_width;
            assert!(
                all[range.clone()] == one[range],
                "row {row} of {:?} has one part: {len} keys",
                self.lens
            );
        }

        let num_parts: usize = self.lens.iter().map(|len| num_parts(*len)).sum();
        let part_words = self.heads * PARTIAL;
        // There is room for a part more than there are.
        let partials = [("partials", Content::poisoned((num_parts + 1) * part_words))];
        let parts = [num_parts as u32, self.kv_heads as u32];
        let (what, written) = self.attention("each", &[contents, &partials].concat(), parts);
        let partials = written.floats("partials");
        let (parts, behind) = partials.split_at(num_parts * part_words);
        assert!(behind.iter().all(|value| value.to_bits() == POISON), "{what}: nothing else is written");
        let merged = self.merge(&partials, want);
        assert!(merged == all, "{what}: other bits than in one workgroup");
        assert_close(&what, &self.merge_twin(parts), want, 1e-11);
    }

    /// Runs a variant of `attention`. Its name and the rows' lengths, and what it wrote.
    fn attention(&self, parts: &str, contents: &[(&str, Content)], [x, y]: [u32; 2]) -> (String, Written) {
        let (dim, group) = (self.dim.to_string(), (self.heads / self.kv_heads).to_string());
        let axes =
            [("DIM", &*dim), ("GROUP", &*group), ("SHARE", common::share(self.device)), ("PARTS", parts)];
        let text = Text::new("attention", &axes);
        let kernel = self.device.kernel(&text).expect("a variant compiles");
        let written = run(self.device, &kernel, &[contents, &self.common()].concat(), [x, y, 1])
            .expect("a kernel runs");
        (format!("{} {:?}", text.name(), self.lens), written)
    }

    /// Runs `attention_merge` and holds it against its twin. The bits that it wrote.
    #[track_caller]
    fn merge(&self, partials: &[f32], want: &[f32]) -> Vec<u32> {
        let text = Text::new("attention_merge", &[("DIM", &self.dim.to_string())]);
        let kernel = self.device.kernel(&text).expect("a variant compiles");
        let own = [("partials", Content::of(partials)), ("out", Content::poisoned(want.len()))];
        let groups = [self.lens.len() as u32, self.heads as u32, 1];
        let written =
            run(self.device, &kernel, &[&own[..], &self.common()].concat(), groups).expect("a kernel runs");
        assert_close(&format!("{} {:?}", text.name(), self.lens), &written.floats("out"), want, 1e-11);
        written.words("out")
    }

    /// What the twin of `attention_merge` makes of all rows' parts.
    fn merge_twin(&self, mut partials: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        for len in self.lens {
            let (row, rest) = partials.split_at(num_parts(*len) * self.heads * PARTIAL);
            out.extend(twins::attention_merge(row, self.heads, self.dim));
            partials = rest;
        }
        out
    }

    /// What both kernels are given.
    fn common(&self) -> [(&'static str, Content); 2] {
        let scale = 1.0 / (self.dim as f32).sqrt();
        let [heads, kv_heads, part] = [self.heads, self.kv_heads, PART].map(|count| count as u32);
        let params = [heads, kv_heads, ROWS_AT, scale.to_bits(), part, NUM_ROWS_AT, PARTS_AT, 0];
        [("params", Content::of(&params)), ("step_info", Content::of(self.step_info))]
    }
}

/// Puts noise where the key and the value of a slot lie.
fn fill(kv: &mut [u32], shape: KvShape, slot: usize, noise: &[f32]) {
    let page = slot / 32 * shape.page_words();
    let head_words = 32 * shape.dim / 2;
    for head in 0..shape.kv_heads {
        for word in 0..shape.dim / 2 {
            let key = page + head * head_words + (word / 4 * 32 + slot % 32) * 4 + word % 4;
            let value = page + (shape.kv_heads + head) * head_words + slot % 32 * shape.dim / 2 + word;
            for at in [key, value] {
                let pair =
                    [noise[2 * at], noise[2 * at + 1]].map(|value| u32::from(f16::from_f32(value).to_bits()));
                kv[at] = pair[0] | pair[1] << 16;
            }
        }
    }
}

#[test]
fn rows_attend_to_their_sequence_in_pages() {
    check_attention(64, 7, 2, [1, 40]);
    check_attention(64, 2, 2, [33, 129]);
    check_attention(128, 8, 1, [128, 64]);
    check_attention(128, 1, 3, [300, 32]);
}

#[test]
fn parts_of_long_rows_are_folded_in_order() {
    // Around ends of tiles and of parts.
    for lens in [[127, 128], [129, PART - 1], [PART, PART + 1], [2 * PART, 2 * PART + 127], [1000, 769]] {
        check_attention(64, 7, 2, lens);
    }
    check_attention(64, 2, 2, [PART + 128, 3 * PART]);
    check_attention(128, 8, 1, [PART + 1, 5 * PART - 1]);
    check_attention(128, 1, 3, [4 * PART + 129, PART]);
}

/// Parts whose largest scores are far apart, in any order.
#[track_caller]
fn check_merge(dim: usize, heads: usize, lens: &[usize]) {
    let num_parts: usize = lens.iter().map(|len| num_parts(*len)).sum();
    let mut partials = common::floats(8, num_parts * heads * PARTIAL);
    let scores = common::floats(9, num_parts * heads);
    for (partial, score) in partials.chunks_exact_mut(PARTIAL).zip(scores) {
        partial[PARTIAL - 2] = score * 30.0;
        partial[PARTIAL - 1] = 1.0 + score.abs();
    }
    let mut step_info = vec![u32::MAX; ROWS_AT as usize];
    lens.iter().for_each(|len| step_info.extend([u32::MAX, *len as u32 - 1, u32::MAX, u32::MAX]));
    list_parts(&mut step_info, lens);
    for device in devices() {
        let case = Case { device, heads, kv_heads: heads, dim, step_info: &step_info, lens };
        let want = case.merge_twin(&partials);
        case.merge(&partials, &want);
    }
}

#[test]
fn parts_become_rows() {
    check_merge(64, 3, &[1, PART + 1, 9 * PART, 7]);
    check_merge(128, 2, &[20 * PART - 3]);
}

#[test]
fn gates_pass_and_stop() {
    let (width, num_rows) = (260, 3);
    let gate_up: Vec<f32> =
        common::floats(7, num_rows * 2 * width).iter().map(|value| value * 30.0).collect();
    let want = twins::swiglu(&gate_up, width);
    for device in devices() {
        let kernel = Kernel::new(device, &Text::new("swiglu", &[])).expect("a variant compiles");
        let contents = [
            ("params", Content::of(&[width as u32 / 4, 0, 0, 0])),
            ("gate_up", Content::of(&gate_up)),
            ("out", Content::poisoned(num_rows * width)),
        ];
        let workgroups = [(width as u32 / 4).div_ceil(64), num_rows as u32, 1];
        let out = run(device, &kernel, &contents, workgroups).expect("a kernel runs").floats("out");
        assert_close("swiglu", &out, &want, 1e-12);
    }
}
