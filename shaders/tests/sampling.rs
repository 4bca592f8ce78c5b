//! `sample_scan` and `sample_draw` against their twins, argmax, and exact distributions.

mod common;

use std::sync::OnceLock;

use quern_shaders::Device;
use quern_shaders::harness::{Content, devices, run};
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::sampling::{Draw, NO_TOKEN, SampleRow, SampleShape};
use quern_shaders::twins;

/// The vocabulary of Qwen2.5 as its logits have it.
const QWEN: u32 = 151_936;

/// How wrong a device's sums may be, as a part of the total. Weights are good to about 3e-6.
const SLACK: f64 = 5e-6;

struct Kernels {
    device: &'static Device,
    scan: Kernel,
    draw: Kernel,
}

/// Unchecked and checked; these kernels do without subgroups.
fn kernels() -> &'static [Kernels] {
    static KERNELS: OnceLock<Vec<Kernels>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let build = |device: &'static Device| {
            let kernel = |name| Kernel::new(device, &Text::new(name, &[])).expect("the kernel compiles");
            Kernels { device, scan: kernel("sample_scan"), draw: kernel("sample_draw") }
        };
        let plain = devices().iter().filter(|device| device.profile().subgroup_size.is_none());
        plain.map(build).collect()
    })
}

struct Batch<'a> {
    vocab_size: u32,
    logits: &'a [f32],
    masks: &'a [u32],
    rows: &'a [SampleRow],
}

impl Batch<'_> {
    fn shape(&self) -> SampleShape {
        SampleShape { vocab_size: self.vocab_size }
    }

    fn contents(&self) -> Vec<(&'static str, Content)> {
        let shape = self.shape();
        let sizes = [shape.vocab_size, shape.num_blocks(), shape.mask_words(), 0];
        let rows: Vec<u32> = self.rows.iter().flat_map(SampleRow::words).collect();
        let masks = if self.masks.is_empty() { &[0] } else { self.masks };
        vec![
            ("logits", Content::of(self.logits)),
            ("masks", Content::of(masks)),
            ("rows", Content::of(&rows)),
            ("shape", Content::of(&sizes)),
        ]
    }

    /// Peaks' keys and weights of blocks.
    fn scan(&self, kernels: &Kernels) -> Vec<u32> {
        let num_rows = self.rows.len() as u32;
        let num_blocks = self.shape().num_blocks();
        let mut contents = self.contents();
        contents.push(("scan", Content::poisoned((num_rows * num_blocks * 2) as usize)));
        let groups = [num_blocks.div_ceil(16), num_rows, 1];
        run(kernels.device, &kernels.scan, &contents, groups).expect("the kernel runs").words("scan")
    }

    fn draw(&self, kernels: &Kernels) -> Vec<u32> {
        let num_rows = self.rows.len();
        let mut contents = self.contents();
        contents.push(("scan", Content::of(&self.scan(kernels))));
        contents.push(("hot", Content::poisoned(num_rows * self.shape().num_blocks() as usize)));
        contents.push(("tokens", Content::poisoned(num_rows)));
        run(kernels.device, &kernels.draw, &contents, [num_rows as u32, 1, 1])
            .expect("the kernel runs")
            .words("tokens")
    }

    /// Draws on every device and holds all against the twin; gives the tokens.
    #[track_caller]
    fn check(&self) -> Vec<u32> {
        let want = twins::sample_draw(self.shape(), self.logits, self.masks, self.rows, SLACK);
        let mut tokens = Vec::new();
        for kernels in kernels() {
            tokens = self.draw(kernels);
            let mut num_others = 0;
            for (idx, (token, want)) in tokens.iter().zip(&want).enumerate() {
                let is_same = *token == want.token.unwrap_or(NO_TOKEN);
                let is_near = want.token.is_some() && want.within.contains(token);
                assert!(is_same || is_near, "row {idx}, {:?}: {token}, not {want:?}", self.rows[idx]);
                num_others += usize::from(!is_same);
            }
            assert!(num_others * 20 <= want.len(), "{num_others} of {} draws are the next token", want.len());
        }
        tokens
    }
}

/// Near enough to normal.
fn logits(seed: u64, count: usize, deviation: f32) -> Vec<f32> {
    let uniform = common::floats(seed, count * 4);
    let (groups, _) = uniform.as_chunks::<4>();
    groups.iter().map(|group| group.iter().sum::<f32>() * (0.75_f32.sqrt() * deviation)).collect()
}

fn greedy(num_rows: u32) -> Vec<SampleRow> {
    (0..num_rows).map(|row| SampleRow::new(Draw::GREEDY, 5, row, None)).collect()
}

/// The first of the largest; NaN is no number.
fn argmax(logits: &[f32]) -> u32 {
    let larger =
        |best: u32, token: u32| if logits[token as usize] > logits[best as usize] { token } else { best };
    let numbers = (0..logits.len() as u32).filter(|token| !logits[*token as usize].is_nan());
    numbers.reduce(larger).expect("a row holds a number")
}

