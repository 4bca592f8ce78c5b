//! `lora`: an adapter that is served, merged, and merged and quantised, beside the base; what a change of adapter
//! costs; and many adapters in one process against a process each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::About;
use super::chart::Panel;
use super::lab::{Lab, Served};
use super::load::{Ask, quantile, send_all, ttft_ms};
use super::model_files::SPEED_AND_QUALITY;
use super::quality::{self, ACCURACY, PERPLEXITY};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::speed::{self, ANONYMOUS, Amounts, DECODE, PREFILL, TTFT};
use super::texts;
use crate::node::NodeSettings;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "lora",
    title: "Adapters: served, merged, quantised, and many of them",
    question: "What does an adapter cost when it is served beside the model, what when it is merged into it, and what \
               does serving many of them in one process save?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct LoraArgs {
    /// The adapter: a PEFT folder or a GGUF file. All names that are served stand for this one.
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// What the merged model is quantised to.
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K_M")]
    file_type: String,
    /// How many adapters are many.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    many: u32,
}

/// The name that requests use.
const NAME: &str = "adapter-0";
/// What the merged model is stored as before it is quantised.
const MERGED_TYPE: &str = "BF16";
/// Requests in a row when the cost of a change is measured.
const NUM_CHANGES: usize = 8;
/// Requests at once, of so many tokens, when many adapters are measured.
const NUM_AT_ONCE: usize = 8;
const TOKENS_AT_ONCE: u32 = 24;

/// What only adapters are measured by.
const OF_ADAPTERS: [Column; 5] = [FIRST, CHANGE, AT_ONCE, ALL_MEMORY, ADAPTERS];
const FIRST: Column = less(
    "first_use_ms",
    "first use ms",
    "milliseconds to the first token of the first request that names the adapter on a fresh node",
);
const CHANGE: Column = less(
    "change_ttft_ms",
    "TTFT between changes, ms",
    "milliseconds to the first token of a short prompt, requests one after the other; median",
);
const AT_ONCE: Column = more(
    "requests_per_s",
    "requests/s, 8 at once",
    "requests per second when 8 are sent at once, spread evenly over the adapters",
);
const ALL_MEMORY: Column = less(
    "all_memory_mib",
    "memory of all processes, MiB",
    "resident memory of all processes, what they share counted once",
);
const ADAPTERS: Column = told("num_adapters", "adapters", "adapters that are asked for");

/// How the adapter's work reaches a node.
#[derive(Debug)]
struct Way {
    model: PathBuf,
    is_dynamic: bool,
    /// Whether the node can label texts, and is measured by that.
    is_classifier: bool,
}

pub(super) fn lora(lab: &Lab, args: &LoraArgs) -> anyhow::Result<Findings> {
    let is_classifier = is_classifier(&args.adapter);
    lab.expect_steps(4 + 10 * lab.wish.rounds);
    let mut sheet = Sheet::new(None, &[&SPEED_AND_QUALITY[..], &OF_ADAPTERS].concat());
    let ways = make_ways(lab, args, &mut sheet, is_classifier)?;
    lab.rounds(&mut sheet, &ways, |sheet, (name, way), round| {
        let settings = lab.settings(&way.model);
        let settings = if way.is_dynamic { with_adapters(settings, args, 1) } else { settings };
        let served = lab.start(&settings)?;
        let named = way.is_dynamic.then_some(NAME);
        if let Some(named) = named {
            let first = lab.ask(&served, &[short(lab, is_classifier).of(named)])?;
            sheet.add(name, 0.0, round, [(FIRST.id, first.first().and_then(ttft_ms))]);
        }
        let figures = speed::measure(lab, &served, Amounts::of(lab), named, way.is_classifier)?;
        sheet.add(name, 0.0, round, figures);
        Ok(())
    })?;
    measure_changes(lab, args, &mut sheet, is_classifier)?;
    measure_many(lab, args, &mut sheet, is_classifier)?;
    let bars = [PREFILL, DECODE, TTFT, ANONYMOUS, ACCURACY, PERPLEXITY, CHANGE, AT_ONCE, ALL_MEMORY];
    let panels = bars.iter().map(|column| Panel::Bars(column.id, 0.0)).collect();
    let mut findings = Findings::new(sheet, panels);
    describe(lab, args, is_classifier, &mut findings);
    Ok(findings)
}

