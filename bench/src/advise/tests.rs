use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: AdviseArgs,
}

const QUANTIZATION: &str = "setting,round,resident_mib,ttft_ms,file_mib,perplexity,decode_tok_per_s,failed\n\
    as given,0,900,100,500,10.0,20,\nQ8_0,0,1000,120,600,10.1,15,\nQ4_0,0,700,80,400,10.15,30,\nQ2_K,0,400,70,200,14,35,\n\
    F16,0,2000,300,1000,10,8,\nBF16,,,,,,,no such luck\n";
const KV_CACHE: &str = "setting,length_tokens,round,decode_tok_per_s,kv_mib,equal_share,perplexity,anonymous_mib,failed\n\
    f16,256,0,20,100,1,10,300,\nf16,2048,0,10,,1,,,\nq8_0,256,0,19,53,0.9,10.5,250,\nq8_0,2048,0,9,,0.8,,,\n\
    no cache,256,0,1,,,,,\n";
const BATCHING: &str = "setting,load_share,round,short_p95_ms,offered_per_s,failed\n\
    continuous,0.4,0,500,2,\n\"static, 8\",0.4,0,3000,2,\ncontinuous,0.8,0,900,4,\n\"static, 8\",0.8,0,700,4,\n";
const SPECULATIVE: &str = "setting,round,edit_tok_per_s,write_tok_per_s,equal_share,failed\n\
    off,0,20,20,,\nlookup,0,40,19,1,\ndraft,0,30,24,1,\noff,1,10,10,,\nlookup,1,25,9,1,\ndraft,1,9,12,0.5,\n";
const LORA: &str = "setting,round,resident_mib,decode_tok_per_s,requests_per_s,all_memory_mib,accuracy,failed\n\
    base,0,900,20,,,0.5,\nserved beside the base,0,950,15,,,0.9,\nmerged,0,1800,12,,,0.9,\n\"merged, Q4_K_M\",0,900,19,,,0.9,\n\
    \"4 in one process, one asked\",0,,,9,1000,,\n\"4 in one process, all asked\",0,,,5,1000,,\n4 in 4 processes,0,,,6,3000,,\n";
const HARDWARE: &str = "setting,clients,round,requests_per_s,failed\ndefaults,1,0,2,\ndefaults,8,0,6,\n";

fn leave(root: &Path, folder: &str, experiment: &str, table: &str) {
    let place = root.join(folder);
    std::fs::create_dir_all(&place).unwrap();
    let head = format!(
        "# t: q\n# quern-bench experiment {experiment}, layout 2, 2026-01-31T00:00:00Z\n# machine: a box, load before the run 0.1\n"
    );
    std::fs::write(place.join("results.csv"), head + table).unwrap();
}

fn all_results() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let tables = [
        ("quantization", QUANTIZATION),
        ("kv-cache", KV_CACHE),
        ("batching", BATCHING),
        ("speculative", SPECULATIVE),
        ("lora", LORA),
        ("hardware", HARDWARE),
    ];
    for (experiment, table) in tables {
        leave(root.path(), experiment, experiment, table);
    }
    root
}

fn args(root: &Path, more: &[&str]) -> AdviseArgs {
    let mut words = vec!["advise", "--results", root.to_str().unwrap()];
    for (flag, value) in
        [("--model-mib", "500"), ("--memory-mib", "1500"), ("--ttft-ms", "200"), ("--rate", "1")]
    {
        if !more.contains(&flag) {
            words.extend([flag, value]);
        }
    }
    words.extend(more);
    Line::try_parse_from(words).unwrap().args
}

/// The advice on a topic.
fn on(topic: &str, root: &Path, more: &[&str]) -> Advice {
    let args = args(root, more);
    let known = Known::read(&args).unwrap();
    topics::all(&known, &args).into_iter().find(|advice| advice.topic == topic).unwrap()
}

fn used(topic: &str, root: &Path, more: &[&str]) -> String {
    match on(topic, root, more).answer {
        Answer::Use(what) => what,
        other => panic!("{topic}: {other:?}"),
    }
}

