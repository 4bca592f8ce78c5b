//! A rule for each question. Each says what it chose, why, and by which figures.

use super::{Advice, AdviseArgs, Answer, Known};
use crate::experiment::reading::{Cited, Measured};
use crate::kv_size;
use crate::output::number;

/// How far a file's size may be from the measured one's for the same model, as a share.
const SAME_MODEL: f64 = 0.02;
/// Names of settings, as the experiments call them.
const AS_GIVEN: &str = "as given";
const OFF: &str = "off";
const SERVED: &str = "served beside the base";

/// The answers to all questions. What is chosen for one may bear on those after it.
pub(super) fn all(known: &Known, args: &AdviseArgs) -> Vec<Advice> {
    let (format, weights_mib) = format(known, args);
    vec![
        format,
        kv_type(known, args, weights_mib),
        batching(known, args),
        speculation(known, args),
        adapters(known, args),
        rate(known, args),
    ]
}

/// A format with the figures that decide.
struct Format<'a> {
    name: &'a str,
    /// MiB of its file, for the model that is asked about.
    weights_mib: f64,
    perplexity: Option<Cited>,
    decode: Option<Cited>,
    evidence: Vec<String>,
}

/// The fastest format that fits, is quick enough, and is little worse than the best; with the size of its file.
fn format(known: &Known, args: &AdviseArgs) -> (Advice, Option<f64>) {
    let (topic, experiment) = ("Format of the weights", "quantization");
    let none = |what: &str| (Advice::not_measured(topic, experiment, what), None);
    let Some(measured) = known.of(experiment) else { return none("no results of formats") };
    let Some(given) = measured.figure(AS_GIVEN, 0.0, "file_mib") else {
        return none("the size of the model's own file is not among the results");
    };
    let is_same = (args.model_mib / given.median() - 1.0).abs() <= SAME_MODEL;
    let all = measured.settings();
    let judged = all.iter().map(|name| judge(measured, args, (*name, &given), is_same));
    let (mut fitting, mut refused) = (Vec::new(), Vec::new());
    for one in judged {
        match one {
            Ok(format) => fitting.push(format),
            Err(why) => refused.push(why),
        }
    }
    let perplexities = all.iter().filter_map(|name| measured.figure(name, 0.0, "perplexity"));
    let best = perplexities.min_by(|a, b| a.median().total_cmp(&b.median()));
    let Some(chosen) = choose(measured, &fitting, best.as_ref(), args.quality_loss) else {
        let why = if fitting.is_empty() { "none fits and is quick enough" } else { "none has a perplexity" };
        let mut advice = Advice::new(topic, Answer::Nothing(why.to_owned()), "");
        advice.evidence = refused;
        return (advice, None);
    };
    let mut advice = Advice::new(
        topic,
        Answer::Use(chosen.name.to_owned()),
        format!(
            "The fastest decoding of those that fit, are quick enough, and whose perplexity is at most {} % above the \
             best; the smallest, where the fastest did not beat it in every round; where none is so near, the lowest \
             perplexity that fits.",
            number(args.quality_loss * 100.0)
        ),
    );
    advice.evidence.clone_from(&chosen.evidence);
    advice.evidence.extend(best.map(|best| format!("the best format: {best}")));
    advice.evidence.extend(refused);
    if !is_same {
        advice.gaps.push(format!(
            "a model of {} MiB: the measured one's file has {given}. What fits was computed from the formats' sizes; \
             buffers, times and quality are those of the measured model",
            args.model_mib
        ));
    }
    (advice, Some(chosen.weights_mib))
}

