//! How long kernels take on this machine's device, what they move, and what share that is of a plain copy.
//!
//! ```text
//! cargo run --release -p quern-shaders --example kernel_bench -- [key=value]…
//! ```
//! Keys: `adapter` (a part of its name), `only` (a part of the kernels' names), `runs` of each case,
//! `copy_mb` that the copy moves.
//!
//! Times are medians by the device's clock, without submits. Bytes are what a case must read and write at
//! least once: what is read twice, or comes out of a cache, makes the share smaller or larger.

use std::time::Duration;

use quern_shaders::harness::Content;
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::lora::{LoraBook, LoraMatrices, LoraModule, MAX_RANK, NO_SLOT};
use quern_shaders::sampling::{Draw, SampleRow, SampleShape};
use quern_shaders::timing::time;
use quern_shaders::{Device, DeviceOptions, twins};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Error = Box<dyn std::error::Error>;

/// The vocabulary of Qwen2.5 as its logits have it.
const VOCAB: u32 = 151_936;

struct Options {
    device: DeviceOptions,
    only: String,
    runs: u32,
    copy_mb: usize,
}

fn main() -> Result<(), Error> {
    let mut options =
        Options { device: DeviceOptions::default(), only: String::new(), runs: 20, copy_mb: 256 };
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg} is not key=value"))?;
        match key {
            "adapter" => options.device.adapter = value.to_owned(),
            "only" => options.only = value.to_owned(),
            "runs" => options.runs = value.parse()?,
            "copy_mb" => options.copy_mb = value.parse()?,
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    let device = Device::open(&options.device)?;
    let profile = device.profile();
    println!("{} by {}, {}", profile.name, profile.backend, profile.driver);
    if !profile.has_timestamps {
        return Err("this device has no clock for passes".into());
    }
    let bench = Bench { device, options };
    let copied = bench.copy()?;
    println!("copy: {:.1} GB/s, {} MB read and as much written\n", copied / 1e9, bench.options.copy_mb);
    println!(
        "{:<12} {:<34} {:>5} {:>10} {:>9} {:>8} {:>7}",
        "kernel", "case", "rows", "us", "MB", "GB/s", "of copy"
    );
    for rows in [1, 8, 32] {
        bench.sampling(rows, copied)?;
    }
    for rows in [1, 8, 32, 128] {
        bench.lora(rows, copied)?;
    }
    Ok(())
}

/// One line of the table.
struct Case<'a> {
    kernel: &'a str,
    what: String,
    rows: u32,
    contents: Vec<(&'a str, Content)>,
    groups: [u32; 3],
    /// Where it does not depend on the values.
    bytes: Option<u64>,
}

struct Bench {
    device: Device,
    options: Options,
}

impl Bench {
    /// Bytes a second that a copy reads and writes.
    fn copy(&self) -> Result<f64, Error> {
        let x: Vec<u32> = (0..self.options.copy_mb as u32 * 250_000).collect();
        let kernel = Kernel::new(&self.device, &Text::new("copy", &[]))?;
        let contents = [("x", Content::of(&x)), ("out", Content::poisoned(x.len()))];
        let (times, written) = time(&self.device, &kernel, &contents, [4096, 1, 1], self.options.runs)?;
        if written.words("out") != twins::copy(&x) {
            return Err("the copy is wrong".into());
        }
        let seconds = median(times.ok_or("no times")?).as_secs_f64();
        Ok(x.len() as f64 * 8.0 / seconds)
    }

    fn measure(&self, case: Case<'_>, copied: f64) -> Result<(), Error> {
        let Case { kernel, what, rows, contents, groups, bytes } = case;
        if !kernel.contains(&self.options.only) {
            return Ok(());
        }
        let compiled = Kernel::new(&self.device, &Text::new(kernel, &[]))?;
        let (times, _) = time(&self.device, &compiled, &contents, groups, self.options.runs)?;
        let seconds = median(times.ok_or("no times")?).as_secs_f64();
        print!("{kernel:<12} {what:<34} {rows:>5} {:>10.1}", seconds * 1e6);
        match bytes {
            Some(bytes) => {
                let rate = bytes as f64 / seconds;
                println!(" {:>9.2} {:>8.1} {:>6.0}%", bytes as f64 / 1e6, rate / 1e9, rate / copied * 100.0);
            }
            None => println!(),
        }
        Ok(())
    }