#[test]
fn the_fastest_format_near_the_best_is_used() {
    let (root, topic) = (all_results(), "Format of the weights");
    let advice = on(topic, root.path(), &[]);
    assert_eq!(advice.answer, Answer::Use("Q4_0".to_owned()));
    let evidence = advice.evidence.join("\n");
    assert!(
        evidence.contains("perplexity 10.2 (") && evidence.contains("results.csv, line 7)"),
        "{evidence}"
    );
    assert!(evidence.contains("F16 does not fit: resident_mib 2000"), "{evidence}");
    assert!(advice.gaps.is_empty());
    assert_eq!(used(topic, root.path(), &["--quality-loss", "0.5"]), "Q2_K");
    assert_eq!(used(topic, root.path(), &["--quality-loss", "0"]), "as given");
    assert_eq!(used(topic, root.path(), &["--ttft-ms", "75"]), "Q2_K", "nothing else is quick enough");
    let small = on(topic, root.path(), &["--memory-mib", "100"]);
    assert!(matches!(small.answer, Answer::Nothing(_)) && small.evidence.len() == 5, "{small:?}");
}

#[test]
fn among_formats_that_are_as_fast_the_smallest_is_used() {
    let (root, topic, any_quality) = (all_results(), "Format of the weights", ["--quality-loss", "0.5"]);
    let with_second_round = |first: u32| {
        let table = QUANTIZATION.replace("10.15,30,", &format!("10.15,{first},"))
            + "Q4_0,1,700,80,400,10.15,45,\nQ2_K,1,400,70,200,14,35,\n";
        leave(root.path(), "quantization", "quantization", &table);
        used(topic, root.path(), &any_quality)
    };
    assert_eq!(with_second_round(40), "Q4_0", "it was faster in both rounds");
    assert_eq!(with_second_round(30), "Q2_K", "it was faster in one only");
}

#[test]
fn sizes_of_another_model_are_computed_and_said_to_be() {
    let root = all_results();
    let advice = on("Format of the weights", root.path(), &["--model-mib", "1000"]);
    // Q4_0 has 400 of 500 MiB: 800 of 1000. F16 would have 2000.
    assert_eq!(advice.answer, Answer::Use("Q4_0".to_owned()));
    let evidence = advice.evidence.join("\n");
    assert!(evidence.contains("800 MiB of weights alone, computed from file_mib 400"), "{evidence}");
    assert!(!evidence.contains("ttft_ms"), "times of another model are not passed off as this one's");
    assert!(advice.gaps[0].contains("a model of 1000 MiB"), "{advice:?}");
}

#[test]
fn the_most_precise_keys_and_values_that_fit_are_used() {
    let (root, topic) = (all_results(), "Keys and values");
    assert_eq!(used(topic, root.path(), &[]), "f16");
    let tight = on(topic, root.path(), &["--memory-mib", "600", "--ttft-ms", "1", "--model-mib", "400"]);
    assert_eq!(tight.answer, Answer::Use("q8_0".to_owned()), "{tight:?}");
    assert!(tight.evidence.iter().any(|line| line.starts_with("does not fit: f16")), "{tight:?}");
    assert!(tight.evidence.iter().any(|line| line.starts_with("equal_share 0.80")), "{tight:?}");
    assert!(tight.evidence.iter().any(|line| line.starts_with("perplexity 10.5")), "{tight:?}");
    assert!(tight.because.contains("more than 2.00 % above the best"), "{tight:?}");
    assert!(!on(topic, root.path(), &[]).because.contains("above"));
    let old = "setting,length_tokens,round,anonymous_mib,failed\nf16,256,0,300,\n";
    leave(root.path(), "kv-cache", "kv-cache", old);
    assert!(on(topic, root.path(), &[]).gaps.iter().any(|gap| gap.starts_with("perplexity")));
    let none = on(topic, root.path(), &["--memory-mib", "100"]);
    assert!(matches!(none.answer, Answer::Nothing(_)), "{none:?}");
}

#[test]
fn batching_is_judged_at_the_wanted_rate() {
    let (root, topic) = (all_results(), "Batching");
    assert_eq!(used(topic, root.path(), &["--rate", "1.5"]), "continuous");
    assert_eq!(used(topic, root.path(), &["--rate", "3"]), "static, 8");
    assert!(on(topic, root.path(), &["--rate", "3"]).gaps.is_empty());
    let above = on(topic, root.path(), &["--rate", "50"]);
    assert!(above.gaps[0].contains("50 requests a second"), "{above:?}");
}

