//! Any text is either converted or refused with the place of the fault.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = quern_text::gbnf_to_lark(text) {
        assert!(error.line >= 1 && error.column >= 1);
    }
});
