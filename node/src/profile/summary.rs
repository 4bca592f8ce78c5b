//! Operations added up by their kinds, as JSON and as a table for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use quern_llama::{ModelInfo, Operation};
use serde::Serialize;

use super::pass::{Phase, Work, sum};

/// Layout of the JSON. It rises when a reader of an earlier one would misunderstand it.
const LAYOUT: u32 = 1;

/// What a profile says.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    layout: u32,
    model: String,
    /// Kind, size and format in a few words.
    description: String,
    llama_cpp_version: String,
    threads: u32,
    threads_prefill: u32,
    prefill_tokens: u32,
    decode_steps: u32,
    phases: Vec<PhaseSummary>,
}

/// One of `prefill` and `decode`.
#[derive(Debug, Serialize)]
struct PhaseSummary {
    phase: &'static str,
    num_steps: usize,
    num_rows: usize,
    /// As a node computes it: before, and behind the timed one.
    untimed_ms: [f64; 2],
    /// With every operation computed alone.
    timed_ms: f64,
    /// The timed one over the mean of the others, less 1.
    overhead: f64,
    num_operations: usize,
    /// The sum of all operations: less than `timed_ms`, which also has what lies between them.
    operations_ms: f64,
    /// Largest first.
    kinds: Vec<Kind>,
}

/// Operations of one kind.
#[derive(Debug, Serialize)]
struct Kind {
    /// ggml's name.
    op: String,
    /// Of products: with which of a layer's matrices, or `head`.
    part: Option<String>,
    /// Formats of the weights that they read.
    weight_types: Vec<String>,
    count: usize,
    total_ms: f64,
    /// Of the sum of all operations, from 0 to 1.
    share: f64,
    /// Of products.
    gflop_per_s: Option<f64>,
    /// Bytes of the matrices of products, each once an operation.
    weight_gb_per_s: Option<f64>,
}