/// A format that fits and is quick enough, or why it is not.
fn judge<'a>(
    measured: &Measured,
    args: &AdviseArgs,
    (name, given): (&'a str, &Cited),
    is_same: bool,
) -> Result<Format<'a>, String> {
    let figure = |column: &str| measured.figure(name, 0.0, column);
    let file = figure("file_mib").ok_or(format!("{name}: no size of its file, so it was left out"))?;
    let share = file.median() / given.median();
    let weights_mib = if is_same { file.median() } else { share * args.model_mib };
    let (memory_mib, memory) = match figure("resident_mib").filter(|_| is_same) {
        Some(resident) => (resident.median(), resident.to_string()),
        None => {
            let computed = number(weights_mib);
            (weights_mib, format!("{computed} MiB of weights alone, computed from {file} over {given}"))
        }
    };
    if memory_mib > args.memory_mib {
        return Err(format!("{name} does not fit: {memory}"));
    }
    let ttft = figure("ttft_ms").filter(|_| is_same);
    if let Some(ttft) = ttft.as_ref().filter(|ttft| ttft.median() > args.ttft_ms) {
        return Err(format!("{name} is too slow: {ttft}"));
    }
    let (perplexity, decode) = (figure("perplexity"), figure("decode_tok_per_s"));
    let cited = [ttft, perplexity.clone(), decode.clone(), figure("accuracy")].into_iter().flatten();
    let evidence =
        [format!("memory: {memory}")].into_iter().chain(cited.map(|cited| cited.to_string())).collect();
    Ok(Format { name, weights_mib, perplexity, decode, evidence })
}

fn choose<'a, 'b>(
    measured: &Measured,
    fitting: &'b [Format<'a>],
    best: Option<&Cited>,
    loss: f64,
) -> Option<&'b Format<'a>> {
    let perplexity = |format: &Format| format.perplexity.as_ref().map_or(f64::INFINITY, Cited::median);
    let decode = |format: &Format| format.decode.as_ref().map_or(0.0, Cited::median);
    let limit = best?.median() * (1.0 + loss);
    let near = || fitting.iter().filter(|format| perplexity(format) <= limit);
    let fastest = near().max_by(|a, b| decode(a).total_cmp(&decode(b)));
    // A lead that turns round from one round to the next is none, and memory is sure.
    let smallest = fastest.and_then(|fastest| {
        let leads = |other: &Format| measured.ratio(fastest.name, other.name, 0.0, "decode_tok_per_s");
        let as_fast = near().filter(|other| leads(other).is_some_and(|ratio| ratio.min <= 1.0));
        as_fast.min_by(|a, b| a.weights_mib.total_cmp(&b.weights_mib))
    });
    let lowest = || fitting.iter().min_by(|a, b| perplexity(a).total_cmp(&perplexity(b)));
    smallest.or(fastest).or_else(lowest).filter(|format| format.perplexity.is_some())
}

/// The most precise format of keys and values that fits beside the weights.
fn kv_type(known: &Known, args: &AdviseArgs, weights_mib: Option<f64>) -> Advice {
    let (topic, experiment) = ("Keys and values", "kv-cache");
    let none = |what: &str| Advice::not_measured(topic, experiment, what);
    let Some(measured) = known.of(experiment) else {
        return none("no results of formats of keys and values");
    };
    let weights_mib = weights_mib.unwrap_or(args.model_mib);
    let mut refused = Vec::new();
    for format in kv_size::FORMATS {
        let name = format.name;
        let at_first = |column: &str| measured.figure(name, *measured.levels(name, column).first()?, column);
        let at_last = |column: &str| measured.figure(name, *measured.levels(name, column).last()?, column);
        let Some(buffers) = at_first("anonymous_mib") else { continue };
        let needed = weights_mib + buffers.median();
        let sum = format!(
            "{name}: {} MiB with weights of {} MiB and {buffers}",
            number(needed),
            number(weights_mib)
        );
        if needed > args.memory_mib {
            refused.push(format!("does not fit: {sum}"));
            continue;
        }
        let perplexity = at_first("perplexity");
        let is_worse = perplexity
            .as_ref()
            .zip(lowest_perplexity(measured))
            .is_some_and(|(chosen, lowest)| chosen.median() > lowest.median() * (1.0 + args.quality_loss));
        let mut because = "The most precise that fits beside the weights.".to_owned();
        if is_worse {
            because += &format!(
                " Its perplexity is more than {} % above the best format's: more memory would buy quality.",
                number(args.quality_loss * 100.0)
            );
        }
        let mut advice = Advice::new(topic, Answer::Use(name.to_owned()), because);
        if perplexity.is_none() {
            advice.gaps.push("perplexity by format of keys and values".to_owned());
        }
        let longest = ["decode_tok_per_s", "equal_share"].into_iter().filter_map(at_last);
        let cited = at_first("kv_mib").into_iter().chain(perplexity).chain(longest);
        advice.evidence =
            [sum].into_iter().chain(cited.map(|cited| cited.to_string())).chain(refused).collect();
        advice
            .gaps
            .push("the buffers of another model or another capacity: see `quern-bench kv-size`".to_owned());
        return advice;
    }
    if refused.is_empty() {
        return none("no memory of a node by format of keys and values");
    }
    let mut advice = Advice::new(topic, Answer::Nothing("none fits beside the weights".to_owned()), "");
    advice.evidence = refused;
    advice
}

