//! Prints what one draw costs in each of the sampler's main modes.
//!
//! `cargo run --release -p quern-scheduler --example sampler_bench [-- PART_OF_A_NAME]`

use std::time::Instant;

use quern_scheduler::constraint::{Constraint, ConstraintError};
use quern_scheduler::request::SamplingParams;
use quern_scheduler::sampler::Sampler;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB: usize = 151_936;
const NUM_ROWS: usize = 16;
const ROUNDS: u64 = 40;

/// Bans nothing: what is measured is the price of the copy.
#[derive(Clone)]
struct AllowAll;

impl Constraint for AllowAll {
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError> {
        mask.fill(u32::MAX);
        mask[0] -= 1;
        Ok(())
    }
    fn accept(&mut self, _token: u32) -> Result<(), ConstraintError> {
        Ok(())
    }
    fn is_finished(&self) -> bool {
        false
    }
    fn clone_box(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let base = SamplingParams::default;
    let warm = || SamplingParams { temperature: 0.7, seed: 7, ..base() };
    let penalties = || SamplingParams { repetition_penalty: 1.1, presence_penalty: 0.5, ..base() };
    let bias = || (0..20).map(|idx| (idx * 7001, 1.0)).collect::<Vec<_>>();
    let modes: Vec<(&str, SamplingParams, Option<u8>, bool)> = vec![
        ("greedy", base(), None, false),
        ("greedy, 20 biases", SamplingParams { logit_bias: bias(), ..base() }, None, false),
        ("greedy, penalties over 600 tokens", penalties(), None, false),
        ("greedy, constraint", base(), None, true),
        ("greedy, 5 logprobs", base(), Some(5), false),
        ("temperature 1", SamplingParams { temperature: 1.0, ..warm() }, None, false),
        ("temperature 0.7", warm(), None, false),
        ("0.7, top-k 20", SamplingParams { top_k: 20, ..warm() }, None, false),
        ("0.7, top-k 2000", SamplingParams { top_k: 2000, ..warm() }, None, false),
        ("0.7, min-p 0.05", SamplingParams { min_p: 0.05, ..warm() }, None, false),
        ("0.7, top-p 0.8", SamplingParams { top_p: 0.8, ..warm() }, None, false),
        ("1.0, top-p 0.95", SamplingParams { temperature: 1.0, top_p: 0.95, ..warm() }, None, false),
        ("0.7, top-k 20, top-p 0.8", SamplingParams { top_k: 20, top_p: 0.8, ..warm() }, None, false),
        (
            "0.7, top-k 20, top-p 0.8, 5 logprobs",
            SamplingParams { top_k: 20, top_p: 0.8, ..warm() },
            Some(5),
            false,
        ),
    ];
    for (shape, peaked) in
        [("normal, std 3", false), ("normal, std 3, eight tokens 8 to 15 above the rest", true)]
    {
        let rows = rows(peaked);
        println!("{VOCAB} logits, {shape}; best, median and worst us per call over {NUM_ROWS} rows in turn");
        for (name, params, logprobs, constrained) in modes.iter().filter(|mode| mode.0.contains(&wanted)) {
            let (best, median, worst) = measure(&rows, params, *logprobs, *constrained);
            println!("  {name:40} {best:8.1} {median:8.1} {worst:8.1}");
        }
    }
}

fn rows(peaked: bool) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut normal = move || {
        let (a, b): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
        3.0 * (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    };
    let mut rows: Vec<Vec<f32>> = (0..NUM_ROWS).map(|_| (0..VOCAB).map(|_| normal()).collect()).collect();
    if peaked {
        for row in &mut rows {
            for idx in 0..8 {
                row[idx * 9001 + 77] = 21.0 + idx as f32;
            }
        }
    }
    rows
}

fn measure(
    rows: &[Vec<f32>],
    params: &SamplingParams,
    logprobs: Option<u8>,
    constrained: bool,
) -> (f64, f64, f64) {
    let prompt: Vec<u32> = (0..600).map(|idx| idx * 251 % VOCAB as u32).collect();
    let mut samplers = vec![Sampler::new(params.clone(), &prompt, logprobs); rows.len()];
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for (row, sampler) in rows.iter().zip(&mut samplers) {
            let mut constraint = AllowAll;
            let constraint = constrained.then_some(&mut constraint as &mut dyn Constraint);
            let start = Instant::now();
            let sampled = sampler.sample(row, round, constraint);
            times.push(start.elapsed().as_secs_f64() * 1e6);
            std::hint::black_box(sampled.expect("these rows always hold a token"));
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    (times[0], times[times.len() / 2], times[times.len() - 1])
}
