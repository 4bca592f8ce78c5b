//! How long whole steps of a model take on this machine's device, and what their time goes to.
//!
//! ```text
//! cargo run --release -p quern-shaders --example step_bench -- MODEL.gguf [key=value]…
//! ```
//! Keys: `adapter` (a part of its name), `cooperative` (1: long prompts by cooperative matrices), `prefill` (tokens of
//! a prompt, in one step), `context` (tokens that sequences hold before they decode), `runs` of each case.
//!
//! The first table is by the host's clock, from a batch to its logits, or tokens, in memory, and gives medians; `MB` are
//! the weights that a step reads. The second has the dispatches of the same steps by the device's clock,
//! each in a pass of its own, which no step is computed with otherwise: together they take longer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quern_gguf::Gguf;
use quern_shaders::model::Model;
use quern_shaders::pages::{Append, PAGE_TOKENS, PageBook};
use quern_shaders::sampling::Draw;
use quern_shaders::step::{Batch, BatchRow, DrawnRow, Runner, StepLimits};
use quern_shaders::{Device, DeviceOptions};

type Error = Box<dyn std::error::Error>;

/// How tokens are drawn in the steps that draw.
const DRAW: Draw = Draw { temperature: 0.8, top_k: 0, top_p: 0.95, min_p: 0.0, seed: 1 };

/// Sequences that decode together.
const DECODES: [u32; 5] = [1, 2, 4, 8, 32];

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: step_bench MODEL.gguf [key=value]…")?;
    let (mut options, mut prefill, mut context, mut runs) = (DeviceOptions::default(), 128, 128, 5);
    for arg in args {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg} is not key=value"))?;
        match key {
            "adapter" => options.adapter = value.to_owned(),
            "cooperative" => options.cooperative_matrices = value == "1",
            "prefill" => prefill = value.parse()?,
            "context" => context = value.parse()?,
            "runs" => runs = value.parse::<usize>()?.max(1),
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    let device = Device::open(&options)?;
    let mut bench = Bench::new(&device, Path::new(&path), prefill, context)?;
    let profile = device.profile();
    println!("{} by {}, {}\n", profile.name, profile.backend, profile.driver);
    println!("| step | rows | ms | tokens/s | MB | GB/s |\n| --- | --- | --- | --- | --- | --- |");
    for count in DECODES {
        bench.row(&format!("decode behind {context}"), Shape::Decode(count), runs)?;
    }
    for (what, draw) in [("greedy", Draw::GREEDY), ("top-p", DRAW)] {
        bench.draw = Some(draw);
        for count in [1, 8] {
            bench.row(&format!("decode behind {context}, {what}"), Shape::Decode(count), runs)?;
        }
    }
    bench.draw = None;
    bench.row("prefill", Shape::Prefill(prefill), runs)?;
    for shape in [Shape::Decode(1), Shape::Prefill(prefill)] {
        bench.dispatches(shape)?;
    }
    Ok(())
}

/// What a step computes.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// A row of each of so many sequences.
    Decode(u32),
    /// So many rows of one sequence.
    Prefill(u32),
}

struct Bench {
    runner: Runner,
    book: PageBook,
    context: u32,
    /// Tokens are drawn in this way, and logits stay where they are.
    draw: Option<Draw>,
    /// Bytes of weights that a step reads.
    weight_bytes: u64,
}

impl Bench {
    fn new(device: &Device, path: &Path, prefill: u32, context: u32) -> Result<Bench, Error> {
        let model = Arc::new(Model::load(device, &Gguf::open(path)?, &mut |_| true)?);
        let most = DECODES.into_iter().max().unwrap_or(1);
        let pages_each = (context + 1).div_ceil(PAGE_TOKENS);
        let num_pages = pages_each * most + prefill.div_ceil(PAGE_TOKENS);
        let limits = StepLimits {
            max_rows: prefill.max(context).max(most),
            max_outputs: most,
            num_pages,
            max_sequence_len: (context + 1).max(prefill),
            adapter_slots: [0; 4],
            draws: true,
        };
        let runner = Runner::new(device, &model, limits)?;
        let weight_bytes = model.step_bytes();
        let mut bench = Bench {
            runner,
            book: PageBook::new(num_pages, most as usize + 1),
            context,
            draw: None,
            weight_bytes,
        };
        for seq_id in 0..most {
            bench.extend(&[(seq_id, context)])?;
        }
        Ok(bench)
    }

    /// Computes so many more tokens of each sequence, with logits or a token behind the last of each.
    fn extend(&mut self, parts: &[(u32, u32)]) -> Result<(), Error> {
        self.with_batch(parts, |runner, batch| runner.run(batch).map(|_| ()))
    }

