//! The report as Markdown: an overview, every section one level down with a link to its plot, and what is not there.

use std::fmt::Write as _;

use super::Report;
use crate::output::{PLOT_FILE, TABLE_FILE};

/// The whole file. Sections are taken over as they stand in their folders.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "# {}\n", cell(&report.title))?;
    writeln!(text, "Made by quern-bench {} on {}.\n", report.version, report.made)?;
    writeln!(text, "| result | date | machine | command |\n|---|---|---|---|")?;
    for section in &report.sections {
        let (title, place) = (cell(&section.title), &section.place);
        let [date, machine, command] =
            [&section.date, &section.machine, &section.command].map(|part| cell(part));
        writeln!(text, "| [{title}](<{place}/{TABLE_FILE}>) | {date} | {machine} | {command} |")?;
    }
    writeln!(text)?;
    for section in &report.sections {
        // Headings go one level down: the report has the only heading of the first level.
        for line in section.table.lines() {
            let deeper = if line.starts_with('#') { "#" } else { "" };
            writeln!(text, "{deeper}{line}")?;
        }
        if section.table.is_empty() {
            writeln!(text, "## {}", cell(&section.title))?;
        }
        for remark in &section.remarks {
            writeln!(text, "\n{remark}")?;
        }
        if section.plot.is_some() {
            writeln!(text, "\n![{}](<{}/{PLOT_FILE}>)", cell(&section.title), section.place)?;
        }
        writeln!(text)?;
    }
    write_gaps(text, report)
}

fn write_gaps(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "## What was not measured\n")?;
    for section in &report.sections {
        for what in &section.not_measured {
            writeln!(text, "- {}: {}", cell(&section.title), cell(what))?;
        }
    }
    match report.absent[..] {
        [] => Ok(()),
        _ => writeln!(text, "- Experiments without results here: {}.", report.absent.join(", ")),
    }
}

/// A piece of text that neither ends a cell nor begins anything.
fn cell(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => safe.push(' '),
            '<' => safe.push_str("&lt;"),
            '|' | '[' | ']' => safe.extend(['\\', c]),
            _ => safe.push(c),
        }
    }
    safe
}
