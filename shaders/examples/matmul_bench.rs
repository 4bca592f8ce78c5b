//! How long a matrix of each type takes to multiply with few and many columns on this machine's device.
//!
//! ```text
//! cargo run --release -p quern-shaders --example matmul_bench -- [key=value]…
//! ```
//! Keys: `adapter` (a part of its name), `only` (a part of the types' names), `buffers` (1: no textures, also
//! on a CPU), `runs` of each case.
//!
//! Times are medians by the device's clock, without submits. `GB/s` are the matrix's own bytes, read once for
//! all of a variant's columns; a matrix is larger than most caches. `GFLOP/s` count two operations a weight
//! and column.

use std::time::Duration;

use quern_gguf::TensorType;
use quern_shaders::harness::Content;
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::texels::Texel;
use quern_shaders::timing::time;
use quern_shaders::weights::Format;
use quern_shaders::weights::format::{GROUP, PANEL_ROWS};
use quern_shaders::{Device, DeviceOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Error = Box<dyn std::error::Error>;

const NUM_ROWS: usize = 32768;
const NUM_COLUMNS: usize = 1024;
/// Columns of x.
const BATCHES: [u32; 7] = [1, 2, 4, 8, 16, 64, 256];
/// Bytes that a plain copy reads.
const COPY_BYTES: usize = 128 << 20;

struct Bench {
    device: Device,
    in_texels: bool,
    runs: u32,
    /// Bytes a second that a copy reads and writes.
    copied: f64,
}

fn main() -> Result<(), Error> {
    let (mut options, mut only, mut buffers, mut runs) = (DeviceOptions::default(), String::new(), false, 5);
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg} is not key=value"))?;
        match key {
            "adapter" => options.adapter = value.to_owned(),
            "only" => only = value.to_owned(),
            "buffers" => buffers = value == "1",
            "runs" => runs = value.parse()?,
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    let device = Device::open(&options)?;
    let profile = device.profile();
    let in_texels = profile.reads_texels && !buffers;
    let from = if in_texels { "textures" } else { "buffers" };
    println!("{} by {}, {}; weights in {from}", profile.name, profile.backend, profile.driver);
    let copied = copy(&device, runs)?;
    println!("copy: {:.1} GB/s read and written\n", copied / 1e9);
    println!(
        "| type | MB | rows | us | GB/s | of copy | GFLOP/s |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    let bench = Bench { device, in_texels, runs, copied };
    for format in Format::all().iter().filter(|format| format.axis.contains(&only)) {
        bench.format(*format)?;
    }
    Ok(())
}

fn copy(device: &Device, runs: u32) -> Result<f64, Error> {
    let x = vec![1_u32; COPY_BYTES / 4];
    let kernel = Kernel::new(device, &Text::new("copy", &[]))?;
    let contents = [("x", Content::of(&x)), ("out", Content::poisoned(x.len()))];
    let (times, _) = time(device, &kernel, &contents, [4096, 1, 1], runs)?;
    Ok(2.0 * COPY_BYTES as f64 / median(times.ok_or("this device has no clock for passes")?))
}

impl Bench {
    fn format(&self, format: Format) -> Result<(), Error> {
        let num_panels = NUM_ROWS / PANEL_ROWS;
        let words = format.panel_words(NUM_COLUMNS / GROUP);
        let bytes = words.iter().sum::<usize>() * num_panels * 4;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let quants: Vec<u32> =
            (0..words[0] * num_panels).map(|_| plain(format.kind, random.random())).collect();
        let highs: Vec<u32> = (0..(words[1] * num_panels).max(1)).map(|_| random.random()).collect();
        // Halves, pairs of bytes and f32 of a sensible size in one.
        let scales = vec![0x2c00_2c00_u32; (words[2] * num_panels).max(1)];
        let plane = |words: &[u32], panel_words: usize, texel: Texel| {
            let width = (panel_words as u32 * 4 / texel.bytes()).max(1);
            let content = Content::of(words);
            if self.in_texels { content.in_rows_of(texel, width) } else { content }
        };
        let planes = [
            ("quants", plane(&quants, words[0], Texel::Words)),
            ("highs", plane(&highs, words[1], Texel::Word)),
            ("scales", plane(&scales, words[2], Texel::Word)),
        ];
        for num_columns in BATCHES {
            let seconds = self.times(format, &planes, num_columns)?;
            let rate = bytes as f64 / seconds;
            println!(
                "| {} | {:.0} | {num_columns} | {:.0} | {:.2} | {:.0} % | {:.1} |",
                format.kind,
                bytes as f64 / 1e6,
                seconds * 1e6,
                rate / 1e9,
                rate / self.copied * 100.0,
                2e-9 * (NUM_ROWS * NUM_COLUMNS) as f64 * f64::from(num_columns) / seconds
            );
        }
        Ok(())
    }

    /// Seconds of a product with so many columns.
    fn times(
        &self,
        format: Format,
        planes: &[(&'static str, Content)],
        num_columns: u32,
    ) -> Result<f64, Error> {
        let shares = self.device.profile().subgroup_size == Some(8);
        // As steps take them.
        let in_tiles = !shares && num_columns > 32;
        let cols = if in_tiles { 32 } else { num_columns.min(if self.in_texels { 16 } else { 8 }) };
        let panels_each = if shares {
            16
        } else if in_tiles {
            8
        } else {
            1
        };
        let (quant, cols_each) = (("QUANT", format.axis), cols.to_string());
        let texels = ("TEXELS", if self.in_texels { "1" } else { "0" });
        let share = ("SHARE", if shares { "1" } else { "0" });
        let text = match in_tiles {
            true => Text::new("matmul_tile", &[quant, texels]),
            false => Text::new("matmul", &[quant, ("COLS", &cols_each), share, texels]),
        };
        let kernel = Kernel::new(&self.device, &text)?;
        let num_panels = (NUM_ROWS / PANEL_ROWS) as u32;
        let width = NUM_COLUMNS as u32 / 4;
        let params =
            [(NUM_COLUMNS / GROUP) as u32, num_panels, NUM_ROWS as u32, width, 0, NUM_ROWS as u32, 0, 0, 0];
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let x: Vec<f32> =
            (0..num_columns as usize * NUM_COLUMNS).map(|_| random.random_range(-1.0..1.0)).collect();
        let x = Content::of(&x);
        let mut contents = vec![
            ("params", Content::of(&[params.as_slice(), &[0; 3]].concat())),
            ("step_info", Content::of(&[num_columns])),
            ("bias", Content::poisoned(1)),
            ("x", if self.in_texels { x.in_rows_of(Texel::Floats, width) } else { x }),
            ("out", Content::poisoned(num_columns as usize * NUM_ROWS)),
        ];
        contents.extend(planes.iter().cloned());
        let workgroups = [num_panels.div_ceil(panels_each), num_columns.div_ceil(cols), 1];
        let (times, _) = time(&self.device, &kernel, &contents, workgroups, self.runs)?;
        Ok(median(times.ok_or("no times")?))
    }
}

/// A word of weights; no infinities, NaNs or numbers so small that CPUs take long.
fn plain(kind: TensorType, bits: u32) -> u32 {
    match kind {
        TensorType::F32 => bits & 0x007f_ffff | 0x3f00_0000,
        TensorType::F16 => bits & 0x03ff_03ff | 0x3800_3800,
        TensorType::BF16 => bits & 0x007f_007f | 0x3f00_3f00,
        _ => bits,
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