/// Of all formats of keys and values, where they were judged.
fn lowest_perplexity(measured: &Measured) -> Option<Cited> {
    let judged = kv_size::FORMATS.into_iter().filter_map(|format| {
        let level = *measured.levels(format.name, "perplexity").first()?;
        measured.figure(format.name, level, "perplexity")
    });
    judged.min_by(|a, b| a.median().total_cmp(&b.median()))
}

/// The way of batching with the shortest tail of short requests, at the arrivals nearest above the wanted rate.
fn batching(known: &Known, args: &AdviseArgs) -> Advice {
    let (topic, experiment, figure) = ("Batching", "batching", "short_p95_ms");
    let Some(measured) = known.of(experiment) else {
        return Advice::not_measured(topic, experiment, "no results of ways of batching");
    };
    let settings = measured.settings();
    let first = settings.first().copied().unwrap_or_default();
    let levels = measured.levels(first, "offered_per_s");
    let offered = |level: &f64| measured.figure(first, *level, "offered_per_s");
    let is_enough = |level: &&f64| offered(level).is_some_and(|offered| offered.median() >= args.rate);
    let Some(level) = levels.iter().find(is_enough).or(levels.last()).copied() else {
        return Advice::not_measured(topic, experiment, "no arrivals among the results");
    };
    let tails = settings.iter().filter_map(|name| Some((*name, measured.figure(name, level, figure)?)));
    let mut tails: Vec<(&str, Cited)> = tails.collect();
    tails.sort_by(|(_, a), (_, b)| a.median().total_cmp(&b.median()));
    let Some((best, _)) = tails.first() else {
        return Advice::not_measured(topic, experiment, "no latencies of short requests among the results");
    };
    let because = format!(
        "The shortest end to end time of short requests among long ones, p95, at arrivals of {} of what the node can do.",
        number(level)
    );
    let mut advice = Advice::new(topic, Answer::Use((*best).to_owned()), because);
    advice.evidence = tails.iter().map(|(name, cited)| format!("{name}: {cited}")).collect();
    let offered = offered(&level);
    if offered.as_ref().is_none_or(|offered| offered.median() < args.rate) {
        advice.gaps.push(format!("{} requests a second: fewer arrived in this experiment", args.rate));
    }
    advice.evidence.extend(offered.map(|offered| format!("arrivals: {offered}")));
    advice
}

/// The way of guessing ahead that was faster than none in every round, if there is one.
fn speculation(known: &Known, args: &AdviseArgs) -> Advice {
    let (topic, experiment) = ("Speculation", "speculative");
    let column = if args.repeats { "edit_tok_per_s" } else { "write_tok_per_s" };
    let none = |what: &str| Advice::not_measured(topic, experiment, what);
    let Some(measured) = known.of(experiment) else { return none("no results of guessing ahead") };
    let Some(off) = measured.figure(OFF, 0.0, column) else { return none("no speed without speculation") };
    let others = measured.settings().into_iter().filter(|name| *name != OFF);
    let compared = others.filter_map(|name| Some((name, measured.ratio(name, OFF, 0.0, column)?)));
    let mut compared: Vec<_> = compared.collect();
    compared.sort_by(|(_, a), (_, b)| b.median.total_cmp(&a.median));
    if compared.is_empty() {
        return none("no speed with speculation");
    }
    let faster = compared.iter().find(|(_, ratio)| ratio.min > 1.0);
    let chosen = faster.map_or(OFF, |(name, _)| *name);
    let kind = if args.repeats { "that repeat much of their prompts" } else { "that are new text" };
    let because = format!("For answers {kind}: the fastest way that beat `{OFF}` in every round; else none.");
    let mut advice = Advice::new(topic, Answer::Use(chosen.to_owned()), because);
    advice.evidence.push(format!("{OFF}: {off}"));
    for (name, ratio) in &compared {
        let figures = [column, "equal_share", "proven_share"]
            .into_iter()
            .filter_map(|column| measured.figure(name, 0.0, column));
        let figures: Vec<String> = figures.map(|cited| cited.to_string()).collect();
        advice.evidence.push(format!(
            "{name}: {} [{}–{}] times `{OFF}` in {} rounds; {}",
            number(ratio.median),
            number(ratio.min),
            number(ratio.max),
            ratio.count,
            figures.join("; ")
        ));
    }
    advice.gaps.push("several clients at once, where guesses take rows from others".to_owned());
    advice
}

