//! The result does not depend on where an answer is cut; without calls, the
//! text is the answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quern_text::{ToolCallParser, ToolDelta};

fn run<'a>(pieces: impl Iterator<Item = &'a str>) -> (String, usize) {
    let mut parser = ToolCallParser::new();
    let mut deltas = Vec::new();
    for piece in pieces {
        deltas.extend(parser.push(piece));
    }
    deltas.extend(parser.finish());
    let texts = deltas.iter().map(|delta| match delta {
        ToolDelta::Text(text) => text.as_str(),
        _ => "",
    });
    (texts.collect(), parser.num_calls())
}

fuzz_target!(|text: &str| {
    let whole = run(std::iter::once(text));
    let cut = run(text.split_inclusive(|c: char| !c.is_ascii_alphabetic()));
    assert_eq!(whole, cut);
    if whole.1 == 0 {
        assert_eq!(whole.0, text);
    }
});