#[test]
fn greedy_is_argmax_with_ties_to_the_lowest_token() {
    for vocab_size in [1, 2, 63, 64, 65, 1000, 4097, QWEN] {
        // Rounded to few values, so that most peaks are ties.
        let mut logits: Vec<f32> =
            logits(7, 3 * vocab_size as usize, 2.0).iter().map(|value| (value * 2.0).round() / 2.0).collect();
        // The first row is all negative; the others hold what is no number.
        logits[..vocab_size as usize].iter_mut().for_each(|value| *value -= 100.0);
        for (idx, value) in logits.iter_mut().enumerate().skip(vocab_size as usize + 1) {
            *value = [f32::NAN, f32::NEG_INFINITY, -0.0, *value][idx % 7 % 4];
        }
        let batch = Batch { vocab_size, logits: &logits, masks: &[], rows: &greedy(3) };
        let want: Vec<u32> = logits
            .chunks(vocab_size as usize)
            .map(|row| {
                if row.iter().all(|value| value.is_nan() || *value == f32::NEG_INFINITY) {
                    NO_TOKEN
                } else {
                    argmax(row)
                }
            })
            .collect();
        assert_eq!(batch.check(), want, "vocabulary {vocab_size}");
    }
}

#[test]
fn impossible_rows_give_no_token_and_infinity_is_certain() {
    let mut logits = vec![f32::NAN; 4 * 200];
    logits[200..400].fill(f32::NEG_INFINITY);
    logits[400..600].fill(1.0);
    // Both signs of zero are one logit; a positive infinity is above all, and the first counts.
    logits[405] = f32::INFINITY;
    logits[477] = f32::INFINITY;
    logits[600..800].fill(0.0);
    logits[600] = -0.0;
    let hot = Draw { temperature: 2.0, top_k: 3, top_p: 0.9, min_p: 0.01, seed: 3 };
    let plain = Draw { top_k: 0, top_p: 1.0, min_p: 0.0, ..hot };
    let rows: Vec<SampleRow> = [Draw::GREEDY, hot, plain]
        .into_iter()
        .flat_map(|draw| (0..3).map(move |row| SampleRow::new(draw, 1, row, None)))
        .chain([SampleRow::new(Draw::GREEDY, 1, 3, None)])
        .collect();
    let tokens = Batch { vocab_size: 200, logits: &logits, masks: &[], rows: &rows }.check();
    assert_eq!(tokens, [NO_TOKEN, NO_TOKEN, 5, NO_TOKEN, NO_TOKEN, 5, NO_TOKEN, NO_TOKEN, 5, 0]);
}

#[test]
fn masks_forbid_whatever_the_logits_say() {
    let shape = SampleShape { vocab_size: 1003 };
    let words = shape.mask_words() as usize;
    let mut logits = logits(11, 1003, 3.0);
    logits[13] = f32::INFINITY;
    // One token alone, none, and every third; bits past the vocabulary are set in all.
    let mut masks = vec![0_u32; 3 * words];
    masks[999 / 32] |= 1 << (999 % 32);
    (0..1003).step_by(3).for_each(|token| masks[2 * words + token / 32] |= 1 << (token % 32));
    (0..3).for_each(|mask| masks[mask * words + words - 1] |= !0 << (1003 % 32));
    let draws = [Draw::GREEDY, Draw { temperature: 1.5, top_k: 0, top_p: 0.8, min_p: 0.0, seed: 1 }];
    let rows: Vec<SampleRow> = draws
        .into_iter()
        .flat_map(|draw| (0..60).map(move |at| SampleRow::new(draw, at, 0, Some(at % 3))))
        .collect();
    let tokens = Batch { vocab_size: 1003, logits: &logits, masks: &masks, rows: &rows }.check();
    for (tokens, row) in tokens.as_chunks::<3>().0.iter().zip(0..) {
        assert_eq!(tokens[..2], [999, NO_TOKEN], "row {row}");
        assert!(tokens[2] < 1003 && tokens[2] % 3 == 0, "row {row}: {}", tokens[2]);
    }
}

/// Every way to cut, alone and together.
fn draws() -> Vec<Draw> {
    let plain = Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 42 };
    vec![
        plain,
        Draw { temperature: 0.3, ..plain },
        Draw { temperature: f32::INFINITY, ..plain },
        Draw { top_k: 2, ..plain },
        Draw { top_k: 40, temperature: 1.7, ..plain },
        Draw { top_k: 2999, ..plain },
        Draw { top_p: 0.1, ..plain },
        Draw { top_p: 0.95, ..plain },
        Draw { top_p: 0.999, temperature: 2.0, ..plain },
        Draw { min_p: 0.05, ..plain },
        Draw { min_p: 1e-6, temperature: 1.5, ..plain },
        Draw { top_k: 50, top_p: 0.9, min_p: 0.02, temperature: 0.8, ..plain },
        Draw { top_k: 2000, top_p: 0.5, ..plain },
    ]
}