/// Base, dynamic, merged, merged and quantised, with their quality.
fn make_ways(
    lab: &Lab,
    args: &LoraArgs,
    sheet: &mut Sheet,
    is_classifier: bool,
) -> anyhow::Result<Vec<(String, Way)>> {
    let base = &lab.wish.model;
    let (merged, quantised) = (lab.scratch("merged.gguf"), lab.scratch("quantised.gguf"));
    let quantised_name = format!("merged, {}", args.file_type);
    let mut ways = Vec::new();
    let mut make = |name: &str, model: &Path, is_dynamic: bool, is_base: bool, words: Vec<String>| {
        lab.say(format!("{name}: making and judging"));
        let made = lab.attempt(sheet, name, |sheet| {
            if !words.is_empty() {
                lab.quern(&words)?;
            }
            let adapter = is_dynamic.then_some(args.adapter.as_path());
            if !is_classifier {
                sheet.add(name, 0.0, 0, quality::perplexity(lab, model, adapter)?);
            }
            // A base without a head has no labels to be judged by.
            if !(is_classifier && is_base) {
                sheet.add(name, 0.0, 0, quality::accuracy(lab, model, adapter)?);
            }
            Ok(Way { model: model.to_owned(), is_dynamic, is_classifier: is_classifier && !is_base })
        })?;
        ways.extend(made.map(|way| (name.to_owned(), way)));
        anyhow::Ok(())
    };
    let path = |path: &Path| path.display().to_string();
    make("base", base, false, true, Vec::new())?;
    make("served beside the base", base, true, false, Vec::new())?;
    let words = ["adapter", "merge"].map(str::to_owned).into_iter();
    let words = words.chain([path(base), path(&args.adapter), "--out".to_owned(), path(&merged)]);
    let words = words.chain(["--type", MERGED_TYPE].map(str::to_owned)).collect();
    make("merged", &merged, false, false, words)?;
    let words = vec!["quantize".to_owned(), path(&merged), path(&quantised), args.file_type.clone()];
    make(&quantised_name, &quantised, false, false, words)?;
    Ok(ways)
}

/// What a request waits for when the adapter before it was another one.
fn measure_changes(lab: &Lab, args: &LoraArgs, sheet: &mut Sheet, is_classifier: bool) -> anyhow::Result<()> {
    // Adapters asked in turn, and how many the engine holds.
    let settings = [
        ("one adapter again and again", (1, 2)),
        ("two adapters in turn, both held", (2, 2)),
        ("two adapters in turn, one held", (2, 1)),
    ];
    let settings = settings.map(|(name, setting)| (name.to_owned(), setting));
    lab.rounds(sheet, &settings, |sheet, (name, &(num_asked, num_held)), round| {
        let settings = with_adapters(lab.settings(&lab.wish.model), args, 2);
        let served = lab.start(&settings.set("adapters.max_resident", num_held))?;
        let mut times = Vec::new();
        for idx in 0..NUM_CHANGES + 2 {
            let reply = lab.ask(&served, &[short(lab, is_classifier).of(&adapter_name(idx % num_asked))])?;
            // The first of each adapter reads it from the disk.
            times.extend(reply.first().and_then(ttft_ms).filter(|_| idx >= 2));
        }
        let figures = [(CHANGE.id, quantile(&times, 0.5)), (ADAPTERS.id, Some(num_asked as f64))];
        sheet.add(name, 0.0, round, figures);
        Ok(())
    })
}

