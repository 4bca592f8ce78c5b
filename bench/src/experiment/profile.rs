//! `profile`: prefill by length and decode by batch size against what the machine can do, a trace of steps and of
//! single operations, memory and quality.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use quern_gguf::Gguf;

use super::About;
use super::by_length::{self, Warm};
use super::chart::Panel;
use super::lab::{Lab, Served, Stopped};
use super::load::{Ask, decode_rate};
use super::operations;
use super::quality::{self, ACCURACY, MACRO_F1, NUM_ROWS};
use super::section::Findings;
use super::sheet::{Column, Sheet, more, told};
use super::speed::{ANONYMOUS, Figures, PREFILL, PROMPT, RESIDENT, TTFT};
use super::steps;
use super::texts;
use crate::ceilings::Ceilings;
use crate::gpu::Gpu;
use crate::node::NodeSettings;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "profile",
    title: "Profile: prefill against decode",
    question: "How fast are prefill and decode by length and by batch size, and is each bound by computing or by \
               reading memory?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Prompts' lengths in tokens; 256,1024,2048 with --quick.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Sequences that decode at once; 1,4,16 with --quick.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    batches: Vec<usize>,
}

const DECODE_ALL: Column = more(
    "batch_tok_per_s",
    "decode tok/s, all sequences",
    "tokens per second of all sequences together while all of them decode",
);
const COMPUTE: Column = told(
    "flop_share_percent",
    "% of multiply-add ceiling",
    "floating-point operations of the model's matrices per second, in per cent of the measured ceiling for 32-bit floats",
);
const MEMORY: Column = told(
    "read_share_percent",
    "% of memory ceiling",
    "bytes of weights that steps read per second, in per cent of the measured ceiling of reading memory",
);

const COLUMNS: &[Column] =
    &[PREFILL, DECODE_ALL, COMPUTE, MEMORY, TTFT, PROMPT, RESIDENT, ANONYMOUS, ACCURACY, MACRO_F1, NUM_ROWS];

/// How long each ceiling is measured.
const CEILING_TIME: Duration = Duration::from_secs(2);
/// Rows that a node computes at once (`engine.llama.micro_batch_rows`); each reads all weights.
const ROWS_AT_ONCE: f64 = 256.0;
/// The settings' names.
const PREFILL_OF: &str = "prefill, by tokens";
const DECODE_OF: &str = "decode, by sequences";
const MODEL: &str = "the model";

/// What a step has to read and to multiply.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Weights {
    /// Bytes and elements of the layers' matrices.
    layer_bytes: f64,
    layer_elements: f64,
    /// Of the output matrix, which only rows with an output need.
    output_bytes: f64,
    output_elements: f64,
}

impl Weights {
    fn read(model: &Path) -> anyhow::Result<Self> {
        let gguf = Gguf::open(model)?;
        let sum = |is_meant: &dyn Fn(&str) -> bool| {
            let (mut bytes, mut elements) = (0, 0);
            for tensor in gguf.tensors().iter().filter(|tensor| is_meant(&tensor.name)) {
                bytes += tensor.size_bytes;
                elements += tensor.num_elements();
            }
            (bytes as f64, elements as f64)
        };
        // Where there is no output matrix of its own, the embedding's serves.
        let is_tied = gguf.tensor("output.weight").is_none();
        let output_name = if is_tied { "token_embd.weight" } else { "output.weight" };
        let (layer_bytes, layer_elements) = sum(&|name| name.starts_with("blk."));
        let (output_bytes, output_elements) = sum(&|name| name == output_name);
        Ok(Self { layer_bytes, layer_elements, output_bytes, output_elements })
    }