    fn sampling(&self, rows: u32, copied: f64) -> Result<(), Error> {
        let shape = SampleShape { vocab_size: VOCAB };
        let num_blocks = shape.num_blocks();
        let logits: Vec<f32> = floats(1, (rows * VOCAB) as usize).iter().map(|x| x * 8.0).collect();
        let plain = Draw { temperature: 0.8, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 };
        let draws = [
            ("greedy", Draw::GREEDY),
            ("temperature 0.8", plain),
            ("top-k 40", Draw { top_k: 40, ..plain }),
            ("top-p 0.95", Draw { top_p: 0.95, ..plain }),
            ("min-p 0.05", Draw { min_p: 0.05, ..plain }),
        ];
        for (what, draw) in draws {
            let params: Vec<SampleRow> = (0..rows).map(|row| SampleRow::new(draw, 7, row, None)).collect();
            let words: Vec<u32> = params.iter().flat_map(SampleRow::words).collect();
            let shared = vec![
                ("logits", Content::of(&logits)),
                ("masks", Content::of(&[0_u32])),
                ("rows", Content::of(&words)),
                ("shape", Content::of(&[VOCAB, num_blocks, shape.mask_words(), 0])),
            ];
            let mut contents = shared.clone();
            contents.push(("scan", Content::poisoned((rows * num_blocks * 2) as usize)));
            let kernel = Kernel::new(&self.device, &Text::new("sample_scan", &[]))?;
            let groups = [num_blocks.div_ceil(16), rows, 1];
            let (_, scanned) = time(&self.device, &kernel, &contents, groups, 1)?;
            let bytes = Some(u64::from(rows * (VOCAB * 4 + num_blocks * 8)));
            let case = Case { kernel: "sample_scan", what: what.to_owned(), rows, contents, groups, bytes };
            self.measure(case, copied)?;

            let mut contents = shared;
            contents.push(("scan", Content::of(&scanned.words("scan"))));
            contents.push(("hot", Content::poisoned((rows * num_blocks) as usize)));
            contents.push(("tokens", Content::poisoned(rows as usize)));
            let (kernel, what, groups) = ("sample_draw", what.to_owned(), [rows, 1, 1]);
            self.measure(Case { kernel, what, rows, contents, groups, bytes: None }, copied)?;
        }
        Ok(())
    }

    /// Eight adapters of rank 16 and rows without one, on the 0.5B's and the 7B's Q, K and V.
    fn lora(&self, rows: u32, copied: f64) -> Result<(), Error> {
        for (model, input, kv) in [("0.5B", 896, 128), ("7B", 3584, 512)] {
            for (what, num_adapters) in [("no adapters", 0), ("1 adapter", 1), ("8 adapters", 8)] {
                let what = format!("{model} q,k,v rank 16, {what}");
                self.lora_case(&what, [input, kv], num_adapters, rows, copied)?;
            }
        }
        Ok(())
    }

    fn lora_case(
        &self,
        what: &str,
        [input, kv]: [u32; 2],
        num_adapters: u32,
        rows: u32,
        copied: f64,
    ) -> Result<(), Error> {
        const RANK: u32 = 16;
        let module = |name, output| LoraModule { name, input, output };
        let modules = [module("q_proj", input), module("k_proj", kv), module("v_proj", kv)];
        let width = input + 2 * kv;
        let mut book = LoraBook::new(modules.to_vec(), 1, [0, 8, 0, 0]);
        let mut pool = vec![0_u32; book.pool_bytes() as usize / 4];
        for adapter_id in 1..=num_adapters {
            let owned: Vec<_> = modules
                .iter()
                .map(|module| {
                    (floats(2, (RANK * module.input) as usize), floats(3, (RANK * module.output) as usize))
                })
                .collect();
            let pair = |(module_idx, (a, b))| LoraMatrices {
                layer_idx: 0,
                module_idx,
                rank: RANK,
                a,
                b,
                scale: 2.0,
            };
            let pairs: Vec<LoraMatrices<'_>> =
                (0..).zip(owned.iter().map(|(a, b)| (&a[..], &b[..]))).map(pair).collect();
            for upload in book.load(adapter_id, &pairs)? {
                pool[upload.offset_bytes as usize / 4..][..upload.words.len()].copy_from_slice(&upload.words);
            }
        }
        let row_slots: Vec<u32> =
            (0..rows).map(|row| if num_adapters == 0 { NO_SLOT } else { row % num_adapters }).collect();
        let shape = book.shape(&[(0, 0), (1, input), (2, input + kv)], width);
        let shared = vec![
            ("shape", Content::of(&shape.words())),
            ("slots", Content::of(&book.table())),
            ("row_slots", Content::of(&row_slots)),
            ("pool", Content::of(&pool)),
        ];
        let num_used = u64::from(num_adapters.min(rows));
        let num_busy = if num_adapters == 0 { 0 } else { u64::from(rows) };
        let shrunk = floats(4, rows as usize * 3 * MAX_RANK);

        let mut contents = shared.clone();
        contents.push(("x", Content::of(&floats(5, (rows * input) as usize))));
        contents.push(("shrunk", Content::of(&shrunk)));
        let bytes =
            num_used * u64::from(3 * RANK * input * 2) + num_busy * u64::from(input * 4 + 3 * RANK * 4);
        let (kernel, groups) = ("lora_shrink", [MAX_RANK as u32 / 8, rows, 3]);
        let case = Case { kernel, what: what.to_owned(), rows, contents, groups, bytes: Some(bytes) };
        self.measure(case, copied)?;

        let mut contents = shared;
        contents.push(("shrunk", Content::of(&shrunk)));
        contents.push(("out", Content::of(&floats(6, (rows * width) as usize))));
        let bytes = num_used * u64::from(RANK * width * 2) + num_busy * u64::from(width * 8 + 3 * RANK * 4);
        let (kernel, groups) = ("lora_expand", [width.div_ceil(64), rows, 1]);
        let case = Case { kernel, what: what.to_owned(), rows, contents, groups, bytes: Some(bytes) };
        self.measure(case, copied)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Numbers between -1 and 1 that depend on the seed alone.
fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}
