//! `policies`: scheduling policies on the same arrivals, served by a real node and by the simulator.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep_until};

use super::About;
use super::arrivals::poisson_times;
use super::chart::Panel;
use super::lab::{Lab, Served};
use super::load::{Ask, closed_loop, quantile, send, ttft_ms, wall_s};
use super::section::Findings;
use super::sheet::{Column, Sheet, less, more, told};
use super::speed::Figures;
use super::steps::{self, Step};
use super::texts;
use crate::node::NodeSettings;
use crate::reply::Reply;

/// See the module's text.
pub(super) const ABOUT: About = About {
    name: "policies",
    title: "Scheduling policies: real against simulated",
    question: "What does each policy make of the same arrivals on this machine, and how near is the simulator?",
};

/// Its own flags.
#[derive(Debug, Args)]
pub struct PoliciesArgs {
    /// A policy's file (.wasm) beside the built-in scheduler, with its settings; may be given again.
    #[arg(long = "policy", value_name = "FILE[,KEY=VALUE…]", value_parser = Candidate::parse)]
    policies: Vec<Candidate>,
    /// Arrivals as a share of what the node can do. Where few requests wait, every order is the same.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    load: f64,
    /// Requests of each run; 20 with --quick, else 100.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    requests: Option<u32>,
    /// Sequences that the node computes together.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    max_running: u32,
}

/// A policy with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    file: PathBuf,
    settings: BTreeMap<String, String>,
}

impl Candidate {
    fn parse(given: &str) -> Result<Self, String> {
        let mut parts = given.split(',');
        let file = PathBuf::from(parts.next().unwrap_or_default());
        if !file.is_file() {
            return Err(format!("{}: there is no such file", file.display()));
        }
        let setting = |part: &str| {
            let (key, value) = part.split_once('=').ok_or(format!("{part:?} is no KEY=VALUE"))?;
            Ok::<_, String>((key.trim().to_owned(), value.trim().to_owned()))
        };
        let settings = parts.map(setting).collect::<Result<_, _>>()?;
        let file = std::path::absolute(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self { file, settings })
    }

    fn name(&self) -> String {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match self.pairs().collect::<Vec<_>>() {
            pairs if pairs.is_empty() => stem,
            pairs => format!("{stem} ({})", pairs.join(", ")),
        }
    }

    fn pairs(&self) -> impl Iterator<Item = String> {
        self.settings.iter().map(|(key, value)| format!("{key}={value}"))
    }

    /// The part of a node's configuration that runs it.
    fn config(&self) -> anyhow::Result<String> {
        let policy = serde_json::json!({"policy": [{"file": self.file, "settings": self.settings}]});
        Ok(toml::to_string(&policy)?)
    }
}

const COLUMNS: &[Column] = &[
    less("ttft_p50_ms", "TTFT p50 ms", "milliseconds from arrival to the first token, median"),
    less("ttft_p95_ms", "TTFT p95 ms", "the same, 95th percentile"),
    less("tbt_p50_ms", "between tokens p50 ms", "milliseconds between two tokens of an answer, median"),
    less("tbt_p95_ms", "between tokens p95 ms", "the same, 95th percentile"),
    more(
        "tokens_per_s",
        "tok/s",
        "tokens of all answers over the time from the first arrival to the last end",
    ),
    told("offered_per_s", "offered requests/s", "arrivals per second"),
];

/// Figures that both have, as the simulator names them.
const BOTH: [(&str, &str); 5] = [
    ("ttft_p50_ms", "ttft_p50_ms"),
    ("ttft_p95_ms", "ttft_p95_ms"),
    ("tbt_p50_ms", "tbt_p50_ms"),
    ("tbt_p95_ms", "tbt_p95_ms"),
    ("tokens_per_s", "tokens_per_second"),
];
const BUILTIN: &str = "builtin";
/// Tokens of an answer, words of a prompt at least and at most.
const ANSWER_TOKENS: u32 = 32;
const PROMPT_WORDS: (usize, usize) = (16, 160);
/// Tokens of state.
const KV_CAPACITY: usize = 16_384;

