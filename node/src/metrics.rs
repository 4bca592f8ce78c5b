//! What is measured, by name, unit and bucket, and how it is rendered.
//!
//! Crates record through the `metrics` facade wherever something happens; this
//! file alone knows the exporter. Beside our own names it gives the ones that
//! gateways and dashboards made for vLLM read, computed when they are asked for.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use quern_scheduler::Load;

use crate::adapters::{InWork, Registry};
use crate::workers::Status;

/// Histograms of whole requests and their parts, in seconds.
const LATENCY_BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Histograms of what happens in every step, in seconds; the finest are microseconds.
const STEP_BUCKETS: [f64; 14] =
    [0.000_01, 0.000_1, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// Rows of a step.
const ROW_BUCKETS: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Name, unit, buckets, description.
const HISTOGRAMS: &[(&str, Unit, &[f64], &str)] = &[
    ("quern_queue_time_seconds", Unit::Seconds, &LATENCY_BUCKETS, "From arrival to the first step."),
    (
        "quern_time_to_first_token_seconds",
        Unit::Seconds,
        &LATENCY_BUCKETS,
        "From arrival to the first token.",
    ),
    (
        "quern_inter_token_latency_seconds",
        Unit::Seconds,
        &LATENCY_BUCKETS,
        "Between two tokens of an answer.",
    ),
    (
        "quern_request_duration_seconds",
        Unit::Seconds,
        &LATENCY_BUCKETS,
        "From arrival to the last byte of the answer, by endpoint.",
    ),
    ("quern_step_duration_seconds", Unit::Seconds, &STEP_BUCKETS, "One step of the engine."),
    ("quern_plan_duration_seconds", Unit::Seconds, &STEP_BUCKETS, "Planning one step."),
    (
        "quern_step_overhead_seconds",
        Unit::Seconds,
        &STEP_BUCKETS,
        "One turn of the step loop without the engine's part.",
    ),
    (
        "quern_adapter_read_seconds",
        Unit::Seconds,
        &LATENCY_BUCKETS,
        "Bringing an adapter from the disk to memory.",
    ),
    (
        "quern_adapter_load_seconds",
        Unit::Seconds,
        &LATENCY_BUCKETS,
        "Bringing an adapter to an engine, from the disk where it is not in memory.",
    ),
    ("quern_step_rows", Unit::Count, &ROW_BUCKETS, "Rows in one step, prefill and decode together."),
];

/// Name, description. Counters of things end in `_total`.
const COUNTERS: &[(&str, &str)] = &[
    ("quern_prefix_cache_query_tokens_total", "Prompt tokens that were looked up in the prefix cache."),
    ("quern_prefix_cache_hit_tokens_total", "Prompt tokens that the prefix cache held."),
    ("quern_prefix_cache_restored_tokens_total", "Of these, tokens whose state came back from host memory."),
    ("quern_preemptions_total", "Sequences that were paused, by what became of their state."),
    ("quern_speculation_drafted_tokens_total", "Tokens that were guessed ahead."),
    ("quern_speculation_accepted_tokens_total", "Guessed tokens that came true."),
    ("quern_plans_total", "Planned steps, by what became of the planner's plan."),
    ("quern_routed_requests_total", "Requests for which there was a choice of workers, by what decided."),
    ("quern_adapter_requests_total", "Requests that named an adapter, by adapter."),
    ("quern_adapter_loads_total", "Adapters brought to an engine, by outcome."),
    ("quern_adapter_evictions_total", "Adapters that made room for others, by what they left."),
    ("quern_worker_failures_total", "Workers that could not be started, died, or only failed, by kind."),
    ("quern_feedback_dropped_total", "Ended sequences that policies were not told of, for lack of room."),
    ("quern_admission_unasked_total", "Requests that went on because no policy answered in time."),
    ("quern_http_requests_total", "Answered HTTP requests, by endpoint and status."),
    ("quern_requests_refused_total", "Requests that were refused before any work, by reason."),
    ("quern_prompt_tokens_total", "Tokens of prompts."),
    ("quern_generated_tokens_total", "Tokens of answers."),
    ("quern_requests_finished_total", "Answers that came to an end, by reason."),
    ("quern_classified_texts_total", "Texts that were classified, by whether they got a label."),
];

/// Name, description.
const GAUGES: &[(&str, &str)] = &[
    ("quern_requests_queued", "Requests with a place in the queue that have not started."),
    ("quern_sequences_waiting", "Sequences that wait for their first step, or to be resumed."),
    ("quern_sequences_running", "Sequences that hold key-value state and are worked on."),
    ("quern_kv_used_tokens", "Tokens of key-value state in use, cached prefixes included."),
    ("quern_kv_capacity_tokens", "Tokens of key-value state that there is room for."),
    ("quern_workers", "Workers, by state."),
    ("quern_workers_desired", "Workers that there should be, for an outer autoscaler too."),
    ("quern_adapters_registered", "Adapters that requests may name."),
    ("quern_adapters_resident", "Adapters on engines, counted on each."),
    ("quern_adapter_memory_bytes", "Copies of adapters in memory."),
    ("quern_http_connections", "Open connections to the public listener."),
    ("quern_build_info", "1, with the version and the engine as labels."),
];

/// vLLM's counters that ours stand for, both without labels of their own.
const ALIASES: &[(&str, &str)] = &[
    ("vllm:prompt_tokens_total", "quern_prompt_tokens_total"),
    ("vllm:generation_tokens_total", "quern_generated_tokens_total"),
    ("vllm:num_preemptions_total", "quern_preemptions_total"),
    ("vllm:prefix_cache_queries_total", "quern_prefix_cache_query_tokens_total"),
    ("vllm:prefix_cache_hits_total", "quern_prefix_cache_hit_tokens_total"),
];

/// Tokens in what gateways call a block. Our cache has no blocks, so the size is
/// free: small, since they round prefixes down to it.
const BLOCK_TOKENS: usize = 16;

/// How often the exporter tidies its histograms.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the recorder, with the buckets of every histogram.
fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for (name, _, buckets, _) in HISTOGRAMS {
        let matcher = Matcher::Full((*name).to_owned());
        builder = builder.set_buckets_for_metric(matcher, buckets).expect("no list of buckets is empty");
    }
    builder.build_recorder()
}

