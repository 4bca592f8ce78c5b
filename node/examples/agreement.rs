//! How far two engines agree on what comes next, fed the same tokens: teacher-forced over texts.
//!
//! ```text
//! cargo run --release -p quern --example agreement -- MODEL.gguf [key=value]… TEXT…
//! ```
//! The reference is llama.cpp on the CPU with MODEL.gguf. Keys: `subject` (`wgsl` or `llama`) and `model` (its
//! file, where it is another one) say what is compared with it; `rows` how many tokens the subject takes in
//! a step (with `cooperative=true`, a `wgsl` subject multiplies more than 32 by cooperative matrices), `repack` and
//! `kv` (f16, q8_0, q4_0) how a `llama` subject is set up. `tokens` are taken of each text, `misses` is a CSV to write.
//!
//! What is printed is a Markdown table: of each text the share of positions at which both have the same
//! likeliest token, and how far logits differ. A miss has a rank, the subject's first choice's place in the
//! reference's order, and a gap, how far the reference's logit for it is behind that of its own first.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quern_engine::{AdapterId, Engine, Output, Row, TokenId};
use quern_gguf::Gguf;
use quern_llama::{KvType, LlamaConfig, LlamaEngine};
use quern_text::{Special, Tokenizer};
use quern_wgsl::{DeviceOptions, WgslConfig, WgslEngine, WgslModel};

/// Tokens of the subject's steps where nothing else is said, and the fewest of the reference's.
const ROWS: usize = 32;

struct Options {
    model: PathBuf,
    subject: String,
    subject_model: Option<PathBuf>,
    rows: usize,
    repack: bool,
    kv: KvType,
    tokens: usize,
    misses: Option<PathBuf>,
    cooperative: bool,
    texts: Vec<PathBuf>,
}

impl Options {
    /// Tokens of the reference's steps; the subject's are as many or fewer.
    fn chunk(&self) -> usize {
        self.rows.max(ROWS)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options(std::env::args().skip(1))?;
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&options.model)?)?;
    let mut reference = llama(&options.model, &LlamaConfig::default(), &options)?;
    let mut subject = subject(&options)?;
    let mut total = Agreement::default();
    println!("| text | tokens | agree | misses | largest gap | largest logit difference | rms |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for path in &options.texts {
        let tokens = tokenizer.encode(&std::fs::read_to_string(path)?, Special::AsText)?;
        let Some(tokens) = tokens.get(..options.tokens) else {
            return Err(format!("{}: it has only {} tokens", path.display(), tokens.len()).into());
        };
        let name = path.display().to_string();
        let found = compare(&mut *reference, &mut *subject, tokens, &options, &name)?;
        found.print(&name);
        total.add(found);
    }
    total.print("**all**");
    println!("\n{}", total.ranks());
    if let Some(path) = &options.misses {
        std::fs::write(path, total.csv())?;
    }
    Ok(())
}