pub(super) fn policies(lab: &Lab, args: &PoliciesArgs) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.load > 0.0 && args.load.is_finite(), "--load: the share must be above 0");
    let num_requests = args.requests.unwrap_or(if lab.wish.is_quick { 20 } else { 100 }) as usize;
    let given = args.policies.iter().map(|candidate| (candidate.name(), Some(candidate)));
    let ways: Vec<(String, Option<&Candidate>)> =
        [(BUILTIN.to_owned(), None)].into_iter().chain(given).collect();
    lab.expect_steps(1 + ways.len() * lab.wish.rounds);
    lab.say("what the node can do");
    let rate = closed_rate(lab, args, num_requests)? * args.load;
    lab.advance();

    let mut sheet = Sheet::new(None, COLUMNS);
    let mut costs = None;
    lab.rounds(&mut sheet, &ways, |sheet, (name, policy), round| {
        let run = serve(lab, args, *policy, (num_requests, rate, round))?;
        let mut figures = figures(&run.replies);
        figures.push(("offered_per_s", Some(rate)));
        sheet.add(&format!("{name}, real"), 0.0, round, figures);
        let fitted = fit(lab, &run.steps)?;
        let trace = lab.scratch("trace.csv");
        std::fs::write(&trace, trace_of(&run.times, &run.replies))?;
        let simulated = simulate(lab, args, *policy, [&trace, &fitted.costs])?;
        sheet.add(&format!("{name}, simulated"), 0.0, round, simulated);
        if policy.is_none() {
            costs = Some((std::fs::read_to_string(&fitted.costs)?, fitted.told));
        }
        Ok(())
    })?;
    let panels = COLUMNS[..5].iter().map(|column| Panel::Bars(column.id, 0.0)).collect();
    let names: Vec<&str> = ways.iter().map(|(name, _)| name.as_str()).collect();
    let told = errors_of(&sheet, &names);
    let mut findings = Findings::new(sheet, panels);
    findings.told = told;
    findings.method = method(args);
    if let Some((json, told)) = costs {
        findings.files.push(("costs.json", json));
        findings.method.push(format!("`costs.json` is of the built-in scheduler's last run: {told}."));
    }
    if args.policies.is_empty() {
        findings
            .not_measured
            .push("Policies beside the built-in one: none was given (--policy FILE).".to_owned());
    }
    Ok(findings)
}

fn method(args: &PoliciesArgs) -> Vec<String> {
    vec![
        format!(
            "A node for each policy in turn, {} sequences at once; requests of {} to {} words for {ANSWER_TOKENS} tokens \
             arrive at random (Poisson), the same ones for each policy of a round, at {:.2} times what the node did \
             with {} clients in closed loop. The simulator serves the arrivals, prompts and answers that the real node \
             had.",
            args.max_running, PROMPT_WORDS.0, PROMPT_WORDS.1, args.load, args.max_running
        ),
        "Costs of steps are fitted to the steps of the very run that is simulated: what is held against the node is the \
         order and the make-up of steps, not how the machine's speed drifts between runs."
            .to_owned(),
    ]
}

fn settings(lab: &Lab, args: &PoliciesArgs) -> NodeSettings {
    lab.settings(&lab.wish.model).with("--max-running", args.max_running).with("--kv-capacity", KV_CAPACITY)
}

/// What a node did.
struct Run {
    times: Vec<Duration>,
    replies: Vec<Reply>,
    steps: Vec<Step>,
}

/// Serves a round's arrivals: so many, at a rate, of a round.
fn serve(
    lab: &Lab,
    args: &PoliciesArgs,
    policy: Option<&Candidate>,
    (num_requests, rate, round): (usize, f64, usize),
) -> anyhow::Result<Run> {
    let mut node = steps::LOG_SWITCHES
        .iter()
        .fold(settings(lab, args), |node, (switch, value)| node.with(switch, value));
    if let Some(policy) = policy {
        node.config = policy.config()?;
    }
    let served = lab.start(&node)?;
    lab.ask(&served, &[Ask::text(texts::prose(16, u64::MAX / 2), 4)])?;
    let num_warming = steps::read(&served.node.log()?).len();
    let times = poisson_times(num_requests, rate, round as u64);
    let asks: Vec<Ask> = (0..num_requests).map(|idx| ask_of(round * num_requests + idx)).collect();
    let replies = lab.wait(drive(lab, &served, &times, &asks))?;
    let steps = steps::read(&served.node.log()?).split_off(num_warming);
    Ok(Run { times, replies, steps })
}