impl Summary {
    pub(super) fn new(model: &str, info: &ModelInfo, work: Work, phases: &[Phase]) -> Summary {
        Summary {
            layout: LAYOUT,
            model: model.to_owned(),
            description: info.description.clone(),
            llama_cpp_version: info.llama_cpp_version.clone(),
            threads: info.threads,
            threads_prefill: info.threads_prefill,
            prefill_tokens: work.prefill_tokens,
            decode_steps: work.decode_steps,
            phases: phases.iter().map(PhaseSummary::new).collect(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("summaries have only text keys")
    }
}

impl PhaseSummary {
    fn new(phase: &Phase) -> PhaseSummary {
        let timed_ms = ms(sum(&phase.steps));
        let untimed_ms = phase.untimed.map(ms);
        let all: Duration = phase.operations.iter().map(Operation::took).sum();
        PhaseSummary {
            phase: phase.name,
            num_steps: phase.steps.len(),
            num_rows: phase.steps.iter().map(|step| step.num_rows).sum(),
            untimed_ms,
            timed_ms,
            overhead: ratio(timed_ms, f64::midpoint(untimed_ms[0], untimed_ms[1]))
                .map_or(0.0, |over| over - 1.0),
            num_operations: phase.operations.len(),
            operations_ms: ms(all),
            kinds: kinds(&phase.operations, all),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// None where there is nothing to divide by.
fn ratio(of: f64, over: f64) -> Option<f64> {
    (over > 0.0).then(|| of / over)
}

#[derive(Default)]
struct Sum<'a> {
    count: usize,
    took: Duration,
    flop: u64,
    /// Of matrices that are read whole.
    weight_bytes: u64,
    weight_types: BTreeSet<&'a str>,
}

fn kinds(operations: &[Operation], all: Duration) -> Vec<Kind> {
    let mut sums: BTreeMap<(&str, Option<&str>), Sum<'_>> = BTreeMap::new();
    for operation in operations {
        let sum = sums.entry((operation.op.as_str(), operation.part())).or_default();
        sum.count += 1;
        sum.took += operation.took();
        sum.flop += operation.flop.unwrap_or(0);
        // Only a plain product is sure to read all of its weight.
        let is_read = operation.op == "MUL_MAT";
        sum.weight_bytes +=
            operation.weight.as_ref().filter(|_| is_read).map_or(0, |weight| weight.size_bytes);
        sum.weight_types.extend(operation.weight.as_ref().map(|weight| weight.kind.as_str()));
    }
    let mut kinds: Vec<Kind> = sums
        .into_iter()
        .map(|((op, part), sum)| {
            let seconds = sum.took.as_secs_f64();
            let per_s = |amount: u64| ratio(amount as f64 / 1e9, seconds).filter(|_| amount > 0);
            Kind {
                op: op.to_owned(),
                part: part.map(str::to_owned),
                weight_types: sum.weight_types.into_iter().map(str::to_owned).collect(),
                count: sum.count,
                total_ms: ms(sum.took),
                share: ratio(seconds, all.as_secs_f64()).unwrap_or(0.0),
                gflop_per_s: per_s(sum.flop),
                weight_gb_per_s: per_s(sum.weight_bytes),
            }
        })
        .collect();
    kinds.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
    kinds
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { model, description, llama_cpp_version, threads, threads_prefill, .. } = self;
        writeln!(f, "{model}: {description}, llama.cpp {llama_cpp_version}")?;
        writeln!(f, "{threads_prefill} threads in prefill, {threads} in decode")?;
        for phase in &self.phases {
            writeln!(f)?;
            phase.fmt(f)?;
        }
        write!(
            f,
            "\nEach operation was computed alone: read shares, not speeds. GFLOP/s are of products of matrices, GB/s of \
             their weights."
        )
    }
}

impl fmt::Display for PhaseSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self.untimed_ms;
        let cost_us =
            (self.timed_ms - f64::midpoint(before, after)) * 1e3 / self.num_operations.max(1) as f64;
        writeln!(
            f,
            "{}: {} tokens in {} steps; {:.2} ms with {} operations one at a time, {before:.2} and {after:.2} ms without \
             ({:+.1} %, {cost_us:.1} µs an operation)",
            self.phase,
            self.num_rows,
            self.num_steps,
            self.timed_ms,
            self.num_operations,
            self.overhead * 100.0
        )?;
        writeln!(
            f,
            "  {:22} {:14} {:>6} {:>10} {:>7} {:>8} {:>6}",
            "operation", "weights", "count", "ms", "share", "GFLOP/s", "GB/s"
        )?;
        for kind in &self.kinds {
            let name = match &kind.part {
                Some(part) => format!("{} {part}", kind.op),
                None => kind.op.clone(),
            };
            let weights = kind.weight_types.join(" ");
            let rate = |rate: Option<f64>| rate.map_or_else(String::new, |rate| format!("{rate:.1}"));
            let line = format!(
                "  {name:22} {weights:14} {:6} {:10.3} {:5.1} % {:>8} {:>6}",
                kind.count,
                kind.total_ms,
                kind.share * 100.0,
                rate(kind.gflop_per_s),
                rate(kind.weight_gb_per_s)
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use quern_llama::Weight;

    use super::super::pass::Step;
    use super::*;

    /// Two products with one matrix, of 3 and 1 ms, and a sum of 4 ms, one behind the other in a step of 10 ms that
    /// begins with this instant.
    pub(in super::super) fn sample(begin: Instant) -> Phase {
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let weight = |name: &str, kind: &str| Weight {
            name: name.to_owned(),
            kind: kind.to_owned(),
            shape: [512, 256, 1, 1],
            size_bytes: 2_000_000,
        };
        let operation = |op: &str, weight: Weight, flop, (began, ended): (u64, u64)| Operation {
            op: op.to_owned(),
            tensor: "x-1".to_owned(),
            shape: [256, 9, 1, 1],
            memory: "CPU".to_owned(),
            weight: Some(weight),
            flop,
            began: at(began),
            ended: at(ended),
        };
        Phase {
            name: "prefill",
            untimed: [Duration::from_millis(7), Duration::from_millis(9)],
            steps: vec![Step { num_rows: 9, began: begin, ended: at(10) }],
            operations: vec![
                operation("MUL_MAT", weight("blk.1.ffn_up.weight", "q4_K"), Some(6_000_000), (1, 4)),
                operation("ADD", weight("blk.1.attn_q.bias", "f32"), None, (4, 8)),
                operation("MUL_MAT", weight("blk.2.ffn_up.weight", "q6_K"), Some(2_000_000), (8, 9)),
            ],
        }
    }

    #[test]
    fn kinds_are_added_up() {
        let summary = PhaseSummary::new(&sample(Instant::now()));
        assert_eq!((summary.num_steps, summary.num_rows, summary.num_operations), (1, 9, 3));
        assert!((summary.timed_ms - 10.0).abs() < 1e-9 && (summary.operations_ms - 8.0).abs() < 1e-9);
        assert!((summary.overhead - 0.25).abs() < 1e-9, "10 ms over the mean of 7 and 9");
        let [first, second] = &summary.kinds[..] else { panic!("two kinds: {:?}", summary.kinds) };
        let (product, addition) = if first.part.is_some() { (first, second) } else { (second, first) };
        assert_eq!((product.op.as_str(), product.part.as_deref()), ("MUL_MAT", Some("ffn_up")));
        assert_eq!(product.weight_types, ["q4_K", "q6_K"]);
        assert_eq!(product.count, 2);
        let is =
            |value: Option<f64>, expected: f64| value.is_some_and(|value| (value - expected).abs() < 1e-9);
        // 8 million operations and 4 million bytes in 4 ms.
        assert!(is(product.gflop_per_s, 2.0) && is(product.weight_gb_per_s, 1.0), "{product:?}");
        assert!(is(Some(product.share), 0.5) && is(Some(addition.share), 0.5));
        assert_eq!((addition.gflop_per_s, addition.weight_gb_per_s), (None, None));
    }

    #[test]
    fn people_read_the_same() {
        let text = PhaseSummary::new(&sample(Instant::now())).to_string();
        assert!(
            text.contains("10.00 ms with 3 operations one at a time, 7.00 and 9.00 ms without (+25.0 %, 666.7 µs an operation)"),
            "{text}"
        );
        assert!(
            text.contains("MUL_MAT ffn_up") && text.contains("q4_K q6_K") && text.contains("50.0 %"),
            "{text}"
        );
    }
}
