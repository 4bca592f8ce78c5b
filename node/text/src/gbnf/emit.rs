//! Writes a grammar over lexemes as Lark.

use super::charset::CharSet;
use super::lexemes::{Grammar, Part};
use super::{Node, Rules};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// `start`, then a rule `rN` for every rule that is not within a lexeme, a
/// terminal `LN` for every lexeme, and a terminal `TN` for every rule within one.
pub(super) fn to_lark(rules: &Rules, grammar: &Grammar) -> String {
    let mut writer = Writer { out: String::new(), terminals: BTreeSet::new() };
    writer.out.push_str("start: ");
    writer.part(&grammar.start);
    for (number, body) in &grammar.rules {
        let _ = write!(writer.out, "\nr{number}: ");
        writer.part(body);
    }
    for (number, node) in grammar.lexemes.iter().enumerate() {
        let _ = write!(writer.out, "\nL{number}: ");
        writer.node(node);
        // Where nothing matches, the rules leave the lexeme out.
        if !matches!(node, Node::Chars(_)) {
            writer.out.push_str(" & /(?s:.+)/");
        }
    }
    let mut written = BTreeSet::new();
    while let Some(number) = writer.terminals.difference(&written).next().copied() {
        written.insert(number);
        let _ = write!(writer.out, "\nT{number}: ");
        writer.node(&rules.bodies[number]);
    }
    writer.out.push('\n');
    writer.out
}

struct Writer {
    out: String,
    /// Rules within lexemes that were met.
    terminals: BTreeSet<usize>,
}

impl Writer {
    fn part(&mut self, part: &Part) {
        match part {
            Part::Lexeme(number) => {
                let _ = write!(self.out, "L{number}");
            }
            Part::Rule(number) => {
                let _ = write!(self.out, "r{number}");
            }
            Part::Seq(items) if items.is_empty() => self.out.push_str("\"\""),
            Part::Seq(items) => self.list(items, " ", Self::part),
            Part::Alt(items) => self.list(items, " | ", Self::part),
            Part::Repeat(inner, min, max) => self.repeat(inner.as_ref(), *min, *max, Self::part),
        }
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Chars(set) => {
                self.out.push('/');
                class(set, &mut self.out);
                self.out.push('/');
            }
            Node::Rule(number) => {
                self.terminals.insert(*number);
                let _ = write!(self.out, "T{number}");
            }
            Node::Seq(items) if items.is_empty() => self.out.push_str("\"\""),
            Node::Seq(items) => self.list(items, " ", Self::node),
            Node::Alt(items) => self.list(items, " | ", Self::node),
            Node::Repeat(inner, min, max) => self.repeat(inner.as_ref(), *min, *max, Self::node),
        }
    }

    fn list<T>(&mut self, items: &[T], between: &str, each: fn(&mut Self, &T)) {
        self.out.push('(');
        for (idx, item) in items.iter().enumerate() {
            if idx > 0 {
                self.out.push_str(between);
            }
            each(self, item);
        }
        self.out.push(')');
    }

    fn repeat<T>(&mut self, inner: &T, min: u32, max: Option<u32>, each: fn(&mut Self, &T)) {
        let once = |writer: &mut Self, how: &str| {
            writer.out.push('(');
            each(writer, inner);
            let _ = write!(writer.out, "){how}");
        };
        match (min, max) {
            (_, Some(0)) => self.out.push_str("\"\""),
            (0, None) => once(self, "*"),
            (1, None) => once(self, "+"),
            (0, Some(1)) => once(self, "?"),
            (min, Some(max)) => once(self, &format!("{{{min},{max}}}")),
            (min, None) => {
                once(self, &format!("{{{min},{min}}}"));
                self.out.push(' ');
                once(self, "*");
            }
        }
    }
}

/// A set of characters as a regular expression.
fn class(set: &CharSet, out: &mut String) {
    if *set == CharSet::all() {
        out.push_str("(?s:.)");
        return;
    }
    out.push('[');
    for &(first, last) in set.ranges() {
        // No text holds surrogates, and a regular expression cannot name them.
        let first = if SURROGATES.contains(&first) { 0xE000 } else { first };
        let last = if SURROGATES.contains(&last) { 0xD7FF } else { last };
        if first <= last {
            char(first, out);
            out.push('-');
            char(last, out);
        }
    }
    out.push(']');
}

const SURROGATES: RangeInclusive<u32> = 0xD800..=0xDFFF;

fn char(code: u32, out: &mut String) {
    let plain = char::from_u32(code).filter(char::is_ascii_alphanumeric);
    match plain {
        Some(c) => out.push(c),
        None => {
            let _ = write!(out, "\\x{{{code:X}}}");
        }
    }
}
