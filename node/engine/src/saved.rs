//! The bytes of a saved sequence: a header before the engine's own state.
//!
//! Engines trust the bytes that they restore from; the header makes sure that
//! they are whole, unchanged, and of this very model and format.
//!
//! Half-open ranges: magic 0..8, fingerprint 8..16, tokens 16..20, reserved
//! 20..24, checksum 24..32, state 32.. (all little-endian).

const MAGIC: [u8; 8] = *b"quernkv1";
const HEADER_LEN: usize = 32;

/// Room for the header, to append the state to.
#[must_use]
pub fn begin() -> Vec<u8> {
    vec![0; HEADER_LEN]
}

/// Fills the header in once the state is behind it.
///
/// # Panics
/// When the bytes did not begin with [`begin`].
pub fn finish(bytes: &mut [u8], fingerprint: u64, num_tokens: u32) {
    let checksum = checksum(&bytes[HEADER_LEN..]);
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&fingerprint.to_le_bytes());
    bytes[16..20].copy_from_slice(&num_tokens.to_le_bytes());
    bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
}

/// Tokens in a saved sequence and the engine's state.
///
/// # Errors
/// What is wrong with the bytes.
pub fn open(bytes: &[u8], fingerprint: u64) -> Result<(u32, &[u8]), &'static str> {
    if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC {
        return Err("the bytes are no saved sequence");
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are a word"));
    if word(8) != fingerprint {
        return Err("the sequence was saved from another model or in another format");
    }
    let state = &bytes[HEADER_LEN..];
    if word(24) != checksum(state) {
        return Err("the saved sequence is damaged");
    }
    let num_tokens = u32::try_from(word(16)).map_err(|_| "the saved sequence is damaged")?;
    Ok((num_tokens, state))
}

/// What makes states of two engines the same format.
#[must_use]
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(0, |hash, part| mix(hash ^ checksum(part)))
}

/// A checksum against accidents, eight bytes at a time: states are large.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = words.iter().fold(bytes.len() as u64, |hash, word| mix(hash ^ u64::from_le_bytes(*word)));
    for byte in rest {
        hash = mix(hash ^ u64::from(*byte));
    }
    hash
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ (word >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_was_saved() {
        let mut bytes = begin();
        bytes.extend(0..100u8);
        finish(&mut bytes, 7, 12);
        assert_eq!(open(&bytes, 7), Ok((12, &bytes[HEADER_LEN..])));
        assert!(open(&bytes, 8).is_err());
        assert!(open(&bytes[..bytes.len() - 1], 7).is_err());
        assert!(open(&bytes[..10], 7).is_err());
        for idx in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[idx] ^= 1;
            assert!(open(&damaged, 7) != Ok((12, &bytes[HEADER_LEN..])), "byte {idx}");
        }
    }
}