/// Prompts of many lengths, none of which begins as another does.
fn ask_of(number: usize) -> Ask {
    let (least, most) = PROMPT_WORDS;
    // A step that has no factor in common with the range: every length comes as often.
    let num_words = least + number * 59 % (most - least + 1);
    Ask::text(texts::prose(num_words, number as u64), ANSWER_TOKENS).never_ending()
}

/// Requests per second in closed loop.
fn closed_rate(lab: &Lab, args: &PoliciesArgs, num_requests: usize) -> anyhow::Result<f64> {
    let served = lab.start(&settings(lab, args))?;
    // Numbers of their own, far from those of the runs.
    let ask = |idx: usize| ask_of(1_000_000 + idx);
    lab.ask(&served, &[ask(0)])?;
    let asks: Vec<Ask> = (1..=num_requests).map(ask).collect();
    let replies = lab.wait(closed_loop(lab.client(), &served.server, &asks, args.max_running as usize))?;
    Ok(num_requests as f64 / wall_s(&replies).context("nothing was asked")?)
}

/// What steps cost: the file with the figures, and what the fit said.
struct Fitted {
    costs: PathBuf,
    told: String,
}

fn fit(lab: &Lab, steps: &[Step]) -> anyhow::Result<Fitted> {
    let (table, costs) = (lab.scratch("steps.csv"), lab.scratch("costs.json"));
    std::fs::write(&table, steps::table(steps))?;
    let words = ["policy".to_owned(), "fit".to_owned(), table.display().to_string()];
    let out = ["--costs-out".to_owned(), costs.display().to_string()];
    let told = lab.quern(words.into_iter().chain(out))?;
    Ok(Fitted { costs, told: told.lines().collect::<Vec<_>>().join("; ") })
}

async fn drive(lab: &Lab, served: &Served, times: &[Duration], asks: &[Ask]) -> anyhow::Result<Vec<Reply>> {
    let begun = Instant::now();
    let one = |(at, ask): (&Duration, _)| {
        let intended = begun + *at;
        async move {
            sleep_until(intended).await;
            send(lab.client(), &served.server, ask, intended).await
        }
    };
    try_join_all(times.iter().zip(asks).map(one)).await
}

/// The arrivals as the simulator reads them.
fn trace_of(times: &[Duration], replies: &[Reply]) -> String {
    let line = |(at, reply): (&Duration, &Reply)| {
        let (prompt, new) = (reply.prompt_tokens.unwrap_or(1), reply.num_tokens().max(1));
        format!("{:.3},{prompt},0,{new}\n", at.as_secs_f64() * 1e3)
    };
    "at_ms,prompt,cached,max_new\n".to_owned() + &times.iter().zip(replies).map(line).collect::<String>()
}

fn figures(replies: &[Reply]) -> Figures {
    let ttft: Vec<f64> = replies.iter().filter_map(ttft_ms).collect();
    let gaps: Vec<f64> = replies.iter().flat_map(Reply::gaps).map(|gap| gap.as_secs_f64() * 1e3).collect();
    let wall_s = wall_s(replies).unwrap_or(f64::NAN);
    let tokens: u64 = replies.iter().map(Reply::num_tokens).sum();
    vec![
        ("ttft_p50_ms", quantile(&ttft, 0.5)),
        ("ttft_p95_ms", quantile(&ttft, 0.95)),
        ("tbt_p50_ms", quantile(&gaps, 0.5)),
        ("tbt_p95_ms", quantile(&gaps, 0.95)),
        ("tokens_per_s", Some(tokens as f64 / wall_s)),
    ]
}

