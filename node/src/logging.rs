//! Where log lines go: to standard error, for people or for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Reads a level or a filter such as `info,quern=debug`.
///
/// # Errors
/// What is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Starts logging, once for the process. A second call changes nothing.
///
/// # Errors
/// What is wrong with the filter.
pub fn init(format: LogFormat, level: &str) -> Result<(), ParseError> {
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)?).with_writer(std::io::stderr);
    let builder = builder.with_ansi(colours);
    // The only way to fail is that a subscriber is set already, by a test.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    };
    Ok(())
}