/// For one adapter the fastest way to serve it; for several the one that answers most requests in the memory.
fn adapters(known: &Known, args: &AdviseArgs) -> Advice {
    let (topic, experiment) = ("Adapters", "lora");
    if args.adapters == 0 {
        return Advice::new(
            topic,
            Answer::NotAsked("none are served".to_owned()),
            "Say how many with --adapters.",
        );
    }
    let none = |what: &str| Advice::not_measured(topic, experiment, what);
    let Some(measured) = known.of(experiment) else { return none("no results of adapters") };
    let settings = measured.settings();
    let is_many = args.adapters > 1;
    let is_way = |name: &&str| {
        if is_many {
            name.ends_with("in one process, all asked") || name.ends_with(" processes")
        } else {
            *name == SERVED || name.starts_with("merged")
        }
    };
    // Adapters that classify write nothing: their texts are their prefill.
    let columns: &[&str] =
        if is_many { &["requests_per_s"] } else { &["decode_tok_per_s", "prefill_tok_per_s"] };
    let speeds = |column: &&str| {
        let ways = settings.iter().copied().filter(is_way);
        let cited = ways.filter_map(|name| Some((name, measured.figure(name, 0.0, column)?)));
        Some(cited.collect::<Vec<_>>()).filter(|cited| !cited.is_empty())
    };
    let Some(mut speeds) = columns.iter().find_map(speeds) else {
        return none("no speeds of ways to serve adapters");
    };
    speeds.sort_by(|(_, a), (_, b)| b.median().total_cmp(&a.median()));
    let memory =
        |name: &str| measured.figure(name, 0.0, if is_many { "all_memory_mib" } else { "resident_mib" });
    let fits =
        |(name, _): &&(&str, Cited)| memory(name).is_none_or(|memory| memory.median() <= args.memory_mib);
    let answer = match speeds.iter().find(fits) {
        Some((name, _)) => Answer::Use((*name).to_owned()),
        None => Answer::Nothing("no way fits into the memory".to_owned()),
    };
    let mut advice = Advice::new(topic, answer, "The fastest way to serve them whose memory fits.");
    for (name, speed) in &speeds {
        let more =
            ["accuracy", "perplexity"].into_iter().filter_map(|column| measured.figure(name, 0.0, column));
        let figures = [speed.clone()].into_iter().chain(memory(name)).chain(more);
        let figures: Vec<String> = figures.map(|cited| cited.to_string()).collect();
        advice.evidence.push(format!("{name}: {}", figures.join("; ")));
    }
    if is_many {
        advice.gaps.push(format!("{} adapters, unless a setting above names that number", args.adapters));
        advice.gaps.push("merging each into a file of its own".to_owned());
    }
    advice
}

/// Whether one machine carries the rate.
fn rate(known: &Known, args: &AdviseArgs) -> Advice {
    let (topic, experiment, column) = ("Rate", "hardware", "requests_per_s");
    let none = |what: &str| Advice::not_measured(topic, experiment, what);
    let Some(measured) = known.of(experiment) else { return none("no results of what the machine carries") };
    let at_levels = |name| {
        let levels = measured.levels(name, column).into_iter();
        levels.filter_map(move |level| Some((name, level, measured.figure(name, level, column)?)))
    };
    let all = measured.settings().into_iter().flat_map(at_levels);
    let Some((name, level, most)) = all.max_by(|(_, _, a), (_, _, b)| a.median().total_cmp(&b.median()))
    else {
        return none("no requests per second among the results");
    };
    let answer = if most.median() >= args.rate {
        Answer::Use(name.to_owned())
    } else {
        Answer::Nothing(format!("one machine carries {} a second", number(most.median())))
    };
    let because = "The most that one machine answered in closed loop, which says nothing of waiting: `quern-bench plan` \
                   tells how many machines a latency needs.";
    let mut advice = Advice::new(topic, answer, because);
    advice.evidence.push(format!("{name}, {level} clients: {most}"));
    advice
}