fn options(args: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        model: PathBuf::new(),
        subject: "wgsl".to_owned(),
        subject_model: None,
        rows: ROWS,
        repack: true,
        kv: KvType::F16,
        tokens: 200,
        misses: None,
        cooperative: false,
        texts: Vec::new(),
    };
    let mut paths = Vec::new();
    for arg in args {
        let Some((key, value)) = arg.split_once('=') else {
            paths.push(PathBuf::from(arg));
            continue;
        };
        match key {
            "subject" => options.subject = value.to_owned(),
            "model" => options.subject_model = Some(value.into()),
            "rows" => options.rows = value.parse()?,
            "repack" => options.repack = value.parse()?,
            "kv" => {
                options.kv = match value {
                    "f16" => KvType::F16,
                    "q8_0" => KvType::Q8_0,
                    "q4_0" => KvType::Q4_0,
                    _ => return Err(format!("kv={value}: f16, q8_0 or q4_0").into()),
                };
            }
            "cooperative" => options.cooperative = value.parse()?,
            "tokens" => options.tokens = value.parse()?,
            "misses" => options.misses = Some(value.into()),
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    if paths.len() < 2 || options.rows == 0 {
        return Err("usage: agreement MODEL.gguf [key=value]… TEXT…, with rows=1 or more".into());
    }
    options.model = paths.remove(0);
    options.texts = paths;
    Ok(options)
}

fn llama(path: &Path, config: &LlamaConfig, options: &Options) -> Result<Box<dyn Engine>, Box<dyn Error>> {
    let config = LlamaConfig {
        kv_capacity: (options.tokens as u32).next_multiple_of(256),
        max_sequences: 1,
        max_rows: options.chunk() as u32,
        micro_batch_rows: options.chunk() as u32,
        max_outputs: options.chunk() as u32,
        ..config.clone()
    };
    Ok(Box::new(LlamaEngine::load(path, &config, &mut |_| true)?))
}

fn subject(options: &Options) -> Result<Box<dyn Engine>, Box<dyn Error>> {
    let path = options.subject_model.as_ref().unwrap_or(&options.model);
    match options.subject.as_str() {
        "llama" => {
            let config =
                LlamaConfig { repack: options.repack, kv_type: options.kv, ..LlamaConfig::default() };
            llama(path, &config, options)
        }
        "wgsl" => {
            let config = WgslConfig {
                device: DeviceOptions {
                    cooperative_matrices: options.cooperative,
                    ..DeviceOptions::default()
                },
                kv_capacity: options.tokens as u32 + options.chunk() as u32,
                max_sequences: 1,
                max_rows: options.chunk() as u32,
                max_outputs: options.chunk() as u32,
                adapter_slots: [0; 4],
                ..WgslConfig::default()
            };
            let model = WgslModel::load(path, &config, &mut |_| true)?;
            Ok(Box::new(WgslEngine::on(&Arc::new(model))?))
        }
        other => Err(format!("subject={other}: wgsl or llama").into()),
    }
}

/// The subject's first choice is not the reference's.
struct Miss {
    text: String,
    position: usize,
    /// Its place in the reference's order, from 2.
    rank: usize,
    /// How far the reference's logit for it is behind that of its own first choice.
    gap: f32,
}

/// What was found in one text or more.
#[derive(Default)]
struct Agreement {
    num_tokens: usize,
    misses: Vec<Miss>,
    largest: f32,
    squares: f64,
    num_logits: usize,
}

/// Feeds both the same tokens and compares all logits.
fn compare(
    reference: &mut dyn Engine,
    subject: &mut dyn Engine,
    tokens: &[TokenId],
    options: &Options,
    text: &str,
) -> Result<Agreement, Box<dyn Error>> {
    let vocab = reference.capabilities().vocab_size;
    let mut found = Agreement::default();
    for (chunk_idx, chunk) in tokens.chunks(options.chunk()).enumerate() {
        let start = chunk_idx * options.chunk();
        let wanted = reference.step(&rows(start, chunk))?.logits;
        for (part_idx, part) in chunk.chunks(options.rows).enumerate() {
            let first = part_idx * options.rows;
            let logits = subject.step(&rows(start + first, part))?.logits;
            let wanted = wanted[first * vocab..].chunks(vocab);
            for (idx, (logits, wanted)) in logits.chunks(vocab).zip(wanted).enumerate() {
                found.note(text, start + first + idx, logits, wanted);
            }
        }
    }
    reference.truncate(0, 0)?;
    subject.truncate(0, 0)?;
    Ok(found)
}

fn rows(start: usize, tokens: &[TokenId]) -> Vec<Row> {
    let row = |(idx, token): (usize, &TokenId)| Row {
        seq: 0,
        pos: (start + idx) as u32,
        token: *token,
        adapter: AdapterId::BASE,
        output: Output::Logits,
    };
    tokens.iter().enumerate().map(row).collect()
}

/// The largest value's index, the lowest of equal ones.
fn first_choice(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best })
}

impl Agreement {
    fn note(&mut self, text: &str, position: usize, logits: &[f32], wanted: &[f32]) {
        self.num_tokens += 1;
        self.num_logits += logits.len();
        for (logit, wanted) in logits.iter().zip(wanted) {
            let difference = (logit - wanted).abs();
            self.largest = self.largest.max(difference);
            self.squares += f64::from(difference).powi(2);
        }
        let (ours, theirs) = (first_choice(logits), first_choice(wanted));
        if ours != theirs {
            let rank = 1 + wanted.iter().filter(|other| **other > wanted[ours]).count();
            let gap = wanted[theirs] - wanted[ours];
            self.misses.push(Miss { text: text.to_owned(), position, rank, gap });
        }
    }

    fn add(&mut self, other: Agreement) {
        self.num_tokens += other.num_tokens;
        self.misses.extend(other.misses);
        self.largest = self.largest.max(other.largest);
        self.squares += other.squares;
        self.num_logits += other.num_logits;
    }

    fn print(&self, name: &str) {
        let agree = 1.0 - self.misses.len() as f64 / self.num_tokens as f64;
        let gap = self.misses.iter().fold(0f32, |largest, miss| largest.max(miss.gap));
        println!(
            "| {name} | {} | {:.2} % | {} | {gap:.3} | {:.3} | {:.4} |",
            self.num_tokens,
            agree * 100.0,
            self.misses.len(),
            self.largest,
            (self.squares / self.num_logits as f64).sqrt()
        );
    }

    /// How many misses there are of each rank.
    fn ranks(&self) -> String {
        let last = self.misses.iter().map(|miss| miss.rank).max().unwrap_or(1);
        let count = |rank| self.misses.iter().filter(|miss| miss.rank == rank).count();
        let parts: Vec<String> = (2..=last).map(|rank| format!("{} at rank {rank}", count(rank))).collect();
        if parts.is_empty() { "No misses.".to_owned() } else { format!("Misses: {}.", parts.join(", ")) }
    }

    fn csv(&self) -> String {
        let mut csv = "text,position,rank,gap\n".to_owned();
        for Miss { text, position, rank, gap } in &self.misses {
            let _ = writeln!(csv, "{text},{position},{rank},{gap:.4}");
        }
        csv
    }
}
