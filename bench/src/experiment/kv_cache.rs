//! `kv-cache`: decoding without any cache, with it in each of its formats, and with prompts' beginnings shared.

use clap::Args;

use super::About;
use super::by_length::{self, LENGTH, Warm, logged_mib};
use super::chart::Panel;
use super::lab::{Lab, Served};
use super::load::{Ask, total_ms, ttft_ms};
use super::quality::{self, PERPLEXITY, PERPLEXITY_ERROR};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::speed::{ANONYMOUS, DECODE, Figures, PREFILL, PROMPT, TTFT};
use crate::kv_size::{FORMATS, KvFormat, KvShape, KvSizeError};
use crate::node::NodeSettings;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "kv-cache",
    title: "Key-value cache: none, formats, sharing",
    question: "What does the key-value cache save by length, what do smaller formats of it cost, and what is saved \
               where prompts begin alike?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct KvCacheArgs {
    /// Prompts' lengths in tokens; 256,1024 with --quick.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(2..))]
    answer_tokens: u32,
}

const SHARED: Column = less(
    "shared_ttft_ms",
    "TTFT ms, known beginning",
    "milliseconds to the first token of a second prompt that ends otherwise than the first, right after it",
);
const KV: Column =
    less("kv_mib", "KV buffer MiB", "key-value state that llama.cpp allocated for the node, as its log says");
const KV_COMPUTED: Column = told(
    "kv_computed_mib",
    "computed MiB",
    "the same as `quern-bench kv-size` computes it from the model's file",
);
const EQUAL: Column = more(
    "equal_share",
    "equal beginning",
    "how much of the answer is, from its beginning, the same as with f16 and sharing in the same round",
);

const COLUMNS: &[Column] =
    &[DECODE, PREFILL, TTFT, SHARED, KV, KV_COMPUTED, PERPLEXITY, PERPLEXITY_ERROR, EQUAL, ANONYMOUS, PROMPT];

/// Words that make a second prompt end otherwise.
const OTHER_END: &str = " And then the harbour master asked:";
/// Answers' tokens that are asked for one by one, without any cache.
const NUM_WITHOUT_CACHE: usize = 2;

/// What is set.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The cache in this format; beginnings shared or not.
    Cached(KvFormat, bool),
    /// Every token asked for by itself, with all before it as the prompt.
    Without,
}

pub(super) fn kv_cache(lab: &Lab, args: &KvCacheArgs) -> anyhow::Result<Findings> {
    let lengths = by_length::lengths(lab, &args.lengths, &[256, 1024])?;
    let first_length = lengths[0] as f64;
    let [plain, ..] = FORMATS;
    let mut ways: Vec<(String, Way)> =
        FORMATS.map(|format| (format.name.to_owned(), Way::Cached(format, true))).into();
    ways.push((format!("{}, nothing shared", plain.name), Way::Cached(plain, false)));
    ways.push(("no cache".to_owned(), Way::Without));
    lab.expect_steps(ways.len() * lab.wish.rounds + FORMATS.len());
    let mut sheet = Sheet::new(Some(LENGTH), COLUMNS);
    // Not every architecture has a size that is known; what nodes do with it can be measured all the same.
    let shape = KvShape::read(&lab.wish.model);
    // Answers with the plain format, by length, of the present round.
    let mut answers: Vec<String> = Vec::new();
    lab.rounds(&mut sheet, &ways, |sheet, (name, &way), round| {
        let warm = Warm::start(lab, &settings(lab, &lengths, way))?;
        if name == plain.name {
            answers.clear();
        }
        for (idx, &length) in lengths.iter().enumerate() {
            let prompt = warm.prompt(length, (round * lengths.len() + idx) as u64);
            let level = length as f64;
            if let Way::Without = way {
                let rate = rate_without_cache(lab, &warm.served, &prompt)?;
                sheet.add(name, level, round, [(DECODE.id, Some(rate))]);
                continue;
            }
            let (answer, figures) = with_cache(lab, &warm.served, &prompt, args.answer_tokens)?;
            sheet.add(name, level, round, figures);
            let first_answer = answers.get(idx).unwrap_or(&answer);
            sheet.add(name, level, round, [(EQUAL.id, Some(equal_share(first_answer, &answer)))]);
            if answers.len() == idx {
                answers.push(answer);
            }
        }
        if let Way::Cached(format, _) = way {
            sheet.add(name, first_length, round, memory(lab, &warm.served, shape.as_ref().ok(), format)?);
        }
        Ok(())
    })?;
    for KvFormat { name, .. } in FORMATS {
        lab.say(format!("{name}: judging"));
        lab.attempt(&mut sheet, name, |sheet| {
            sheet.add(name, first_length, 0, quality::perplexity_with_kv(lab, name)?);
            Ok(())
        })?;
    }
    let told = check_of_sizes(&sheet, first_length, shape.as_ref().err());
    let mut findings = Findings::new(sheet, panels(first_length));
    findings.told = vec![told];
    describe(lab, &mut findings);
    Ok(findings)
}

fn panels(first_length: f64) -> Vec<Panel> {
    vec![
        Panel::Lines(DECODE.id),
        Panel::Lines(PREFILL.id),
        Panel::Lines(SHARED.id),
        Panel::Bars(KV.id, first_length),
        Panel::Bars(PERPLEXITY.id, first_length),
        Panel::Lines(EQUAL.id),
    ]
}