#[test]
fn speculation_must_win_every_round() {
    let (root, topic) = (all_results(), "Speculation");
    assert_eq!(used(topic, root.path(), &["--repeats"]), "lookup");
    assert_eq!(used(topic, root.path(), &[]), "draft");
    // In one round the draft model loses as well.
    leave(root.path(), "speculative", "speculative", &SPECULATIVE.replace("draft,1,9,12", "draft,1,9,8"));
    let advice = on(topic, root.path(), &[]);
    assert_eq!(advice.answer, Answer::Use("off".to_owned()));
    assert!(advice.evidence[1].contains("times `off` in 2 rounds"), "{advice:?}");
}

#[test]
fn adapters_are_served_by_their_number() {
    let (root, topic) = (all_results(), "Adapters");
    assert!(matches!(on(topic, root.path(), &[]).answer, Answer::NotAsked(_)));
    assert_eq!(used(topic, root.path(), &["--adapters", "1"]), "merged, Q4_K_M");
    assert_eq!(used(topic, root.path(), &["--adapters", "4"]), "4 in one process, all asked");
    assert_eq!(used(topic, root.path(), &["--adapters", "4", "--memory-mib", "4000"]), "4 in 4 processes");
    let none = on(topic, root.path(), &["--adapters", "4", "--memory-mib", "10"]);
    assert!(matches!(none.answer, Answer::Nothing(_)), "{none:?}");
}

#[test]
fn a_rate_is_compared_with_what_a_machine_carries() {
    let root = all_results();
    assert_eq!(used("Rate", root.path(), &["--rate", "6"]), "defaults");
    let above = on("Rate", root.path(), &["--rate", "7"]);
    assert_eq!(above.answer, Answer::Nothing("one machine carries 6.00 a second".to_owned()));
    assert!(above.evidence[0].starts_with("defaults, 8 clients: requests_per_s 6.00 ("), "{above:?}");
}

#[test]
fn what_has_no_results_is_not_measured_and_has_no_figure() {
    let root = tempfile::tempdir().unwrap();
    leave(root.path(), "pruning", "pruning", "setting,round,failed\na,0,\n");
    let given = args(root.path(), &["--adapters", "2"]);
    let known = Known::read(&given).unwrap();
    for advice in topics::all(&known, &given) {
        assert!(
            matches!(&advice.answer, Answer::NotMeasured(how) if how.contains("quern-bench experiment ")),
            "{advice:?}"
        );
        assert!(advice.evidence.is_empty() && advice.because.is_empty(), "{advice:?}");
    }
    let text = advise(&given, "quern-bench advise").unwrap();
    assert_eq!(text.matches("| not measured |").count(), 6, "{text}");
}

#[test]
fn columns_that_are_missing_are_not_measured_either() {
    let root = tempfile::tempdir().unwrap();
    for experiment in ["quantization", "kv-cache", "batching", "speculative", "lora", "hardware"] {
        leave(root.path(), experiment, experiment, "setting,round,other,failed\nas given,0,1,\noff,0,1,\n");
    }
    let given = args(root.path(), &["--adapters", "1"]);
    let known = Known::read(&given).unwrap();
    for advice in topics::all(&known, &given) {
        assert!(matches!(advice.answer, Answer::NotMeasured(_)), "{advice:?}");
    }
}

#[test]
fn the_text_has_every_answer_with_its_evidence() {
    let root = all_results();
    let text = advise(&args(root.path(), &["--adapters", "1"]), "quern-bench advise").unwrap();
    for part in [
        "| Format of the weights | `Q4_0` |",
        "| Adapters | `merged, Q4_K_M` |",
        "## Batching: `continuous`",
        "Measured on: a box.",
        "- Not measured: the buffers of another model",
        "Command: `quern-bench advise`",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("several machines"));
}

#[test]
fn bad_questions_and_results_are_refused() {
    let root = all_results();
    let told = |more: &[&str]| advise(&args(root.path(), more), "").unwrap_err();
    for flag in ["--model-mib", "--memory-mib", "--ttft-ms", "--rate"] {
        let error = told(&[flag, "0"]);
        assert!(matches!(&error, AdviseError::Usage(message) if message.starts_with(flag)), "{error}");
    }
    assert!(told(&["--quality-loss=-1"]).to_string().contains("--quality-loss -1"));
    leave(root.path(), "again", "lora", LORA);
    assert!(told(&[]).to_string().contains("two results of `lora`"));
    let empty = tempfile::tempdir().unwrap();
    let error = advise(&args(empty.path(), &[]), "").unwrap_err().to_string();
    assert!(error.contains("no results of experiments here"), "{error}");
    assert!(Line::try_parse_from(["advise", "--results", "x"]).is_err(), "the question has four parts");
}
