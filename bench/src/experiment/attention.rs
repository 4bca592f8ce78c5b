//! `attention`: flash attention on and off, by length, on every backend that is there.

use clap::Args;

use super::About;
use super::by_length::{self, LENGTH, Warm, logged_mib};
use super::chart::Panel;
use super::lab::Lab;
use super::section::Findings;
use super::sheet::{Column, Sheet, less};
use super::speed::{ANONYMOUS, DECODE, PREFILL, PROMPT, TTFT};
use crate::gpu::Gpu;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "attention",
    title: "Flash attention on and off, by length",
    question: "From which length on does computing attention in one fused operation pay, and what memory does it save?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct AttentionArgs {
    /// Prompts' lengths in tokens; 256,1024,2048 with --quick.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(2..))]
    answer_tokens: u32,
}

const COMPUTE: Column = less(
    "compute_mib",
    "compute buffer MiB",
    "memory for intermediate results that llama.cpp allocated, as the node's log says",
);
const COLUMNS: &[Column] = &[PREFILL, DECODE, TTFT, COMPUTE, ANONYMOUS, PROMPT];

pub(super) fn attention(lab: &Lab, args: &AttentionArgs) -> anyhow::Result<Findings> {
    let lengths = by_length::lengths(lab, &args.lengths, &[256, 1024, 2048])?;
    let mut backends = vec![("CPU", Some(0))];
    if Gpu::read().is_some() {
        backends.push(("GPU", None));
    }
    let on_and_off = |(backend, gpu_layers): &(&str, Option<u32>)| {
        [("off", "flash attention off"), ("on", "flash attention on")]
            .map(|(value, words)| (format!("{backend}, {words}"), (value, *gpu_layers)))
    };
    let settings: Vec<_> = backends.iter().flat_map(on_and_off).collect();
    lab.expect_steps(settings.len() * lab.wish.rounds);
    let mut sheet = Sheet::new(Some(LENGTH), COLUMNS);
    lab.rounds(&mut sheet, &settings, |sheet, (name, &(flash, gpu_layers)), round| {
        // Nothing is kept between requests: attention would walk over it.
        let node = by_length::settings(lab, &lengths).set("scheduler.prefix_cache", false);
        let node = node.with("--flash-attention", flash);
        let node = gpu_layers.into_iter().fold(node, |node, layers| node.with("--gpu-layers", layers));
        let warm = Warm::start(lab, &node)?;
        let served = &warm.served;
        for (idx, &length) in lengths.iter().enumerate() {
            let number = (round * lengths.len() + idx) as u64;
            let prompt = warm.prompt(length, number);
            let (_, figures) = by_length::measure(lab, served, &prompt, args.answer_tokens)?;
            sheet.add(name, length as f64, round, figures);
        }
        let compute = logged_mib(&served.node.log()?, "compute buffer size");
        let memory = served.node.memory().map(|memory| memory.anonymous_mib);
        sheet.add(name, lengths[0] as f64, round, [(COMPUTE.id, compute), (ANONYMOUS.id, memory)]);
        Ok(())
    })?;
    let panels =
        vec![Panel::Lines(PREFILL.id), Panel::Lines(DECODE.id), Panel::Bars(COMPUTE.id, lengths[0] as f64)];
    let mut findings = Findings::new(sheet, panels);
    findings.method = vec![
        "A node for each setting in turn, one request at a time: a prompt of prose that it does not know, and an answer \
         behind it. Keys and values are f16. Memory figures are of the whole node and stand at the first length."
            .to_owned(),
    ];
    if backends.len() == 1 {
        findings.not_measured.push("GPUs: there is none on this machine.".to_owned());
    }
    Ok(findings)
}
