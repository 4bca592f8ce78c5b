//! llama.cpp's dialect of BNF, converted to llguidance's dialect of Lark.
//!
//! GBNF works on characters; llguidance reads the longest lexeme first and
//! parses lexemes. So a conversion must choose lexemes for which the two agree:
//! `parse` reads the grammar, `lexemes` makes lexemes of its largest regular
//! parts and breaks up those where the longest match could be the wrong one,
//! `emit` writes the result. A grammar without recursion is one lexeme.

mod charset;
mod emit;
mod follow;
mod lexemes;
mod parse;

#[cfg(test)]
mod tests;

use charset::CharSet;

/// Size in bytes of a GBNF grammar; the analysis is not linear in it.
const MAX_BYTES: usize = 128 << 10;

/// Why a GBNF grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub struct GbnfError {
    /// Line of the fault, from 1.
    pub line: usize,
    /// Column of the fault in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub why: String,
}

/// A part of a grammar's right-hand side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    /// One character of a set.
    Chars(CharSet),
    /// All in order; the empty text if there are none.
    Seq(Vec<Node>),
    /// One of them.
    Alt(Vec<Node>),
    /// `min` to `max` times; without bound if `max` is `None`.
    Repeat(Box<Node>, u32, Option<u32>),
    /// What the rule with this number says.
    Rule(usize),
}

/// A grammar; names have become numbers.
#[derive(Debug)]
struct Rules {
    bodies: Vec<Node>,
    root: usize,
}

/// Converts a GBNF grammar to llguidance's dialect of Lark.
///
/// # Errors
/// [`GbnfError`] with the place of the first fault.
pub fn to_lark(text: &str) -> Result<String, GbnfError> {
    if text.len() > MAX_BYTES {
        return Err(GbnfError {
            line: 1,
            column: 1,
            why: format!("the grammar has {} bytes; {MAX_BYTES} are allowed", text.len()),
        });
    }
    let rules = parse::parse(text)?;
    let grammar = lexemes::choose(&rules).map_err(|why| GbnfError { line: 1, column: 1, why })?;
    Ok(emit::to_lark(&rules, &grammar))
}
