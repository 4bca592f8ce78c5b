//! The timed phases as a trace in Chrome's format, which Perfetto opens: a track a phase, a slice a step, and in it a
//! slice an operation.

use std::time::Instant;

use quern_llama::Operation;
use serde::Serialize;

use super::pass::{Phase, Step};

/// All tracks are of one process.
const PROCESS: u32 = 1;

#[derive(Serialize)]
struct Trace<'a> {
    #[serde(rename = "displayTimeUnit")]
    unit: &'static str,
    #[serde(rename = "traceEvents")]
    events: Vec<Event<'a>>,
}

/// `ph` is `M` for names and `X` for slices; times are in microseconds.
#[derive(Serialize)]
struct Event<'a> {
    name: String,
    ph: &'static str,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    args: Details<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Name {
        name: &'a str,
    },
    Step {
        rows: usize,
    },
    Operation {
        op: &'a str,
        tensor: &'a str,
        layer: Option<u32>,
        shape: String,
        memory: &'a str,
        weight: Option<&'a str>,
        weight_type: Option<&'a str>,
        weight_shape: Option<String>,
        gflop: Option<f64>,
    },
}

/// The trace's text. Times count from the beginning of the first step.
pub(super) fn trace(phases: &[Phase]) -> Vec<u8> {
    let begin =
        phases.iter().find_map(|phase| phase.steps.first()).map_or_else(Instant::now, |step| step.began);
    let mut events = vec![named("process_name", 0, "llama.cpp, one operation at a time")];
    for (phase, track) in phases.iter().zip(1..) {
        events.push(named("thread_name", track, phase.name));
        events.extend(phase.steps.iter().map(|step| step_event(phase.name, step, track, begin)));
        events.extend(phase.operations.iter().map(|operation| operation_event(operation, track, begin)));
    }
    serde_json::to_vec(&Trace { unit: "ms", events }).expect("numbers and texts are JSON")
}

fn named<'a>(what: &str, track: u32, name: &'a str) -> Event<'a> {
    let args = Details::Name { name };
    Event { name: what.to_owned(), ph: "M", pid: PROCESS, tid: track, cat: None, ts: None, dur: None, args }
}

fn slice<'a>(name: String, track: u32, cat: &'static str, times: [f64; 2], args: Details<'a>) -> Event<'a> {
    let [began, ended] = times;
    let (ts, dur) = (Some(began), Some(ended - began));
    Event { name, ph: "X", pid: PROCESS, tid: track, cat: Some(cat), ts, dur, args }
}

fn step_event(phase: &str, step: &Step, track: u32, begin: Instant) -> Event<'static> {
    let times = [step.began, step.ended].map(|at| us(begin, at));
    slice(format!("{phase} {}", step.num_rows), track, "step", times, Details::Step { rows: step.num_rows })
}

fn operation_event(operation: &Operation, track: u32, begin: Instant) -> Event<'_> {
    let times = [operation.began, operation.ended].map(|at| us(begin, at));
    let name = match operation.part() {
        Some(part) => format!("{} {part}", operation.op),
        None => operation.op.clone(),
    };
    let weight = operation.weight.as_ref();
    let args = Details::Operation {
        op: &operation.op,
        tensor: &operation.tensor,
        layer: operation.layer(),
        shape: shape(operation.shape),
        memory: &operation.memory,
        weight: weight.map(|weight| weight.name.as_str()),
        weight_type: weight.map(|weight| weight.kind.as_str()),
        weight_shape: weight.map(|weight| shape(weight.shape)),
        gflop: operation.flop.map(|flop| flop as f64 / 1e9),
    };
    slice(name, track, "operation", times, args)
}

fn us(begin: Instant, at: Instant) -> f64 {
    at.saturating_duration_since(begin).as_nanos() as f64 / 1e3
}

/// `896x256`, without the dimensions of one element at the end.
fn shape(lens: [u64; 4]) -> String {
    let num_dims = lens.iter().rposition(|&len| len != 1).map_or(1, |last| last + 1);
    lens[..num_dims].iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::sample;
    use super::*;

    #[test]
    fn phases_are_tracks_and_operations_lie_in_steps() {
        let text = trace(&[sample(Instant::now())]);
        let trace: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
        let [process, track, step, operations @ ..] = &trace["traceEvents"].as_array().expect("events")[..]
        else {
            panic!("names and a step come first: {trace}")
        };
        assert_eq!((&process["name"], &process["ph"]), (&"process_name".into(), &"M".into()));
        assert_eq!((&track["args"]["name"], &track["tid"]), (&"prefill".into(), &1.into()));
        assert_eq!(
            (&step["name"], &step["dur"], &step["args"]["rows"]),
            (&"prefill 9".into(), &10_000.0.into(), &9.into())
        );
        let expected = serde_json::json!({
            "name": "MUL_MAT ffn_up", "ph": "X", "pid": 1, "tid": 1, "cat": "operation", "ts": 1000.0, "dur": 3000.0,
            "args": {
                "op": "MUL_MAT", "tensor": "x-1", "layer": 1, "shape": "256x9", "memory": "CPU",
                "weight": "blk.1.ffn_up.weight", "weight_type": "q4_K", "weight_shape": "512x256", "gflop": 0.006,
            },
        });
        assert_eq!(operations[0], expected);
        assert_eq!((operations.len(), &operations[1]["name"]), (3, &"ADD".into()));
    }

    #[test]
    fn shapes_end_with_their_last_dimension() {
        assert_eq!(shape([64, 1, 14, 1]), "64x1x14");
        assert_eq!(shape([1; 4]), "1");
    }
}
