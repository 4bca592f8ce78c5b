//! How long the engine's steps take on this machine, by their shape.
//!
//! ```text
//! cargo run --release -p quern-llama --example engine_bench -- MODEL.gguf [key=value]…
//! ```
//! Keys: `threads`, `ubatch` (rows computed at once), `outputs`, `sequences`,
//! `kv` (tokens), `idle` (of these, held by sequences that take no part in any
//! step), `flash` (auto, on, off), `repack` (true, false), `seconds` a
//! measurement, `only` (steps whose name begins so).

use std::path::Path;
use std::time::{Duration, Instant};

use quern_engine::{AdapterId, Engine as _, Output, Row, SeqId};
use quern_llama::{FlashAttention, LlamaConfig, LlamaEngine};

type Error = Box<dyn std::error::Error>;

/// Tokens that sequences already hold when decoding is measured.
const CONTEXT: u32 = 128;
/// Tokens of a sequence that takes no part.
const IDLE: u32 = 512;
/// Sequences that decode together at most, beside one that is prefilled.
const MAX_DECODE: u32 = 32;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: engine_bench MODEL.gguf [key=value]…")?;
    let mut config = LlamaConfig { kv_capacity: 8192, ..LlamaConfig::default() };
    let mut budget = Duration::from_secs(2);
    let mut idle: u32 = 0;
    let mut only = String::new();
    for arg in args {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg} is not key=value"))?;
        match key {
            "threads" => (config.threads, config.threads_prefill) = (value.parse()?, value.parse()?),
            "ubatch" => config.micro_batch_rows = value.parse()?,
            "outputs" => config.max_outputs = value.parse()?,
            "sequences" => config.max_sequences = value.parse()?,
            "kv" => config.kv_capacity = value.parse()?,
            "only" => only = value.to_owned(),
            "idle" => idle = value.parse()?,
            "repack" => config.repack = value.parse()?,
            "seconds" => budget = Duration::from_secs_f64(value.parse()?),
            "flash" => {
                config.flash_attention = match value {
                    "on" => FlashAttention::On,
                    "off" => FlashAttention::Off,
                    _ => FlashAttention::Auto,
                };
            }
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    let start = Instant::now();
    let engine = LlamaEngine::load(Path::new(&path), &config, &mut |_| true)?;
    let (idle, sequences) = (idle / IDLE, engine.capabilities().max_sequences);
    if idle as usize + MAX_DECODE as usize >= sequences {
        return Err(format!(
            "idle sequences and {MAX_DECODE} that decode are more than sequences={sequences}"
        )
        .into());
    }
    let mut bench = Bench { engine, budget, idle, only };
    bench.fill();
    bench.measure(&[Shape { prefill: 1, decode: 0, output: Output::Logits }]);
    let ready = start.elapsed();
    bench.describe(ready);
    bench.tables();
    Ok(())
}

/// One kind of step.
#[derive(Clone, Copy)]
struct Shape {
    /// Rows of one new sequence.
    prefill: u32,
    /// Sequences that each add one row, with logits.
    decode: u32,
    /// What the last prefill row gives back.
    output: Output,
}

struct Bench {
    engine: LlamaEngine,
    budget: Duration,
    /// Sequences that hold [`IDLE`] tokens each and take no part: the last ones.
    idle: u32,
    only: String,
}

impl Bench {
    fn describe(&self, ready: Duration) {
        let info = self.engine.model_info();
        let mib = |bytes: Option<u64>| bytes.map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20));
        println!(
            "{} on {:?}",
            info.description,
            info.devices.iter().map(|device| &device.name).collect::<Vec<_>>()
        );
        println!("llama.cpp {}, {}", info.llama_cpp_version, info.system_info);
        println!(
            "ready after {:.2} s; KV {:.0} MiB, compute {:.0} MiB, output {:.0} MiB, resident {} MiB; threads {}/{}",
            ready.as_secs_f64(),
            mib(info.kv_bytes),
            mib(info.compute_bytes),
            mib(info.output_bytes),
            resident_mib(),
            info.threads,
            info.threads_prefill,
        );
    }

    fn fill(&mut self) {
        let last = self.engine.capabilities().max_sequences as SeqId;
        for seq in last - self.idle..last {
            let rows: Vec<_> = (0..IDLE).map(|pos| row(seq, pos, Output::None)).collect();
            self.engine.step(&rows).expect("the tokens fit");
        }
    }

    fn tables(&mut self) {
        println!("\nstep                              ms/step    rows/s");
        for prefill in [16, 32, 64, 96, 128, 256, 512] {
            self.row(&format!("prefill {prefill}"), Shape { prefill, decode: 0, output: Output::Logits });
        }
        for decode in [1, 2, 4, 8, 16, MAX_DECODE] {
            self.row(&format!("decode {decode}"), Shape { prefill: 0, decode, output: Output::None });
        }
        for (prefill, decode) in [(16, 4), (32, 4), (64, 4), (64, 8), (128, 4)] {
            self.row(
                &format!("prefill {prefill} + decode {decode}"),
                Shape { prefill, decode, output: Output::None },
            );
        }
        for prefill in [16, 128] {
            self.row(
                &format!("hidden of the last of {prefill}"),
                Shape { prefill, decode: 0, output: Output::Hidden },
            );
        }
    }

    fn row(&mut self, name: &str, shape: Shape) {
        let rows = shape.prefill + shape.decode;
        if rows as usize > self.engine.capabilities().max_rows || !name.starts_with(&self.only) {
            return;
        }
        let ms = self.measure(&[shape]);
        println!("{name:<30} {ms:>10.2} {:>9.1}", f64::from(rows) / ms * 1000.0);
    }

    /// Median time of a step in milliseconds. Decoding sequences start with
    /// [`CONTEXT`] tokens and grow a little meanwhile.
    fn measure(&mut self, shapes: &[Shape]) -> f64 {
        let mut times = Vec::new();
        for &shape in shapes {
            self.clear();
            for seq in 1..=shape.decode {
                let rows: Vec<_> = (0..CONTEXT).map(|pos| row(seq, pos, Output::None)).collect();
                self.engine.step(&rows).expect("the context fits");
            }
            let start = Instant::now();
            let mut len = CONTEXT;
            while times.len() < 3 || start.elapsed() < self.budget {
                let mut rows: Vec<_> = (0..shape.prefill).map(|pos| row(0, pos, Output::None)).collect();
                if let Some(last) = rows.last_mut() {
                    last.output = shape.output;
                }
                rows.extend((1..=shape.decode).map(|seq| row(seq, len, Output::Logits)));
                let start = Instant::now();
                self.engine.step(&rows).expect("the step fits");
                times.push(start.elapsed().as_secs_f64() * 1000.0);
                self.engine.truncate(0, 0).expect("a sequence can be dropped");
                len += 1;
                if len == 2 * CONTEXT {
                    len = CONTEXT;
                    for seq in 1..=shape.decode {
                        self.engine.truncate(seq, CONTEXT).expect("a sequence can be cut");
                    }
                }
            }
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn clear(&mut self) {
        for seq in 0..self.engine.capabilities().max_sequences as SeqId - self.idle {
            self.engine.truncate(seq, 0).expect("a sequence can be dropped");
        }
    }
}

fn row(seq: SeqId, pos: u32, output: Output) -> Row {
    // Any token will do: the work does not depend on it.
    let token = (seq * 7919 + pos * 104_729) % 1000;
    Row { seq, pos, token, adapter: AdapterId::BASE, output }
}

/// Resident memory of this process, where the system tells.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}
