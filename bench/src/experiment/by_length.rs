//! What a node does with prompts of given lengths, and what it says that it allocates. Shared by experiments.

use super::lab::{Lab, Served};
use super::load::{Ask, decode_rate, prefill_rate, ttft_ms};
use super::speed::{DECODE, Figures, PREFILL, PROMPT, TTFT};
use super::texts;
use crate::node::NodeSettings;
use crate::reply::Reply;

/// Words of the text by which tokens a word are counted.
const PROBE_WORDS: usize = 200;
/// The number of that text, which no prompt has: what it leaves in a cache must help none.
const PROBE_NUMBER: u64 = 500_000;
/// Tokens of state beyond the longest prompt: the answer, and the words that a number adds.
const ROOM: usize = 512;

/// What levels are.
pub const LENGTH: (&str, &str) = ("length_tokens", "prompt, about so many tokens");

/// Lengths to measure: those that were given, or powers of two up to what there is time for, which is less where
/// an experiment has many settings: `quick`.
///
/// # Errors
/// When one is too short to be a prompt.
pub fn lengths(lab: &Lab, given: &[usize], quick: &[usize]) -> anyhow::Result<Vec<usize>> {
    anyhow::ensure!(
        given.iter().all(|length| *length >= 16),
        "--lengths: every prompt must have 16 tokens or more"
    );
    Ok(match (given, lab.wish.is_quick) {
        ([], true) => quick.to_vec(),
        ([], false) => vec![256, 512, 1024, 2048, 4096, 8192],
        (given, _) => given.to_vec(),
    })
}

/// A node with room for the longest prompt twice, which tells what llama.cpp allocates.
pub fn settings(lab: &Lab, lengths: &[usize]) -> NodeSettings {
    let longest = lengths.iter().max().copied().unwrap_or(0);
    lab.settings(&lab.wish.model)
        .with("--kv-capacity", (longest + ROOM) * 2)
        // The longest prompt is kept for one that begins like it; an eighth of the room would be too little.
        .set("scheduler.max_cached", longest + ROOM)
        .with("--log-level", "info,llama.cpp=debug")
}

/// A node that has answered a request, and what it counts as a token.
#[derive(Debug)]
pub struct Warm {
    /// The node.
    pub served: Served,
    tokens_per_word: f64,
}

impl Warm {
    /// Starts a node and sends it a first request, which pays for pages of the file and for buffers.
    ///
    /// # Errors
    /// When the node does not start or does not answer.
    pub fn start(lab: &Lab, settings: &NodeSettings) -> anyhow::Result<Self> {
        let served = lab.start(settings)?;
        let reply = lab.ask(&served, &[Ask::text(texts::prose(PROBE_WORDS, PROBE_NUMBER), 2)])?;
        let tokens = reply.first().and_then(|reply| reply.prompt_tokens).unwrap_or(0) as f64;
        Ok(Self { served, tokens_per_word: (tokens / PROBE_WORDS as f64).max(1.0) })
    }

    /// A prompt of about so many tokens. The same number gives the same text.
    pub fn prompt(&self, num_tokens: usize, number: u64) -> String {
        texts::prose((num_tokens as f64 / self.tokens_per_word).max(1.0) as usize, number)
    }
}

/// One request of a prompt that the node does not know, and the figures of its prefill and its decode behind it.
///
/// # Errors
/// When the request fails.
pub fn measure(
    lab: &Lab,
    served: &Served,
    prompt: &str,
    answer_tokens: u32,
) -> anyhow::Result<(Reply, Figures)> {
    let mut replies = lab.ask(served, &[Ask::text(prompt.to_owned(), answer_tokens)])?;
    let decode = decode_rate(&replies);
    let reply = replies.remove(0);
    let figures = vec![
        (PREFILL.id, prefill_rate(&reply)),
        (DECODE.id, decode),
        (TTFT.id, ttft_ms(&reply)),
        (PROMPT.id, reply.prompt_tokens.map(|tokens| tokens as f64)),
    ];
    Ok((reply, figures))
}

/// The sum of the sizes in a log's lines of the form `… WHAT = 12.34 MiB`; none if there is no such line.
pub fn logged_mib(log: &str, what: &str) -> Option<f64> {
    let size = |line: &str| {
        let (_, rest) = line.split_once(what)?;
        let (size, _) = rest.trim_start().strip_prefix('=')?.trim_start().split_once(" MiB")?;
        size.trim().parse::<f64>().ok()
    };
    log.lines().filter_map(size).reduce(|sum, size| sum + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_all_devices_are_summed() {
        let log = "DEBUG llama.cpp: x:        CPU KV buffer size =    12.00 MiB\nCUDA0 KV buffer size = 2.50 MiB\n\
                   CPU compute buffer size = 300.75 MiB\n";
        assert_eq!(logged_mib(log, "KV buffer size"), Some(14.5));
        assert_eq!(logged_mib(log, "compute buffer size"), Some(300.75));
        assert_eq!(logged_mib(log, "output buffer size"), None);
    }
}
