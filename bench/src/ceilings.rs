//! What this machine's processor can do at most, measured by small loops: reading memory, and multiplying and adding.
//!
//! The loops use the widest vectors that the processor has and the compiler can be told of without unsafe code (on
//! x86, AVX2 with fused multiply-add). They are ceilings for 32-bit floats: kernels on 8-bit integers can be above.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Floats that each thread reads: far more than caches hold.
const READ_FLOATS: usize = 32 << 20;
/// Accumulators of the arithmetic: enough to hide an operation's latency with the widest vectors.
const NUM_LANES: usize = 128;
/// Turns of the arithmetic between two looks at the clock.
const TURNS: usize = 20_000;

/// Most that was seen of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes that all threads together read from memory in a second.
    pub read_bytes_per_s: f64,
    /// Floating-point operations of all threads together in a second; a multiply-add is two.
    pub flop_per_s: f64,
}

impl Ceilings {
    /// Measures with so many threads for about `time` each, and keeps the best of what it sees. Blocks.
    pub fn measure(num_threads: usize, time: Duration) -> Self {
        Self { read_bytes_per_s: read_rate(num_threads, time), flop_per_s: flop_rate(num_threads, time) }
    }
}

/// Runs the same work on each thread, again and again, and gives the best rate of a thread times the threads. `work`
/// says how much it did.
fn best_rate(num_threads: usize, time: Duration, work: impl Fn() -> f64 + Send + Clone) -> f64 {
    let run = |work: &dyn Fn() -> f64| {
        let begun = Instant::now();
        let mut rates = Vec::new();
        while begun.elapsed() < time || rates.len() < 2 {
            let turn = Instant::now();
            let done = work();
            rates.push(done / turn.elapsed().as_secs_f64());
        }
        // The median: a single turn may have had the memory for itself.
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads)
            .map(|_| {
                let work = work.clone();
                scope.spawn(move || run(&work))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the loops do not panic")).sum()
    })
}

fn read_rate(num_threads: usize, time: Duration) -> f64 {
    let floats: Vec<f32> = (0..READ_FLOATS).map(|n| n as f32).collect();
    best_rate(num_threads, time, || {
        black_box(pulp::Arch::new().dispatch(|| sum(black_box(&floats))));
        (READ_FLOATS * size_of::<f32>()) as f64
    })
}

/// Several sums side by side, or each addition would wait for the one before.
#[inline(always)]
fn sum(floats: &[f32]) -> f32 {
    let mut sums = [0.0f32; NUM_LANES];
    for chunk in floats.chunks_exact(NUM_LANES) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().sum()
}

fn flop_rate(num_threads: usize, time: Duration) -> f64 {
    best_rate(num_threads, time, || {
        black_box(pulp::Arch::new().dispatch(|| multiply_add(black_box(0.999), black_box(0.001))));
        (TURNS * NUM_LANES * 2) as f64
    })
}

#[inline(always)]
fn multiply_add(factor: f32, summand: f32) -> f32 {
    let mut values = [1.0f32; NUM_LANES];
    for _ in 0..TURNS {
        for value in &mut values {
            *value = value.mul_add(factor, summand);
        }
    }
    values.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_compute_what_they_say() {
        assert!((sum(&[1.0; 1024]) - 1024.0).abs() < 1e-3);
        // x = 0.999 x + 0.001 stays at 1.
        assert!((multiply_add(0.999, 0.001) - NUM_LANES as f32).abs() < 0.5);
    }
}