    fn with_batch<T>(
        &mut self,
        parts: &[(u32, u32)],
        run: impl FnOnce(&mut Runner, &Batch<'_>) -> Result<T, quern_shaders::DeviceError>,
    ) -> Result<T, Error> {
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        for (list, (seq_id, num_tokens)) in parts.iter().enumerate() {
            let len = self.book.len(*seq_id);
            let row = |idx| BatchRow {
                token: 100 + (len + idx) % 1000,
                position: len + idx,
                list,
                adapter_id: None,
            };
            rows.extend((0..*num_tokens).map(row));
            logits.push(rows.len() as u32 - 1);
        }
        let appends: Vec<Append> = parts
            .iter()
            .map(|(seq_id, num_tokens)| Append { seq_id: *seq_id, num_tokens: *num_tokens })
            .collect();
        // Nothing is forked here, so that nothing is to be copied.
        self.book.reserve(&appends)?;
        let lists: Vec<&[u32]> = parts.iter().map(|(seq_id, _)| self.book.pages(*seq_id)).collect();
        let drawn = |draw| logits.iter().map(move |row| DrawnRow { row: *row, draw, mask: None }).collect();
        let drawn: Option<Vec<DrawnRow>> = self.draw.map(drawn);
        let batch = Batch { rows: &rows, lists: &lists, ..Batch::default() };
        let batch = match &drawn {
            Some(drawn) => Batch { drawn, ..batch },
            None => Batch { logits: &logits, ..batch },
        };
        Ok(run(&mut self.runner, &batch)?)
    }

    fn parts(shape: Shape) -> Vec<(u32, u32)> {
        match shape {
            Shape::Decode(count) => (0..count).map(|seq_id| (seq_id, 1)).collect(),
            Shape::Prefill(len) => vec![(DECODES.into_iter().max().unwrap_or(1), len)],
        }
    }

    /// Sequences as long as before the step.
    fn undo(&mut self, shape: Shape) -> Result<(), Error> {
        for (seq_id, _) in Bench::parts(shape) {
            let len = if matches!(shape, Shape::Decode(_)) { self.context } else { 0 };
            self.book.truncate(seq_id, len)?;
        }
        Ok(())
    }

    fn row(&mut self, what: &str, shape: Shape, runs: usize) -> Result<(), Error> {
        let parts = Bench::parts(shape);
        let mut times = Vec::new();
        // The first is to warm up.
        for _ in 0..=runs {
            let began = Instant::now();
            self.extend(&parts)?;
            times.push(began.elapsed());
            self.undo(shape)?;
        }
        times.remove(0);
        times.sort_unstable();
        let seconds = times[times.len() / 2].as_secs_f64();
        let rows: u32 = parts.iter().map(|(_, num_tokens)| num_tokens).sum();
        println!(
            "| {what} | {rows} | {:.1} | {:.2} | {:.0} | {:.2} |",
            seconds * 1e3,
            f64::from(rows) / seconds,
            self.weight_bytes as f64 / 1e6,
            self.weight_bytes as f64 / seconds / 1e9
        );
        Ok(())
    }

    /// Where the time of a step goes, by variant and number of workgroups.
    fn dispatches(&mut self, shape: Shape) -> Result<(), Error> {
        let parts = Bench::parts(shape);
        let times = self.with_batch(&parts, |runner, batch| runner.time(batch))?;
        self.undo(shape)?;
        let Some(times) = times else {
            println!("\nThis device has no clock for passes.");
            return Ok(());
        };
        let all: Duration = times.iter().map(|one| one.took).sum();
        println!("\n{shape:?}: {} dispatches, {:.1} ms\n", times.len(), all.as_secs_f64() * 1e3);
        println!("| kernel | workgroups | dispatches | us each | share |\n| --- | --- | --- | --- | --- |");
        let mut kinds: BTreeMap<(String, [u32; 3]), (u32, Duration)> = BTreeMap::new();
        for one in times {
            let kind = kinds.entry((one.kernel, one.workgroups)).or_default();
            *kind = (kind.0 + 1, kind.1 + one.took);
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (_, took))| std::cmp::Reverse(*took));
        for ((kernel, [x, y, z]), (count, took)) in kinds {
            let (each, share) =
                (took.as_secs_f64() * 1e6 / f64::from(count), took.as_secs_f64() / all.as_secs_f64());
            println!("| {kernel} | {x} x {y} x {z} | {count} | {each:.0} | {:.1} % |", share * 100.0);
        }
        Ok(())
    }
}