/// Starts measuring, once for the process.
///
/// # Errors
/// When something else measures already.
pub fn install(
    engine: &'static str,
) -> Result<PrometheusHandle, metrics::SetRecorderError<PrometheusRecorder>> {
    let recorder = recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe(engine);
    Ok(handle)
}

fn describe(engine: &'static str) {
    for (name, unit, _, text) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *text);
    }
    for (name, text) in COUNTERS {
        describe_counter!(*name, Unit::Count, *text);
    }
    for (name, text) in GAUGES {
        describe_gauge!(*name, Unit::Count, *text);
    }
    gauge!("quern_build_info", "version" => env!("CARGO_PKG_VERSION"), "engine" => engine).set(1.0);
}

/// Sets what is known at any moment and worth knowing when somebody asks: what
/// all workers of a model hold together.
pub fn set_load(load: &Load) {
    gauge!("quern_requests_queued").set(load.queued as f64);
    gauge!("quern_sequences_waiting").set(load.waiting as f64);
    gauge!("quern_sequences_running").set(load.running as f64);
    gauge!("quern_kv_used_tokens").set(load.kv_used as f64);
    gauge!("quern_kv_capacity_tokens").set(load.kv_capacity as f64);
}

/// As [`set_load`]: the workers that there are, and that there should be.
pub fn set_workers(status: &Status) {
    gauge!("quern_workers_desired").set(f64::from(status.wish.desired));
    gauge!("quern_workers", "state" => "ready").set(f64::from(status.ready));
    gauge!("quern_workers", "state" => "starting").set(f64::from(status.starting));
    gauge!("quern_workers", "state" => "draining").set(f64::from(status.draining));
}

