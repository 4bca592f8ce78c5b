//! `quern importance`: measures which columns of a model's matrices a text uses, for
//! quantising with less loss where it matters.
//!
//! The text is read in windows as for perplexity, and every row of every window counts:
//! llama.cpp's own tool does so, too, so the numbers mean the same in its quantiser. The
//! embedding and the output matrix are not measured; they are stored more exactly anyway.

use std::path::{Path, PathBuf};

use clap::Args;
use quern_adapters::Measured;
use quern_engine::{AdapterId, Engine as _, Output, Row};

use super::reading::{cut, read_text};
use super::subject::{Machine, Needs, Subject};
use super::{EvalError, at_least, bar};

/// `quern importance`.
#[derive(Debug, Clone, Args)]
pub struct ImportanceArgs {
    /// A name of the catalogue, or a GGUF file; the more exactly it is stored the better.
    pub model: String,
    /// A text like those that the model will read; some 25,000 tokens do.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// The file to write, GGUF as llama.cpp's quantiser reads it.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Tokens in a window.
    #[arg(long, value_name = "TOKENS", default_value_t = CONTEXT, value_parser = at_least(4))]
    pub context: u32,
    /// Windows at most; all without it.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub chunks: Option<u32>,
    /// Threads; one a core without it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: u32,
    /// Layers on the GPU; all without it.
    #[arg(long, value_name = "N")]
    pub gpu_layers: Option<u32>,
}

/// Tokens in a window where nobody says how many.
const CONTEXT: u32 = 512;

/// Each output costs two rows of logits in memory.
const MAX_OUTPUTS: u32 = 128;

/// Measures and writes the file. Blocks.
///
/// # Errors
/// [`EvalError`].
pub fn importance(args: &ImportanceArgs) -> Result<(), EvalError> {
    let machine = Machine { threads: args.threads, gpu_layers: args.gpu_layers, ..Machine::default() };
    let measured = of_model(&args.model, &args.text, (args.context, args.chunks), &machine)?;
    measured.write(&args.out)?;
    println!(
        "{}: {} matrices, measured on {} windows of {} tokens",
        args.out.display(),
        measured.inputs.len(),
        measured.num_chunks,
        measured.chunk_len
    );
    Ok(())
}

/// Measures a GGUF file's matrices on so many windows of a text at most, as usual. Blocks.
///
/// # Errors
/// [`EvalError`].
pub fn measure(model: &Path, text: &Path, chunks: u32) -> Result<Measured, EvalError> {
    of_model(&model.to_string_lossy(), text, (CONTEXT, Some(chunks)), &Machine::default())
}

fn of_model(
    model: &str,
    text: &Path,
    (context, chunks): (u32, Option<u32>),
    machine: &Machine,
) -> Result<Measured, EvalError> {
    let subject = Subject::open(model, None)?;
    let tokens = subject.text(&read_text(text)?)?;
    let cut = cut(&subject, &tokens, text, (context, None, chunks))?;
    let needs = Needs { kv_capacity: cut.context, max_sequences: 1, max_outputs: MAX_OUTPUTS };
    let (mut engine, _) = subject.engine(needs, machine)?;
    let num_windows = cut.num_windows(tokens.len());
    let bar = bar(num_windows, &subject.name);
    engine.measure_inputs();
    for idx in 0..num_windows {
        let window = cut.window(&tokens, idx);
        // The last layer computes rows with an output only, and each row shall count.
        let rows = (0..).zip(&window).map(|(pos, &token)| Row {
            seq: 0,
            pos,
            token,
            adapter: AdapterId::BASE,
            output: Output::Hidden,
        });
        let rows: Vec<Row> = rows.collect();
        for rows in rows.chunks(MAX_OUTPUTS as usize) {
            engine.step(rows)?;
        }
        engine.truncate(0, 0)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let inputs = engine.take_inputs().into_iter().map(|input| (input.name, input.sums, input.num_rows));
    let dataset = text.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Measured { inputs: inputs.collect(), dataset, num_chunks: num_windows as u32, chunk_len: context })
}