fn settings(lab: &Lab, lengths: &[usize], way: Way) -> NodeSettings {
    let settings = by_length::settings(lab, lengths);
    match way {
        Way::Cached(format, is_shared) => {
            settings.with("--kv-type", format.name).set("scheduler.prefix_cache", is_shared)
        }
        Way::Without => settings.set("scheduler.prefix_cache", false),
    }
}

/// A prompt's answer with its figures, and the time of a second prompt that begins like it.
fn with_cache(
    lab: &Lab,
    served: &Served,
    prompt: &str,
    answer_tokens: u32,
) -> anyhow::Result<(String, Figures)> {
    let (reply, mut figures) = by_length::measure(lab, served, prompt, answer_tokens)?;
    let second = lab.ask(served, &[Ask::text(format!("{prompt}{OTHER_END}"), 1)])?;
    figures.push((SHARED.id, second.first().and_then(ttft_ms)));
    Ok((reply.text, figures))
}

/// What a node takes, and what was computed of it.
fn memory(lab: &Lab, served: &Served, shape: Option<&KvShape>, format: KvFormat) -> anyhow::Result<Figures> {
    let memory = served.node.memory().map(|memory| memory.anonymous_mib);
    let metrics = lab.wait(async { Ok(served.node.metrics().await?) })?;
    let capacity = metrics.sum("quern_kv_capacity_tokens").unwrap_or(0.0) as u64;
    let computed = shape.and_then(|shape| shape.bytes(format, capacity));
    let computed = computed.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let allocated = logged_mib(&served.node.log()?, "KV buffer size");
    Ok(vec![(KV.id, allocated), (KV_COMPUTED.id, computed), (ANONYMOUS.id, memory)])
}

fn describe(lab: &Lab, findings: &mut Findings) {
    findings.method = vec![
        "A node for each setting, with the same room for state; one request at a time, prompts of prose, the same ones for \
         each setting of a round. Memory figures are of the whole node; they and perplexity stand at the first length."
            .to_owned(),
        "`no cache` asks for one token at a time from a node that keeps nothing between requests, so that each token \
         costs the whole prompt before it: what decoding is without a cache."
            .to_owned(),
        format!("{} How far answers stay the same is a weak witness: a changed word need not be a worse one.",
            quality::perplexity_method(lab)),
    ];
    findings.not_measured = vec!["Sharing among requests that run at once.".to_owned()];
}

/// Tokens per second when everything is computed again for each.
fn rate_without_cache(lab: &Lab, served: &Served, prompt: &str) -> anyhow::Result<f64> {
    let mut text = prompt.to_owned();
    let mut took_ms = 0.0;
    for _ in 0..NUM_WITHOUT_CACHE {
        let replies = lab.ask(served, &[Ask::text(text.clone(), 1)])?;
        took_ms += replies.iter().map(total_ms).sum::<f64>();
        text.extend(replies.iter().map(|reply| reply.text.as_str()));
    }
    Ok(NUM_WITHOUT_CACHE as f64 * 1e3 / took_ms)
}

/// The share of a text that another one has in common with it from the beginning; 1 if both are empty.
fn equal_share(first: &str, other: &str) -> f64 {
    let longer = first.chars().count().max(other.chars().count());
    let same = first.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    if longer == 0 { 1.0 } else { same as f64 / longer as f64 }
}

/// Whether the calculator is right about every format.
fn check_of_sizes(sheet: &Sheet, level: f64, trouble: Option<&KvSizeError>) -> String {
    if let Some(trouble) = trouble {
        return format!("`quern-bench kv-size` could not be checked: {trouble}.");
    }
    let both = |format: &KvFormat| {
        let name = format.name;
        let said = sheet.spread(name, level, KV.id)?.median;
        let computed = sheet.spread(name, level, KV_COMPUTED.id)?.median;
        Some(format!(
            "{name}: {said:.2} MiB allocated, {computed:.2} computed ({:+.2} %)",
            (computed / said - 1.0) * 100.0
        ))
    };
    let checked: Vec<String> = FORMATS.iter().filter_map(both).collect();
    if checked.is_empty() {
        return "`quern-bench kv-size` could not be checked: the node did not say what it allocated."
            .to_owned();
    }
    format!("`quern-bench kv-size` against what llama.cpp said: {}.", checked.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_beginnings_are_measured_in_characters() {
        assert!((equal_share("abcd", "abxd") - 0.5).abs() < 1e-9);
        assert!((equal_share("ab", "abcd") - 0.5).abs() < 1e-9);
        assert!((equal_share("", "") - 1.0).abs() < 1e-9);
        assert!((equal_share("é", "é") - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_calculator_is_judged_by_what_was_allocated() {
        let mut sheet = Sheet::new(Some(LENGTH), COLUMNS);
        assert!(check_of_sizes(&sheet, 256.0, None).contains("could not be checked: the node"));
        sheet.add("q8_0", 256.0, 0, [(KV.id, Some(100.0)), (KV_COMPUTED.id, Some(101.0))]);
        assert!(
            check_of_sizes(&sheet, 256.0, None)
                .contains("q8_0: 100.00 MiB allocated, 101.00 computed (+1.00 %)")
        );
        let unknown = KvSizeError::Architecture { name: "other".to_owned() };
        assert!(check_of_sizes(&sheet, 256.0, Some(&unknown)).contains("\"other\""));
    }
}