/// Requests at once over many adapters: in one process, and in a process each.
fn measure_many(lab: &Lab, args: &LoraArgs, sheet: &mut Sheet, is_classifier: bool) -> anyhow::Result<()> {
    let many = args.many as usize;
    // Processes, adapters that requests name.
    let settings = [
        (format!("{many} in one process, one asked"), (1, 1)),
        (format!("{many} in one process, all asked"), (1, many)),
        (format!("{many} in {many} processes"), (many, many)),
    ];
    lab.rounds(sheet, &settings, |sheet, (name, &(num_nodes, num_asked)), round| {
        let threads = (lab.wish.threads / num_nodes).max(1);
        let settings = with_adapters(lab.settings(&lab.wish.model), args, many / num_nodes)
            .with("--threads", threads)
            .with("--threads-prefill", threads)
            .set("adapters.max_resident", many);
        let nodes: Vec<Served> = (0..num_nodes).map(|_| lab.start(&settings)).collect::<Result<_, _>>()?;
        // Names of one process, or the one name of each.
        let asks = |count: usize| -> Vec<(usize, Ask)> {
            let ask = |idx: usize| {
                let (node, adapter) = if num_nodes > 1 { (idx % num_nodes, 0) } else { (0, idx % num_asked) };
                (node, at_once(lab, is_classifier).of(&adapter_name(adapter)))
            };
            (0..count).map(ask).collect()
        };
        send_to(lab, &nodes, &asks(many))?;
        let took = send_to(lab, &nodes, &asks(NUM_AT_ONCE))?;
        let memory: Option<f64> =
            nodes.iter().map(|served| served.node.memory().and_then(|memory| memory.proportional_mib)).sum();
        sheet.add(
            name,
            0.0,
            round,
            [
                (AT_ONCE.id, Some(NUM_AT_ONCE as f64 / took.as_secs_f64())),
                (ALL_MEMORY.id, memory),
                (ADAPTERS.id, Some(num_asked as f64)),
            ],
        );
        Ok(())
    })
}

/// Sends all at once, each to its node, and says how long it took until the last had ended.
fn send_to(lab: &Lab, nodes: &[Served], asks: &[(usize, Ask)]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    lab.wait(async {
        let each = asks
            .iter()
            .map(|(node, ask)| send_all(lab.client(), &nodes[*node].server, std::slice::from_ref(ask)));
        futures_util::future::try_join_all(each).await
    })?;
    Ok(begun.elapsed())
}

fn adapter_name(idx: usize) -> String {
    format!("adapter-{idx}")
}

fn with_adapters(settings: NodeSettings, args: &LoraArgs, count: usize) -> NodeSettings {
    let adapter = |idx| format!("{}={}", adapter_name(idx), args.adapter.display());
    (0..count).fold(settings, |settings, idx| settings.also("--adapter", adapter(idx)))
}

fn short(lab: &Lab, is_classifier: bool) -> Ask {
    let prompt = texts::prose(16, lab.next_text());
    if is_classifier { Ask::label(prompt) } else { Ask::text(prompt, 1) }
}

fn at_once(lab: &Lab, is_classifier: bool) -> Ask {
    if is_classifier {
        return short(lab, true);
    }
    Ask::text(texts::prose(32, lab.next_text()), TOKENS_AT_ONCE)
}

/// Whether a PEFT folder says that its adapter classifies.
fn is_classifier(adapter: &Path) -> bool {
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap_or_default();
    config["task_type"] == "SEQ_CLS"
}

fn describe(lab: &Lab, args: &LoraArgs, is_classifier: bool, findings: &mut Findings) {
    let kind = if is_classifier {
        "The adapter classifies: requests are texts to be labelled, and nothing is written; the base has no labels and \
         is asked for one token instead."
    } else {
        "The adapter writes."
    };
    findings.method = vec![
        format!(
            "{kind} `merged` is what `quern adapter merge` writes as {MERGED_TYPE}, `merged, {}` the same after \
             `quern quantize`. All names that are served stand for one adapter's files.",
            args.file_type
        ),
        quality::method(lab),
        format!(
            "Changes: {NUM_CHANGES} short requests one after the other. Many: {NUM_AT_ONCE} requests at once; where \
             there are several processes, each has its part of the threads."
        ),
    ];
    findings.not_measured = vec![
        "Adapters of different ranks in one process.".to_owned(),
        "Reading from a disk that does not have the files in memory.".to_owned(),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapters_task_is_read_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_classifier(folder.path()));
        std::fs::write(folder.path().join("adapter_config.json"), r#"{"task_type": "SEQ_CLS"}"#).unwrap();
        assert!(is_classifier(folder.path()));
    }

    #[test]
    fn every_adapter_of_a_node_has_a_name_of_its_own() {
        let args = LoraArgs { adapter: "a/b".into(), file_type: "Q4_0".to_owned(), many: 2 };
        let settings = with_adapters(NodeSettings::new("m"), &args, 2);
        let values: Vec<&str> = settings.switches.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["adapter-0=a/b", "adapter-1=a/b"]);
    }
}
