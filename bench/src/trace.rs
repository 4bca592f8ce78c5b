//! Recorded arrivals to replay: a CSV file with a line a request.
//!
//! Columns: `offset_ms` from the trace's beginning, and, if they are there, `prompt_tokens`, `output_tokens` and
//! `tenant`. It knows no HTTP and sends nothing.

use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

/// Why a trace cannot be replayed.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("trace {file:?}: {source}")]
    Read {
        /// As the workload names it.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The CSV file is malformed, lacks a column, or has one that means nothing here.
    #[error("trace {file:?}: {source}")]
    Csv {
        /// As the workload names it.
        file: String,
        /// Names the line and the column.
        source: csv::Error,
    },
    /// A value cannot be used.
    #[error("trace {file:?}: line {line}, column {column:?}: {reason}")]
    Value {
        /// As the workload names it.
        file: String,
        /// One-based; the header is line 1.
        line: u64,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No request in it.
    #[error("trace {file:?}: holds no request")]
    Empty {
        /// As the workload names it.
        file: String,
    },
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// From the trace's beginning, in milliseconds.
    pub offset_ms: f64,
    /// Tokens its prompt had.
    pub prompt_tokens: Option<u32>,
    /// Tokens its answer had; the replayed request may have no more.
    pub output_tokens: Option<u32>,
    /// Who asked: the name of one of the workload's tenants.
    pub tenant: Option<String>,
}

impl Arrival {
    /// When it arrives in a replay at this speed, from the beginning.
    pub fn offset(&self, speed: f64) -> Duration {
        Duration::from_secs_f64(self.offset_ms / 1e3 / speed)
    }
}

/// A trace: at least one request, in the order of their arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The requests.
    pub arrivals: Vec<Arrival>,
}

impl Trace {
    /// Reads a trace's text; `file` is its name in messages, `is_tenant` knows the tenants' names.
    ///
    /// # Errors
    /// Names line and column of the first mistake.
    pub fn parse(file: &str, text: &str, is_tenant: impl Fn(&str) -> bool) -> Result<Self, TraceError> {
        let csv_error = |source| TraceError::Csv { file: file.to_owned(), source };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
        let header = reader.headers().map_err(csv_error)?.clone();
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(csv_error)? {
            let arrival: Arrival = record.deserialize(Some(&header)).map_err(csv_error)?;
            let line = record.position().map_or(0, csv::Position::line);
            let previous_ms = arrivals.last().map_or(0.0, |previous| previous.offset_ms);
            check(&arrival, previous_ms, &is_tenant).map_err(|(column, reason)| TraceError::Value {
                file: file.to_owned(),
                line,
                column,
                reason,
            })?;
            arrivals.push(arrival);
        }
        match arrivals.is_empty() {
            true => Err(TraceError::Empty { file: file.to_owned() }),
            false => Ok(Self { arrivals }),
        }
    }

    /// Whether it says how long prompts are.
    pub fn has_prompt_lengths(&self) -> bool {
        self.arrivals.iter().any(|arrival| arrival.prompt_tokens.is_some())
    }
}

/// The column at fault, and what is wrong with it.
fn check(
    arrival: &Arrival,
    previous_ms: f64,
    is_tenant: impl Fn(&str) -> bool,
) -> Result<(), (&'static str, String)> {
    let Arrival { offset_ms, prompt_tokens, output_tokens, tenant } = arrival;
    if !offset_ms.is_finite() || *offset_ms < previous_ms {
        let reason = format!("{offset_ms} must be a number of at least {previous_ms}, the offset before it");
        return Err(("offset_ms", reason));
    }
    for (column, tokens) in [("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)] {
        if *tokens == Some(0) {
            return Err((column, "must be at least 1, or empty".to_owned()));
        }
    }
    match tenant {
        Some(name) if !is_tenant(name) => {
            Err(("tenant", format!("{name:?} is none of the workload's [[tenants]]")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, String> {
        Trace::parse("t.csv", text, |name| name == "a").map_err(|error| error.to_string())
    }

    #[test]
    fn columns_are_found_by_name_and_all_but_one_may_be_left_out() {
        let trace = parse("tenant,offset_ms,output_tokens\na,0,16\n,12.5,\n").unwrap();
        let [first, second] = trace.arrivals.as_slice() else { panic!("two requests") };
        assert_eq!((first.tenant.as_deref(), first.output_tokens), (Some("a"), Some(16)));
        assert_eq!((second.tenant.as_deref(), second.output_tokens), (None, None));
        assert_eq!(second.offset(2.0), Duration::from_micros(6_250));
        assert!(!trace.has_prompt_lengths());
        assert_eq!(parse("offset_ms\n1\n1\n3\n").unwrap().arrivals.len(), 3);
    }

    #[test]
    fn mistakes_name_line_and_column() {
        let cases = [
            ("offset_ms\n5\n4\n", "line 3, column \"offset_ms\""),
            ("offset_ms\n-1\n", "line 2, column \"offset_ms\""),
            ("offset_ms\nNaN\n", "line 2, column \"offset_ms\""),
            ("offset_ms,prompt_tokens\n1,0\n", "line 2, column \"prompt_tokens\""),
            ("offset_ms,tenant\n1,a\n2,b\n", "line 3, column \"tenant\": \"b\""),
            ("offset_ms\n1\nsoon\n", "line: 3"),
            ("offset_ms,prompt_tokens\n1\n", "line: 2"),
            ("offset\n1\n", "unknown field `offset`"),
            ("prompt_tokens\n1\n", "missing field `offset_ms`"),
            ("offset_ms\n", "holds no request"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected) && error.contains("t.csv"), "{text:?} gave {error}");
        }
    }
}
