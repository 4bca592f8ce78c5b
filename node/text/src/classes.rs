//! The Unicode classes that pre-tokenizers ask about, one table look-up each.
//!
//! The classes are those of Unicode 15.1 whatever the Unicode version of a
//! dependency: llama.cpp's tables are of that version, and a character that is
//! a letter to one side and unassigned to the other would split differently.

use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

/// A character is a letter (general category L).
pub(crate) const LETTER: u8 = 1;
/// A character is a number (general category N).
pub(crate) const NUMBER: u8 = 2;
/// A character is a combining mark (general category M).
pub(crate) const MARK: u8 = 4;
/// A character is white space (the property White_Space).
pub(crate) const SPACE: u8 = 8;

/// One byte of flags for every code point.
static TABLE: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut table = vec![0; 0x11_0000].into_boxed_slice();
    for (flag, name) in [(LETTER, "L"), (NUMBER, "N"), (MARK, "M")] {
        set_category(&mut table, flag, name);
    }
    for code in 0..=0x3000 {
        // White space has been stable since Unicode 6.3, so the language's own
        // method gives the class; U+3000 is its last member.
        if char::from_u32(code).is_some_and(char::is_whitespace) {
            table[code as usize] |= SPACE;
        }
    }
    table
});

fn set_category(table: &mut [u8], flag: u8, name: &str) {
    let pattern = format!(r"[\p{{{name}}}&&\p{{Age=15.1}}]");
    let hir = regex_syntax::parse(&pattern).expect("the pattern is fixed and valid");
    let HirKind::Class(Class::Unicode(class)) = hir.into_kind() else {
        unreachable!("a bracketed class parses to a Unicode class");
    };
    for range in class.ranges() {
        for entry in &mut table[range.start() as usize..=range.end() as usize] {
            *entry |= flag;
        }
    }
}

/// The classes of `c`, as flags; 0 for everything that is none of them.
pub(crate) fn of(c: char) -> u8 {
    TABLE[c as usize]
}

/// Builds the table now, so that the first request does not wait for it.
pub(crate) fn warm_up() {
    LazyLock::force(&TABLE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_are_those_of_unicode_15_1() {
        let count = |flag| TABLE.iter().filter(|&&flags| flags & flag != 0).count();
        assert_eq!(count(LETTER), 136_726);
        assert_eq!(count(NUMBER), 1_831);
        assert_eq!(count(MARK), 2_450);
        assert_eq!(count(SPACE), 25);
    }

    #[test]
    fn alphabetic_is_not_the_same_as_letter() {
        // A circled letter and a combining vowel sign are alphabetic, yet no letters.
        assert!('Ⓐ'.is_alphabetic() && of('Ⓐ') & LETTER == 0);
        assert!('\u{0345}'.is_alphabetic() && of('\u{0345}') == MARK);
        assert_eq!(of('Ⅷ'), NUMBER);
        assert_eq!(of('\u{85}'), SPACE);
        assert_eq!(of('!'), 0);
    }
}
