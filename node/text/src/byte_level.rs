//! The byte-level alphabet: every byte has a printable character of its own,
//! so that a byte-pair vocabulary can be kept as text.
//!
//! Printable ASCII and most of Latin-1 stand for themselves; the other bytes,
//! in ascending order, take the characters from U+0100 on.

use std::sync::LazyLock;

/// The character that stands for each byte.
pub(crate) static BYTE_TO_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if stands_for_itself(byte) {
            char::from(byte)
        } else {
            let stand_in = char::from_u32(next).expect("U+0100 to U+0143 are characters");
            next += 1;
            stand_in
        }
    })
});

/// The byte that each character below U+0200 stands for.
static CHAR_TO_BYTE: LazyLock<[Option<u8>; 512]> = LazyLock::new(|| {
    let mut table = [None; 512];
    for (byte, c) in BYTE_TO_CHAR.iter().enumerate() {
        table[*c as usize] = Some(byte as u8);
    }
    table
});

fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Writes `text` in the byte-level alphabet into `out`, which is emptied first.
pub(crate) fn encode_into(text: &str, out: &mut String) {
    out.clear();
    out.extend(text.bytes().map(|byte| BYTE_TO_CHAR[usize::from(byte)]));
}

/// The bytes that a token written in the byte-level alphabet stands for. A
/// character outside of the alphabet gives its own UTF-8 bytes, so that a
/// vocabulary with plain text in it loses nothing.
pub(crate) fn decode_into(token: &str, out: &mut Vec<u8>) {
    for c in token.chars() {
        match CHAR_TO_BYTE.get(c as usize).copied().flatten() {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_round_trip() {
        let alphabet: String = BYTE_TO_CHAR.iter().collect();
        let mut bytes = Vec::new();
        decode_into(&alphabet, &mut bytes);
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn the_space_and_the_newline_look_as_they_do_in_published_vocabularies() {
        let mut out = String::new();
        encode_into(" \n", &mut out);
        assert_eq!(out, "ĠĊ");
    }
}
