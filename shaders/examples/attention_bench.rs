//! How long attention takes on this machine's device, with a workgroup for each row and with one for each part of
//! it.
//!
//! ```text
//! cargo run --release -p quern-shaders --example attention_bench -- [key=value]…
//! ```
//! Keys: `adapter` (a part of its name), `dim`, `heads`, `kv_heads` of the model, `part` (keys of a part), `rows`
//! (sequences of one length that decode together), `contexts` (their lengths, with commas), `runs` of each case.
//!
//! Times are medians by the device's clock, without submits. `one` knows no parts, `all` folds them in one
//! workgroup, and `each` with `merge` has a workgroup for each. All of them read the same pages, and `MB` are the
//! keys and values in them.

use std::time::Duration;

use quern_shaders::harness::{Content, Written};
use quern_shaders::kernels::Text;
use quern_shaders::timing::time;
use quern_shaders::{Device, DeviceOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Error = Box<dyn std::error::Error>;

/// Tokens of a page.
const SLOTS: u32 = 32;
/// Words of `step_info` in front of rows: how many there are, where parts begin, and two that nothing reads.
const ROWS_AT: u32 = 4;
/// Pairs that a part leaves for a head.
const PARTIAL: u32 = 129;

struct Bench {
    device: Device,
    dim: u32,
    heads: u32,
    kv_heads: u32,
    part: u32,
    rows: u32,
    runs: u32,
}

fn main() -> Result<(), Error> {
    let mut options = DeviceOptions::default();
    let [mut dim, mut heads, mut kv_heads, mut part, mut rows, mut runs] = [64, 14, 2, 512, 1, 5];
    let mut contexts = "512,2048,8192,32768".to_owned();
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg} is not key=value"))?;
        match key {
            "adapter" => options.adapter = value.to_owned(),
            "contexts" => contexts = value.to_owned(),
            "dim" => dim = value.parse()?,
            "heads" => heads = value.parse()?,
            "kv_heads" => kv_heads = value.parse()?,
            "part" => part = value.parse()?,
            "rows" => rows = value.parse()?,
            "runs" => runs = value.parse()?,
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    let device = Device::open(&options)?;
    println!("{} by {}, {}", device.profile().name, device.profile().backend, device.profile().driver);
    println!("{rows} rows, {heads} heads of {dim}, {kv_heads} of keys and values, parts of {part}\n");
    println!(
        "| context | MB | one, us | all, us | each, us | merge, us |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    let bench = Bench { device, dim, heads, kv_heads, part, rows, runs };
    for context in contexts.split(',') {
        bench.context(context.parse()?)?;
    }
    Ok(())
}

impl Bench {
    fn context(&self, len: u32) -> Result<(), Error> {
        let num_parts = len.div_ceil(self.part);
        let pages = len.div_ceil(SLOTS);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let width = (self.heads + 2 * self.kv_heads) * self.dim;
        let qkv: Vec<f32> = (0..self.rows * width).map(|_| random.random_range(-1.0..1.0)).collect();
        // Halves between 1/16 and 1/8, of either sign.
        let words = self.rows * pages * self.kv_heads * SLOTS * self.dim;
        let kv: Vec<u32> = (0..words).map(|_| 0x2c00_2c00 | random.random::<u32>() & 0x83ff_83ff).collect();
        let contents = [("qkv", Content::of(&qkv)), ("kv", Content::of(&kv))];
        let out = [("out", Content::poisoned((self.rows * self.heads * self.dim) as usize))];
        let partials = self.rows * num_parts * self.heads * PARTIAL * 2;
        let partials = [("partials", Content::poisoned(partials as usize))];
        let common = self.common(len);
        let whole = [&contents[..], &common, &out].concat();
        let (one, _) = self.time(&self.attention("one"), &whole, [self.rows, self.kv_heads])?;
        let (all, folded) = self.time(&self.attention("all"), &whole, [self.rows, self.kv_heads])?;
        let parts = [&contents[..], &common, &partials].concat();
        let (each, parts) =
            self.time(&self.attention("each"), &parts, [self.rows * num_parts, self.kv_heads])?;
        let merge = Text::new("attention_merge", &[("DIM", &self.dim.to_string())]);
        let partials = [("partials", Content::of(&parts.words("partials")))];
        let (merge, merged) =
            self.time(&merge, &[&partials[..], &common, &out].concat(), [self.rows, self.heads])?;
        if merged.words("out") != folded.words("out") {
            return Err("parts with a workgroup each give other bits than in one".into());
        }
        let mb = f64::from(words) * 4e-6;
        println!("| {len} | {mb:.1} | {one:.0} | {all:.0} | {each:.0} | {merge:.0} |");
        Ok(())
    }

    /// Rows at the ends of sequences of so many tokens, each on pages of its own.
    fn common(&self, len: u32) -> [(&'static str, Content); 2] {
        let (num_parts, pages) = (len.div_ceil(self.part), len.div_ceil(SLOTS));
        let lists_at = ROWS_AT + 4 * self.rows;
        let parts_at = lists_at + self.rows * pages;
        let mut step_info = vec![self.rows, parts_at, 0, 0];
        step_info.extend((0..self.rows).flat_map(|row| [0, len - 1, 0, lists_at + row * pages]));
        step_info.extend(0..self.rows * pages);
        step_info.extend((0..self.rows).map(|row| row * num_parts));
        step_info.extend((0..self.rows * num_parts).map(|part| part / num_parts));
        let scale = 1.0 / (self.dim as f32).sqrt();
        let params = [self.heads, self.kv_heads, ROWS_AT, scale.to_bits(), self.part, 0, 1, 0];
        [("params", Content::of(&params)), ("step_info", Content::of(&step_info))]
    }

    fn attention(&self, parts: &str) -> Text {
        let (dim, group) = (self.dim.to_string(), (self.heads / self.kv_heads).to_string());
        let shares = self.device.profile().subgroup_size == Some(8);
        let share = if shares { "1" } else { "0" };
        Text::new("attention", &[("DIM", &*dim), ("GROUP", &*group), ("SHARE", share), ("PARTS", parts)])
    }

    /// Microseconds of a run, and what it wrote.
    fn time(
        &self,
        text: &Text,
        contents: &[(&str, Content)],
        [x, y]: [u32; 2],
    ) -> Result<(f64, Written), Error> {
        let kernel = self.device.kernel(text)?;
        let (times, written) = time(&self.device, &kernel, contents, [x, y, 1], self.runs)?;
        let mut times: Vec<Duration> = times.ok_or("this device has no clock for passes")?;
        times.sort_unstable();
        Ok((times[times.len() / 2].as_secs_f64() * 1e6, written))
    }
}