fn simulate(
    lab: &Lab,
    args: &PoliciesArgs,
    policy: Option<&Candidate>,
    [trace, costs]: [&PathBuf; 2],
) -> anyhow::Result<Figures> {
    let file = policy.map_or(BUILTIN.to_owned(), |policy| policy.file.display().to_string());
    let (trace, costs) = (trace.display().to_string(), costs.display().to_string());
    let (max_running, capacity) = (args.max_running.to_string(), KV_CAPACITY.to_string());
    let words = ["policy", "simulate", &file, "--json", "--trace", &trace, "--costs", &costs];
    let limits = ["--max-running", &max_running, "--kv-capacity", &capacity].map(str::to_owned);
    let words = words.map(str::to_owned).into_iter().chain(limits);
    let pairs = policy.iter().flat_map(|policy| policy.pairs());
    let words = words.chain(pairs.flat_map(|pair| ["--config".to_owned(), pair]));
    let printed = lab.quern(words)?;
    let report: serde_json::Value =
        serde_json::from_str(&printed).context("quern policy simulate printed no JSON")?;
    let of = |name: &str| report.pointer(&format!("/policies/0/{name}")).and_then(serde_json::Value::as_f64);
    Ok(BOTH.map(|(id, name)| (id, of(name))).into())
}

/// How far the simulator is from the node, by policy and figure.
fn errors_of(sheet: &Sheet, policies: &[&str]) -> Vec<String> {
    let error = |policy: &str, id: &str| {
        let real = sheet.spread(&format!("{policy}, real"), 0.0, id)?.median;
        let simulated = sheet.spread(&format!("{policy}, simulated"), 0.0, id)?.median;
        Some(format!("{} {:+.0} %", sheet.column(id).label, (simulated / real - 1.0) * 100.0))
    };
    let of_policy = |policy: &&str| {
        let errors: Vec<String> = BOTH.iter().filter_map(|(id, _)| error(policy, id)).collect();
        (!errors.is_empty()).then(|| format!("{policy}, simulated against real: {}.", errors.join(", ")))
    };
    policies.iter().filter_map(of_policy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::load::tests::reply;

    #[test]
    fn a_trace_has_what_the_node_was_asked_and_answered() {
        let begin = Instant::now();
        let times = [Duration::ZERO, Duration::from_millis(1500)];
        let replies = [reply(begin, &[10, 20, 30], 40), reply(begin, &[10], 50)];
        assert_eq!(
            trace_of(&times, &replies),
            "at_ms,prompt,cached,max_new\n0.000,40,0,3\n1500.000,50,0,1\n"
        );
    }

    #[test]
    fn the_simulators_errors_are_told_by_figure() {
        let mut sheet = Sheet::new(None, COLUMNS);
        sheet.add("builtin, real", 0.0, 0, [("ttft_p50_ms", Some(100.0))]);
        sheet.add("builtin, simulated", 0.0, 0, [("ttft_p50_ms", Some(125.0))]);
        assert_eq!(errors_of(&sheet, &["builtin"]), ["builtin, simulated against real: TTFT p50 ms +25 %."]);
        assert!(errors_of(&sheet, &["other"]).is_empty());
    }

    #[test]
    fn a_policy_is_given_with_its_settings() {
        let file = tempfile::NamedTempFile::with_suffix(".wasm").unwrap();
        let (path, stem) = (file.path().display(), file.path().file_stem().unwrap().to_str().unwrap());
        let plain = Candidate::parse(&path.to_string()).unwrap();
        assert_eq!(plain.name(), stem);
        let set = Candidate::parse(&format!("{path},ageing=20, share = 0.5")).unwrap();
        assert_eq!(set.name(), format!("{stem} (ageing=20, share=0.5)"));
        let config: toml::Value = toml::from_str(&set.config().unwrap()).unwrap();
        assert_eq!(config["policy"][0]["settings"]["share"].as_str(), Some("0.5"));
        assert_eq!(config["policy"][0]["file"].as_str(), file.path().to_str());
        assert!(Candidate::parse(&format!("{path},ageing")).unwrap_err().contains("no KEY=VALUE"));
        assert!(Candidate::parse("nowhere.wasm").unwrap_err().contains("no such file"));
    }

    #[test]
    fn prompts_have_many_lengths() {
        let lengths: std::collections::HashSet<usize> =
            (0..145).map(|n| ask_of(n).prompt.split_whitespace().count()).collect();
        assert_eq!(lengths.len(), 145);
    }
}