/// As [`set_load`]: the adapters that there are, and where.
pub fn set_adapters(registry: &Registry, in_work: &InWork) {
    gauge!("quern_adapters_registered").set(registry.num_served() as f64);
    gauge!("quern_adapters_resident").set(in_work.num_resident as f64);
    gauge!("quern_adapter_memory_bytes").set(registry.memory_bytes() as f64);
}

/// What the names that are made for vLLM tell.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The model's id.
    pub model_id: &'a str,
    /// What its workers hold now.
    pub load: Load,
    /// The adapters that they have to do with.
    pub adapters: &'a InWork,
    /// Adapters that one of them holds at once.
    pub max_adapters: usize,
}

/// Everything as Prometheus reads it. `served` adds the names that are made for vLLM.
#[must_use]
pub fn render(handle: &PrometheusHandle, served: Option<Served<'_>>) -> String {
    let mut text = handle.render();
    if let Some(served) = served {
        let aliases = aliases(&text, &served);
        text.push_str(&aliases);
    }
    text
}

fn aliases(ours: &str, served: &Served<'_>) -> String {
    let Served { model_id, load, adapters, max_adapters } = served;
    let mut out = String::new();
    let model = model_id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = format!("model_name=\"{model}\",engine=\"0\"");
    let mut put = |name: &str, kind: &str, more: &str, value: f64| {
        if !out.contains(&format!("# TYPE {name} ")) {
            writeln!(out, "# TYPE {name} {kind}").expect("a string takes all");
        }
        let comma = if more.is_empty() { "" } else { "," };
        writeln!(out, "{name}{{{labels}{comma}{more}}} {value}").expect("a string takes all");
    };
    put("vllm:num_requests_running", "gauge", "", load.running as f64);
    // A request is queued until it starts, also once its sequences wait; paused ones only wait.
    put("vllm:num_requests_waiting", "gauge", "", load.queued.max(load.waiting) as f64);
    // What live requests hold: a cached prefix gives way when room is needed.
    let used = load.kv_live as f64 / load.kv_capacity.max(1) as f64;
    put("vllm:kv_cache_usage_perc", "gauge", "", used);
    let blocks = load.kv_capacity / BLOCK_TOKENS;
    let cache = format!("block_size=\"{BLOCK_TOKENS}\",num_gpu_blocks=\"{blocks}\"");
    put("vllm:cache_config_info", "gauge", &cache, 1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Names of adapters have nothing in them that would have to be escaped.
    let (running, waiting) = (adapters.running.join(","), adapters.waiting.join(","));
    let adapters = format!(
        "max_lora=\"{max_adapters}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\""
    );
    put("vllm:lora_requests_info", "gauge", &adapters, now as f64);
    for (theirs, name) in ALIASES {
        put(theirs, "counter", "", sum(ours, name));
    }
    for reason in ["stop", "length", "tool_calls", "abort", "error"] {
        let name = if reason == "abort" { "cancelled" } else { reason };
        let value = labelled(ours, "quern_requests_finished_total", &format!("reason=\"{name}\""));
        put("vllm:request_success_total", "counter", &format!("finished_reason=\"{reason}\""), value);
    }
    out
}

/// The sum of a metric's samples, whatever their labels. The exporter keeps no
/// other way to read a value than its own text.
fn sum(text: &str, name: &str) -> f64 {
    samples(text, name).fold(0.0, |sum, (_, value)| sum + value)
}

fn labelled(text: &str, name: &str, label: &str) -> f64 {
    samples(text, name).filter(|(labels, _)| labels.contains(label)).fold(0.0, |sum, (_, value)| sum + value)
}

fn samples<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = (&'t str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use metrics::{counter, histogram, with_local_recorder};

    use super::*;

    fn rendered(record: impl FnOnce(), load: Load) -> String {
        let recorder = recorder();
        let handle = recorder.handle();
        with_local_recorder(&recorder, || {
            describe("fake");
            record();
        });
        handle.run_upkeep();
        let adapters = InWork { running: vec!["a".into(), "b".into()], ..InWork::default() };
        let served = Served { model_id: "a \"model\"", load, adapters: &adapters, max_adapters: 8 };
        render(&handle, Some(served))
    }

    #[track_caller]
    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }

    #[test]
    fn histograms_begin_at_a_millisecond() {
        let text = rendered(
            || {
                histogram!("quern_time_to_first_token_seconds").record(0.0015);
                histogram!("quern_step_rows").record(3.0);
                histogram!("quern_request_duration_seconds", "endpoint" => "models").record(61.0);
            },
            Load::default(),
        );
        check(&text, "# TYPE quern_time_to_first_token_seconds histogram");
        check(&text, "quern_time_to_first_token_seconds_bucket{le=\"0.001\"} 0");
        check(&text, "quern_time_to_first_token_seconds_bucket{le=\"0.002\"} 1");
        check(&text, "quern_step_rows_bucket{le=\"2\"} 0");
        check(&text, "quern_step_rows_bucket{le=\"4\"} 1");
        check(&text, "quern_request_duration_seconds_bucket{endpoint=\"models\",le=\"60\"} 0");
        check(&text, "quern_request_duration_seconds_bucket{endpoint=\"models\",le=\"+Inf\"} 1");
    }

    #[test]
    fn gateways_find_the_names_that_they_know() {
        let load = Load { queued: 2, waiting: 3, running: 4, kv_used: 90, kv_live: 80, kv_capacity: 160 };
        let record = || {
            counter!("quern_prompt_tokens_total").increment(10);
            counter!("quern_generated_tokens_total").increment(20);
            counter!("quern_preemptions_total", "kind" => "host").increment(1);
            counter!("quern_preemptions_total", "kind" => "recompute").increment(2);
            counter!("quern_requests_finished_total", "reason" => "stop").increment(5);
            counter!("quern_requests_finished_total", "reason" => "cancelled").increment(6);
        };
        let text = rendered(record, load);
        let with = |name: &str, more: &str, value: &str| {
            check(&text, &format!("{name}{{model_name=\"a \\\"model\\\"\",engine=\"0\"{more}}} {value}"));
        };
        with("vllm:num_requests_running", "", "4");
        with("vllm:num_requests_waiting", "", "3");
        with("vllm:kv_cache_usage_perc", "", "0.5");
        with("vllm:cache_config_info", ",block_size=\"16\",num_gpu_blocks=\"10\"", "1");
        with("vllm:prompt_tokens_total", "", "10");
        with("vllm:generation_tokens_total", "", "20");
        with("vllm:num_preemptions_total", "", "3");
        with("vllm:request_success_total", ",finished_reason=\"stop\"", "5");
        with("vllm:request_success_total", ",finished_reason=\"abort\"", "6");
        with("vllm:request_success_total", ",finished_reason=\"length\"", "0");
        with("vllm:prefix_cache_hits_total", "", "0");
        assert!(
            text.contains("max_lora=\"8\",running_lora_adapters=\"a,b\",waiting_lora_adapters=\"\""),
            "{text}"
        );
        assert_eq!(text.matches("# TYPE vllm:request_success_total counter").count(), 1);
    }

    #[test]
    fn the_build_is_named_and_everything_described() {
        let text = rendered(|| counter!("quern_generated_tokens_total").increment(1), Load::default());
        let version = env!("CARGO_PKG_VERSION");
        assert!(
            text.contains("quern_build_info{") && text.contains(&format!("version=\"{version}\"")),
            "{text}"
        );
        check(&text, "# HELP quern_generated_tokens_total Tokens of answers.");
    }
}
