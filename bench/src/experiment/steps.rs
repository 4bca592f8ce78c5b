//! Steps as a node logs them, and a trace of them that Perfetto shows.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Switches of a node that logs its steps.
pub const LOG_SWITCHES: [(&str, &str); 2] =
    [("--log-format", "json"), ("--log-level", "info,quern_scheduler=trace")];

/// One step of a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// When it ended, in microseconds from midnight; a day is added when midnight goes by.
    pub ended_us: f64,
    /// How long it took.
    pub took_us: f64,
    /// Rows: a decoding sequence is one, a chunk of prefill has as many as tokens.
    pub num_rows: u64,
    /// Rows with an output.
    pub num_outputs: u64,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    rows: u64,
    outputs: u64,
    took: String,
}

/// The steps of a log in JSON lines; other lines are passed over.
pub fn read(log: &str) -> Vec<Step> {
    const DAY_US: f64 = 86_400e6;
    let mut steps: Vec<Step> = Vec::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Line>(line) else { continue };
        let (Some(at), Some(took_us)) = (of_day_us(&line.timestamp), duration_us(&line.took)) else {
            continue;
        };
        if line.message != "step" {
            continue;
        }
        let days = steps.last().map_or(0.0, |last| (last.ended_us / DAY_US).floor());
        let is_next_day = steps.last().is_some_and(|last| at + days * DAY_US < last.ended_us - DAY_US / 2.0);
        let ended_us = at + (days + f64::from(u8::from(is_next_day))) * DAY_US;
        steps.push(Step { ended_us, took_us, num_rows: line.rows, num_outputs: line.outputs });
    }
    steps
}

/// Microseconds from midnight of `2026-01-31T12:34:56.789Z`.
fn of_day_us(timestamp: &str) -> Option<f64> {
    let time = timestamp.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = time.splitn(3, ':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1e6)
}

/// Microseconds of a duration as Rust writes it: `1.5s`, `12.3ms`, `45µs`, `6ns`.
fn duration_us(text: &str) -> Option<f64> {
    let units = [("ns", 1e-3), ("µs", 1.0), ("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.trim().parse::<f64>().ok()? * factor)
}

/// The steps as a table for `quern policy fit`.
pub fn table(steps: &[Step]) -> String {
    let line = |step: &Step| format!("{},{},{:.1}\n", step.num_rows, step.num_outputs, step.took_us);
    "rows,outputs,took_us\n".to_owned() + &steps.iter().map(line).collect::<String>()
}

/// The node's steps in a trace.
const STEPS_PROCESS: u32 = 1;
/// Single operations in a trace. They share no clock with the steps.
pub const OPERATIONS_PROCESS: u32 = 2;

#[derive(Serialize)]
struct Trace {
    #[serde(rename = "traceEvents")]
    events: Vec<Value>,
}

#[derive(Serialize)]
struct Event {
    name: String,
    ph: &'static str,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: u32,
    args: Rows,
}

#[derive(Serialize)]
struct Rows {
    rows: u64,
    outputs: u64,
}

/// The steps as a trace in Chrome's format, which Perfetto opens, and the events of other processes behind them. Times
/// count from the first step's beginning.
pub fn trace(steps: &[Step], others: Vec<Value>) -> String {
    let begin = steps.first().map_or(0.0, |first| first.ended_us - first.took_us);
    let event = |step: &Step| Event {
        name: name_of(step),
        ph: "X",
        ts: step.ended_us - step.took_us - begin,
        dur: step.took_us,
        pid: STEPS_PROCESS,
        tid: 1,
        args: Rows { rows: step.num_rows, outputs: step.num_outputs },
    };
    let json = |event: Event| serde_json::to_value(event).expect("numbers and texts are JSON");
    let name = json!({"name": "process_name", "ph": "M", "pid": STEPS_PROCESS, "args": {"name": "the node's steps"}});
    let events = steps.iter().map(|step| json(event(step))).chain([name]).chain(others).collect();
    serde_json::to_string(&Trace { events }).expect("numbers and texts are JSON")
}

/// A step in which every row has an output only decodes.
fn name_of(step: &Step) -> String {
    match (step.num_rows, step.num_outputs) {
        (rows, outputs) if rows == outputs => format!("decode {rows}"),
        (rows, 0) => format!("prefill {rows}"),
        (rows, outputs) => format!("{rows} rows, {outputs} outputs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"not a line of JSON
{"timestamp":"2026-01-31T23:59:59.500000Z","level":"TRACE","message":"step","rows":64,"outputs":1,"took":"1.5s","cost":"x"}
{"timestamp":"2026-01-31T23:59:59.600000Z","level":"INFO","message":"ready"}
{"timestamp":"2026-02-01T00:00:00.250000Z","level":"TRACE","message":"step","rows":4,"outputs":4,"took":"12.5ms"}
"#;

    #[test]
    fn steps_are_found_in_a_log_across_midnight() {
        let steps = read(LOG);
        assert_eq!(steps.len(), 2);
        assert!((steps[0].took_us - 1.5e6).abs() < 1e-6 && steps[0].num_rows == 64);
        assert!((steps[1].ended_us - steps[0].ended_us - 750_000.0).abs() < 1.0);
        assert_eq!(table(&steps), "rows,outputs,took_us\n64,1,1500000.0\n4,4,12500.0\n");
    }

    #[test]
    fn a_trace_begins_at_zero_and_names_its_steps() {
        let others = vec![json!({"name": "ROPE", "ph": "X", "pid": OPERATIONS_PROCESS})];
        let trace: Value = serde_json::from_str(&trace(&read(LOG), others)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!((events[0]["ts"].as_f64(), events[0]["ph"].as_str()), (Some(0.0), Some("X")));
        assert_eq!(events[1]["name"], "decode 4");
        assert!((events[1]["ts"].as_f64().unwrap() - 2_237_500.0).abs() < 1.0);
        assert_eq!(events[2]["args"]["name"], "the node's steps");
        assert_eq!((events.len(), &events[3]["name"], &events[3]["pid"]), (4, &"ROPE".into(), &2.into()));
    }

    #[test]
    fn durations_are_read_in_every_unit() {
        let cases = [("2s", 2e6), ("3.5ms", 3500.0), ("7µs", 7.0), ("900ns", 0.9)];
        for (text, us) in cases {
            assert!((duration_us(text).unwrap() - us).abs() < 1e-9, "{text}");
        }
        assert_eq!(duration_us("soon"), None);
    }
}
