//! How fast a node is and what it takes, by a few requests on an otherwise idle node.

use super::lab::{Lab, Served};
use super::load::{Ask, decode_rate, prefill_rate, quantile, ttft_ms};
use super::sheet::{Column, less, more, told};
use super::texts;

/// Speed of reading prompts.
pub const PREFILL: Column = more(
    "prefill_tok_per_s",
    "prefill tok/s",
    "prompt tokens per second until the first token, one request at a time, prompts that no cache knows; median",
);
/// Speed of writing.
pub const DECODE: Column =
    more("decode_tok_per_s", "decode tok/s", "tokens per second of one stream after its first token");
/// Time to the first token.
pub const TTFT: Column =
    less("ttft_ms", "TTFT ms", "milliseconds to the first token of the prefill requests; median");
/// Memory with the mapped file.
pub const RESIDENT: Column = less(
    "resident_mib",
    "resident MiB",
    "resident memory of the process after the requests, the mapped model file included",
);
/// Memory that is no file.
pub const ANONYMOUS: Column = less(
    "anonymous_mib",
    "resident, no file, MiB",
    "the part of the resident memory that is no file: key-value state, buffers, rearranged weights",
);
/// Time to be ready.
pub const READY: Column = less(
    "ready_s",
    "ready after s",
    "seconds from the process's start until it was ready; files may be cached",
);
/// What the prefill requests' prompts had.
pub const PROMPT: Column =
    told("prompt_tokens", "prompt tokens", "tokens of the prefill requests' prompts, as the node counts");

/// How much to ask.
#[derive(Debug, Clone, Copy)]
pub struct Amounts {
    /// Prefill requests.
    pub num_prefills: usize,
    /// Words of their prompts.
    pub prompt_words: usize,
    /// Tokens of the stream.
    pub decode_tokens: u32,
}

impl Amounts {
    /// Enough to see differences of a few per cent on a quiet machine; less where time is short.
    pub fn of(lab: &Lab) -> Self {
        if lab.wish.is_quick {
            Self { num_prefills: 2, prompt_words: 120, decode_tokens: 48 }
        } else {
            Self { num_prefills: 4, prompt_words: 340, decode_tokens: 128 }
        }
    }
}

/// The figures, named by their columns.
pub type Figures = Vec<(&'static str, Option<f64>)>;

/// Asks a node that nobody else asks. `model` is what requests name instead of the node's own. A node that
/// classifies writes nothing: its prefill requests are texts to be labelled.
///
/// # Errors
/// When a request fails.
pub fn measure(
    lab: &Lab,
    served: &Served,
    amounts: Amounts,
    model: Option<&str>,
    is_classifier: bool,
) -> anyhow::Result<Figures> {
    let named = |ask: Ask| match model {
        Some(model) => ask.of(model),
        None => ask,
    };
    let prompt = || {
        let text = texts::prose(amounts.prompt_words, lab.next_text());
        if is_classifier { Ask::label(text) } else { Ask::text(text, 1) }
    };
    // The first request pays for pages of the file and for buffers.
    lab.ask(served, &[named(prompt())])?;
    let mut prefills = Vec::new();
    for _ in 0..amounts.num_prefills {
        prefills.extend(lab.ask(served, &[named(prompt())])?);
    }
    let task = || named(Ask::chat(texts::task(lab.next_text()), amounts.decode_tokens));
    let stream = if is_classifier { Vec::new() } else { lab.ask(served, &[task()])? };
    let memory = served.node.memory();
    let median = |values: Vec<f64>| quantile(&values, 0.5);
    Ok(vec![
        (PREFILL.id, median(prefills.iter().filter_map(prefill_rate).collect())),
        (DECODE.id, decode_rate(&stream)),
        (TTFT.id, median(prefills.iter().filter_map(ttft_ms).collect())),
        (RESIDENT.id, memory.map(|memory| memory.resident_mib)),
        (ANONYMOUS.id, memory.map(|memory| memory.anonymous_mib)),
        (READY.id, Some(served.node.ready_after.as_secs_f64())),
        (PROMPT.id, prefills.first().and_then(|reply| reply.prompt_tokens).map(|tokens| tokens as f64)),
    ])
}
