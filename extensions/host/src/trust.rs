//! Whether a policy's file is the one that the operator meant.
//!
//! Two independent means: the digest of the one file that may load, and a
//! detached Ed25519 signature by somebody whose public key the operator gave.
//! Both are over the file's bytes as they lie on disk.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::settings::Trust;

/// SHA-256 of a policy's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a file is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Another file than the pinned one.
    #[error("its SHA-256 is {found}, but {pinned} is pinned")]
    OtherDigest {
        /// The file's.
        found: Digest,
        /// The operator's.
        pinned: Digest,
    },
    /// There is no signature where one is required.
    #[error("a signature is required, and there is none")]
    NoSignature,
    /// A signature is required, but no key could have made it.
    #[error("a signature is required, and no public key is configured")]
    NoKeys,
    /// Neither 64 bytes nor their Base64.
    #[error("the signature is neither 64 bytes nor their Base64")]
    Malformed,
    /// None of the keys made this signature of these bytes.
    #[error("the signature is not by a configured key, or not of this file")]
    BadSignature,
    /// A configured key is no public key.
    #[error("configured public key {index} is not an Ed25519 public key")]
    BadKey {
        /// Its place in the list.
        index: usize,
    },
}

/// Checks a file's bytes, and the detached signature that lay beside it.
///
/// # Errors
/// [`Untrusted`], with the reason.
pub fn check(bytes: &[u8], signature: Option<&[u8]>, trust: &Trust) -> Result<Digest, Untrusted> {
    let found = Digest::of(bytes);
    if let Some(pinned) = trust.sha256.map(Digest)
        && pinned != found
    {
        return Err(Untrusted::OtherDigest { found, pinned });
    }
    match signature {
        None if trust.require_signature => Err(Untrusted::NoSignature),
        _ if trust.public_keys.is_empty() && trust.require_signature => Err(Untrusted::NoKeys),
        Some(signature) if !trust.public_keys.is_empty() => {
            verify(bytes, signature, &trust.public_keys).map(|()| found)
        }
        _ => Ok(found),
    }
}

fn verify(bytes: &[u8], signature: &[u8], keys: &[[u8; 32]]) -> Result<(), Untrusted> {
    let signature = parse(signature).ok_or(Untrusted::Malformed)?;
    for (index, key) in keys.iter().enumerate() {
        let key = VerifyingKey::from_bytes(key).map_err(|_| Untrusted::BadKey { index })?;
        if key.verify_strict(bytes, &signature).is_ok() {
            return Ok(());
        }
    }
    Err(Untrusted::BadSignature)
}

fn parse(signature: &[u8]) -> Option<Signature> {
    if let Ok(raw) = <[u8; 64]>::try_from(signature) {
        return Some(Signature::from_bytes(&raw));
    }
    let raw = STANDARD.decode(signature.trim_ascii()).ok()?;
    <[u8; 64]>::try_from(raw).ok().map(|raw| Signature::from_bytes(&raw))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn signed() -> (Vec<u8>, [u8; 64], [u8; 32]) {
        let key = SigningKey::from_bytes(&[7; 32]);
        let bytes = b"a policy".to_vec();
        let signature = key.sign(&bytes).to_bytes();
        (bytes, signature, key.verifying_key().to_bytes())
    }

    #[test]
    fn a_signature_counts_raw_and_in_base64_for_any_of_the_keys() {
        let (bytes, signature, key) = signed();
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
        let trust = Trust { public_keys: vec![other, key], require_signature: true, ..Trust::default() };
        let digest = check(&bytes, Some(&signature), &trust);
        assert_eq!(digest, Ok(Digest::of(&bytes)));
        let text = format!("{}\n", STANDARD.encode(signature));
        assert!(check(&bytes, Some(text.as_bytes()), &trust).is_ok());
    }

    #[test]
    fn what_is_not_signed_by_a_key_is_refused() {
        let (bytes, signature, key) = signed();
        let trust = Trust { public_keys: vec![key], require_signature: true, ..Trust::default() };
        assert_eq!(check(&bytes, None, &trust), Err(Untrusted::NoSignature));
        assert_eq!(check(b"another", Some(&signature), &trust), Err(Untrusted::BadSignature));
        assert_eq!(check(&bytes, Some(b"short"), &trust), Err(Untrusted::Malformed));
        let nobody = Trust { require_signature: true, ..Trust::default() };
        assert_eq!(check(&bytes, Some(&signature), &nobody), Err(Untrusted::NoKeys));
        // A signature that is there is checked even where none is required.
        let lenient = Trust { require_signature: false, ..trust };
        assert_eq!(check(b"another", Some(&signature), &lenient), Err(Untrusted::BadSignature));
        assert!(check(b"another", None, &lenient).is_ok());
    }

    #[test]
    fn a_pin_lets_only_its_file_pass() {
        let pinned = Digest::of(b"this");
        let trust = Trust { sha256: Some(pinned.0), ..Trust::default() };
        assert_eq!(check(b"this", None, &trust), Ok(pinned));
        let found = Digest::of(b"that");
        assert_eq!(check(b"that", None, &trust), Err(Untrusted::OtherDigest { found, pinned }));
    }
}
