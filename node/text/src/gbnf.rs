//! llama.cpp's dialect of BNF, converted to llguidance's dialect of Lark.

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

/// Converts a grammar.
pub(crate) fn to_lark(_text: &str) -> Result<String, GbnfError> {
    Err(GbnfError { line: 1, column: 1, why: "GBNF grammars cannot be read".to_owned() })
}