    /// Shares of both ceilings, in per cent, where so many tokens per second are prefilled.
    fn prefill_shares(&self, tok_per_s: f64, ceilings: Ceilings) -> [(&'static str, Option<f64>); 2] {
        let reads_per_s = tok_per_s / ROWS_AT_ONCE;
        shares(tok_per_s * 2.0 * self.layer_elements, reads_per_s * self.layer_bytes, ceilings)
    }

    /// The same where so many tokens per second are decoded by steps of so many sequences.
    fn decode_shares(
        &self,
        tok_per_s: f64,
        num_sequences: usize,
        ceilings: Ceilings,
    ) -> [(&'static str, Option<f64>); 2] {
        let steps_per_s = tok_per_s / num_sequences as f64;
        let flop_per_s = tok_per_s * 2.0 * (self.layer_elements + self.output_elements);
        shares(flop_per_s, steps_per_s * (self.layer_bytes + self.output_bytes), ceilings)
    }
}

fn shares(flop_per_s: f64, bytes_per_s: f64, ceilings: Ceilings) -> [(&'static str, Option<f64>); 2] {
    [
        (COMPUTE.id, Some(flop_per_s / ceilings.flop_per_s * 100.0)),
        (MEMORY.id, Some(bytes_per_s / ceilings.read_bytes_per_s * 100.0)),
    ]
}

pub(super) fn profile(lab: &Lab, args: &ProfileArgs) -> anyhow::Result<Findings> {
    let lengths = by_length::lengths(lab, &args.lengths, &[256, 1024, 2048])?;
    let batches = match (&args.batches[..], lab.wish.is_quick) {
        ([], true) => vec![1, 4, 16],
        ([], false) => vec![1, 2, 4, 8, 16, 32],
        (given, _) => given.to_vec(),
    };
    anyhow::ensure!(!batches.contains(&0), "--batches: every batch must have a sequence");
    lab.expect_steps(2 + 2 * lab.wish.rounds);
    lab.say("what the machine can do");
    let ceilings = Ceilings::measure(lab.wish.threads, CEILING_TIME);
    let weights = Weights::read(&lab.wish.model)?;

    let level = Some(("tokens_or_sequences", "tokens of the prompt, or sequences at once"));
    let mut sheet = Sheet::new(level, COLUMNS);
    let settings = settings(lab, &lengths, &batches);
    let warm = Warm::start(lab, &settings)?;
    let served = &warm.served;
    let mut missed = BTreeSet::new();
    let phases = [(PREFILL_OF.to_owned(), true), (DECODE_OF.to_owned(), false)];
    lab.rounds(&mut sheet, &phases, |sheet, (name, &is_prefill), round| {
        if is_prefill {
            for &length in &lengths {
                let figures = prefill(lab, &warm, &weights, ceilings, length)?;
                sheet.add(name, length as f64, round, figures);
            }
            return Ok(());
        }
        for &batch in &batches {
            let rate = decode(lab, served, batch)?;
            let shares = rate.map(|rate| weights.decode_shares(rate, batch, ceilings));
            sheet.add(name, batch as f64, round, [(DECODE_ALL.id, rate)]);
            sheet.add(name, batch as f64, round, shares.into_iter().flatten());
            if rate.is_none() {
                missed.insert(batch);
            }
        }
        Ok(())
    })?;
    lab.attempt(&mut sheet, MODEL, |sheet| {
        sheet.add(MODEL, 0.0, 0, memory(served));
        sheet.add(MODEL, 0.0, 0, quality::accuracy(lab, &lab.wish.model, None)?);
        Ok(())
    })?;
    let steps = steps::read(&served.node.log()?);
    // Two models at once may be more than there is memory for.
    drop(warm);
    let panels = vec![
        Panel::Lines(PREFILL.id),
        Panel::Lines(DECODE_ALL.id),
        Panel::Lines(COMPUTE.id),
        Panel::Lines(MEMORY.id),
    ];
    let mut findings = Findings::new(sheet, panels);
    describe(lab, &mut findings, ceilings, steps.len());
    findings.told.extend(verdicts(&findings.sheet));
    findings.not_measured.extend(missed.into_iter().map(|batch| {
        format!("{DECODE_OF}, {batch}, in every round: an answer ended before the last one began.")
    }));
    let events = tell_operations(lab, &settings, &mut findings)?;
    findings.files.push(("trace.json", steps::trace(&steps, events)));
    findings.files.push(("steps.csv", steps::table(&steps)));
    Ok(findings)
}

/// A node that logs its steps, with room for all of a batch.
fn settings(lab: &Lab, lengths: &[usize], batches: &[usize]) -> NodeSettings {
    let largest = batches.iter().max().copied().unwrap_or(1);
    let settings = by_length::settings(lab, lengths).with("--max-running", largest.max(64));
    steps::LOG_SWITCHES.iter().fold(settings, |settings, (switch, value)| settings.with(switch, value))
}

fn memory(served: &Served) -> Figures {
    let memory = served.node.memory();
    vec![
        (RESIDENT.id, memory.map(|memory| memory.resident_mib)),
        (ANONYMOUS.id, memory.map(|memory| memory.anonymous_mib)),
    ]
}

/// Tells what single operations take, or why that is not known, and gives their part of the trace.
///
/// # Errors
/// Only [`Stopped`].
fn tell_operations(
    lab: &Lab,
    settings: &NodeSettings,
    findings: &mut Findings,
) -> anyhow::Result<Vec<serde_json::Value>> {
    lab.say("single operations");
    let measured = operations::measure(lab, settings);
    lab.advance();
    match measured {
        Err(error) if error.is::<Stopped>() => Err(error),
        Err(error) => {
            findings.not_measured.push(format!("Single operations inside a step: {error:#}"));
            Ok(Vec::new())
        }
        Ok(operations) => {
            operations.tell(findings);
            Ok(operations.events)
        }
    }
}

/// A prompt of so many tokens that the node does not know, with its shares of the ceilings.
fn prefill(
    lab: &Lab,
    warm: &Warm,
    weights: &Weights,
    ceilings: Ceilings,
    length: usize,
) -> anyhow::Result<Figures> {
    let prompt = warm.prompt(length, lab.next_text());
    let (_, mut figures) = by_length::measure(lab, &warm.served, &prompt, 1)?;
    let rate = figures.iter().find_map(|(id, value)| value.filter(|_| *id == PREFILL.id));
    figures.retain(|(id, _)| *id != super::speed::DECODE.id);
    figures.extend(rate.map(|rate| weights.prefill_shares(rate, ceilings)).into_iter().flatten());
    Ok(figures)
}

/// Tokens per second of so many sequences while all of them decode; none if they never did.
fn decode(lab: &Lab, served: &Served, batch: usize) -> anyhow::Result<Option<f64>> {
    // The first must still decode when the last begins, and while others' prompts are computed they go on.
    let tokens = if lab.wish.is_quick { 32 } else { 96 } + 6 * batch as u32;
    let ask = || Ask::chat(texts::task(lab.next_text()), tokens).never_ending();
    let asks: Vec<Ask> = (0..batch).map(|_| ask()).collect();
    Ok(decode_rate(&lab.ask(served, &asks)?))
}

/// Which ceiling each phase is nearer to.
fn verdicts(sheet: &Sheet) -> Vec<String> {
    let verdict = |setting: &str, level: f64| {
        let compute = sheet.spread(setting, level, COMPUTE.id)?.median;
        let memory = sheet.spread(setting, level, MEMORY.id)?.median;
        let bound = if compute > memory { "computing" } else { "reading memory" };
        Some(format!(
            "{setting}, {level}: {compute:.0} % of the multiply-add ceiling, {memory:.0} % of the memory ceiling: nearer to \
             being bound by {bound}."
        ))
    };
    let all = [PREFILL_OF, DECODE_OF]
        .into_iter()
        .flat_map(|setting| sheet.levels().into_iter().map(move |l| (setting, l)));
    all.filter_map(|(setting, level)| verdict(setting, level)).collect()
}

fn describe(lab: &Lab, findings: &mut Findings, ceilings: Ceilings, num_steps: usize) {
    findings.method = vec![
        "One node. Prefill: one prompt at a time that it does not know. Decode: so many sequences at once, short prompts, \
         counted while all of them decode."
            .to_owned(),
        format!(
            "Ceilings, measured on {} threads just before, with the same threads: {:.1} GB/s read from memory, {:.1} GFLOP/s of \
             32-bit multiply-adds. A quantised model is multiplied in 8-bit integers, of which a processor does more: \
             shares above 100 % are possible. Operations are those of the model's matrices (attention itself is left \
             out); bytes are its weights, once a step of up to {ROWS_AT_ONCE} rows.",
            lab.wish.threads,
            ceilings.read_bytes_per_s / 1e9,
            ceilings.flop_per_s / 1e9
        ),
        quality::method(lab),
        format!(
            "`trace.json` holds the node's {num_steps} steps for <https://ui.perfetto.dev>, `steps.csv` the same for \
             `quern policy fit`."
        ),
    ];
    if Gpu::read().is_some() {
        findings.not_measured.push(
            "The GPU's own ceilings: the shares are of the processor's, and mean nothing for layers on the GPU.".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Ceilings = Ceilings { read_bytes_per_s: 1000.0, flop_per_s: 10_000.0 };

    fn weights() -> Weights {
        Weights { layer_bytes: 50.0, layer_elements: 100.0, output_bytes: 10.0, output_elements: 20.0 }
    }

    #[test]
    fn decode_reads_all_weights_once_a_step() {
        let [compute, memory] = weights().decode_shares(20.0, 4, CEILINGS);
        // 20 tokens of 240 operations; 5 steps of 60 bytes.
        assert!((compute.1.unwrap() - 48.0).abs() < 1e-9 && (memory.1.unwrap() - 30.0).abs() < 1e-9);
    }

    #[test]
    fn the_nearer_ceiling_is_told() {
        let mut sheet = Sheet::new(Some(("n", "n")), COLUMNS);
        sheet.add(PREFILL_OF, 256.0, 0, weights().prefill_shares(25.6, CEILINGS));
        let told = verdicts(&sheet);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("51 %") && told[0].contains("bound by computing"), "{told:?}");
    }

    #[test]
    fn weights_are_read_from_a_models_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let spec = quern_gguf::tiny::TinySpec::new(quern_gguf::tiny::Arch::Qwen2, 1);
        quern_gguf::tiny::write(&path, &spec).unwrap();
        let weights = Weights::read(&path).unwrap();
        assert!(weights.layer_elements > 0.0 && weights.output_elements > 0.0 && weights.layer_bytes > 0.0);
    }
}