#[test]
fn draws_are_the_twin_s() {
    // Wide enough for every block to be cold somewhere, and narrow: many ties.
    for (vocab_size, deviation, step) in [(3000, 3.0, 0.0), (3000, 1.0, 0.25), (130, 5.0, 0.0)] {
        let mut logits = logits(13, 2 * vocab_size as usize, deviation);
        if step > 0.0 {
            logits.iter_mut().for_each(|value| *value = (*value / step).round() * step);
        }
        let rows: Vec<SampleRow> = draws()
            .into_iter()
            .flat_map(|draw| (0..40).map(move |at| SampleRow::new(draw, at * 977, at % 2, None)))
            .collect();
        Batch { vocab_size, logits: &logits, masks: &[], rows: &rows }.check();
    }
}

#[test]
fn draws_from_a_real_vocabulary() {
    let mut logits = logits(17, 2 * QWEN as usize, 2.5);
    // The second row is sure of itself, as models mostly are.
    logits[QWEN as usize + 100_000] = 24.0;
    let rows: Vec<SampleRow> = draws()
        .into_iter()
        .flat_map(|draw| (0..4).map(move |at| SampleRow::new(draw, at, at % 2, None)))
        .collect();
    let batch = Batch { vocab_size: QWEN, logits: &logits, masks: &[], rows: &rows };
    let together = batch.check();
    // Nor does a row's company matter.
    for idx in [3, 17, 30, 45] {
        let alone = Batch { rows: &rows[idx..=idx], ..batch }.draw(&kernels()[0]);
        assert_eq!(alone, together[idx..=idx]);
    }
}

/// Tokens' exact probabilities, written down apart from the twin.
fn probabilities(logits: &[f32], draw: Draw) -> Vec<f64> {
    let mut weights: Vec<(usize, f64)> = logits
        .iter()
        .map(|logit| (f64::from(*logit) / f64::from(draw.temperature)).exp())
        .enumerate()
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if draw.top_k > 0 {
        weights.truncate(draw.top_k as usize);
    }
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut before = 0.0;
    let in_nucleus = |(_, weight): &(usize, f64)| {
        before += weight;
        before - weight < f64::from(draw.top_p) * total
    };
    let kept: Vec<(usize, f64)> = weights.iter().copied().take_while(in_nucleus).collect();
    let kept = kept.iter().filter(|(_, weight)| *weight >= f64::from(draw.min_p) * weights[0].1);
    let total: f64 = kept.clone().map(|(_, weight)| weight).sum();
    let mut out = vec![0.0; logits.len()];
    kept.for_each(|(token, weight)| out[*token] = weight / total);
    out
}

#[test]
fn frequencies_are_probabilities() {
    const NUM_DRAWS: u32 = 5_000;
    let logits = logits(23, 90, 1.5);
    let plain = Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 99 };
    let cut = Draw { temperature: 0.7, top_k: 30, top_p: 0.93, min_p: 0.01, seed: 100 };
    for draw in [plain, cut] {
        let rows: Vec<SampleRow> = (0..NUM_DRAWS).map(|at| SampleRow::new(draw, at, 0, None)).collect();
        let batch = Batch { vocab_size: 90, logits: &logits, masks: &[], rows: &rows };
        let mut counts = vec![0_u32; 90];
        batch.draw(&kernels()[0]).iter().for_each(|token| counts[*token as usize] += 1);

        let expected: Vec<f64> =
            probabilities(&logits, draw).iter().map(|p| p * f64::from(NUM_DRAWS)).collect();
        assert!(counts.iter().zip(&expected).all(|(count, expected)| *expected > 0.0 || *count == 0));
        // Where few draws are expected, squares are not distributed as the bound wants it.
        let cells = counts.iter().zip(&expected).filter(|(_, expected)| **expected >= 5.0);
        let freedom = cells.clone().count() as f64 - 1.0;
        let chi_square: f64 =
            cells.map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected).sum();
        assert!(freedom > 10.0);
        // Five deviations: one seed in more than a million would fail.
        let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
        assert!(chi_square < bound, "{draw:?}: {chi_square} with {freedom} degrees of freedom");
    }
}

#[test]
fn scans_are_the_twin_s() {
    let mut logits = logits(29, 2 * 333, 4.0);
    logits[70..140].fill(f32::NAN);
    logits[333] = f32::INFINITY;
    let draw = Draw { temperature: 0.9, ..draws()[0] };
    let rows = [SampleRow::new(draw, 0, 1, None), SampleRow::new(draw, 0, 0, None), greedy(1)[0]];
    let batch = Batch { vocab_size: 333, logits: &logits, masks: &[], rows: &rows };
    let want = twins::sample_scan(batch.shape(), &logits, &[], &rows);
    for kernels in kernels() {
        let scan = batch.scan(kernels);
        let (got, _) = scan.as_chunks::<2>();
        assert_eq!(got.len(), want.len());
        for (idx, ([key, weights], want)) in got.iter().zip(&want).enumerate() {
            // Keys sort as logits do: flipped for negative ones, above half for the others.
            let peak =
                (*key > 0).then(|| f32::from_bits(if *key >> 31 == 1 { *key & 0x7fff_ffff } else { !*key }));
            assert_eq!(peak, want.peak, "block {idx}");
            let error = (f64::from(f32::from_bits(*weights)) - want.weights).abs();
            assert!(error <= 4e-6 * want.weights, "block {idx}: {error:e} of {}", want.weights);
        }
    }
}
