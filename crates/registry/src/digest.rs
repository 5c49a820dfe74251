//! Content digests: `sha256:<64 hex>` and `sha512:<128 hex>`, and the hashing that checks them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::Error;

/// The hash functions that OCI registers and that are accepted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name in a digest string.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A checked digest. The hex part is lower case and has the length of its algorithm, so it is safe as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

impl Digest {
    /// Parses `algorithm:hex`. Upper-case hex is refused, as the OCI image specification does.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::check(text).map_err(|reason| Error::Digest {
            input: crate::text::clip(text, 160),
            reason,
        })
    }

    fn check(text: &str) -> Result<Self, String> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err("has no colon; sha256:<64 hex digits> is wanted".into());
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err("uses an unsupported algorithm; sha256 and sha512 are supported".into()),
        };
        if hex.len() != algorithm.hex_len() {
            return Err(format!(
                "has {} hex digits, {name} has {}",
                hex.len(),
                algorithm.hex_len()
            ));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("has something other than lower-case hex digits".into());
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut state = State::new(algorithm);
        state.update(bytes);
        state.finish()
    }

    /// The sha256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Begins a check of streamed bytes against this digest, for a consumer that hashes on a thread of its own.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier {
            expected: self.clone(),
            state: State::new(self.algorithm),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Bytes that were not what their digest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest is {actual}, {expected} was expected")]
pub struct DigestMismatch {
    pub expected: Digest,
    pub actual: Digest,
}

/// Hashes a stream and compares at its end.
#[derive(Clone)]
pub struct Verifier {
    expected: Digest,
    state: State,
}

impl Verifier {
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    pub fn finish(self) -> Result<(), DigestMismatch> {
        let actual = self.state.finish();
        if actual == self.expected {
            Ok(())
        } else {
            Err(DigestMismatch {
                expected: self.expected,
                actual,
            })
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::Sha512(h) => h.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Sha256(h) => build(Algorithm::Sha256, &h.finalize()),
            Self::Sha512(h) => build(Algorithm::Sha512, &h.finalize()),
        }
    }
}

fn build(algorithm: Algorithm, sum: &[u8]) -> Digest {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(algorithm.name().len() + 1 + sum.len() * 2);
    text.push_str(algorithm.name());
    text.push(':');
    for byte in sum {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    Digest {
        algorithm,
        text: text.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_sums() {
        assert_eq!(
            Digest::sha256(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert_eq!(long.hex().len(), 128);
        assert!(long.hex().starts_with("ddaf35a193617aba"));
        assert_eq!(Digest::parse(long.as_str()).unwrap(), long);
    }

    #[test]
    fn refusals_say_why() {
        for (input, part) in [
            ("abc", "no colon"),
            ("md5:00", "unsupported algorithm"),
            ("sha256:abcd", "has 4 hex digits"),
            (&format!("sha256:{}", "A".repeat(64)), "lower-case"),
            (&format!("sha256:{}/", "a".repeat(63)), "lower-case"),
        ] {
            let text = Digest::parse(input).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn verifier_tells_both_sums() {
        let wanted = Digest::sha256(b"right");
        let mut verifier = wanted.verifier();
        verifier.update(b"ri");
        verifier.update(b"ght");
        verifier.finish().unwrap();
        let mut verifier = wanted.verifier();
        verifier.update(b"wrong");
        let wrong = verifier.finish().unwrap_err();
        assert_eq!(wrong.actual, Digest::sha256(b"wrong"));
        assert_eq!(wrong.expected, wanted);
    }
}
