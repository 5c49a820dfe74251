//! Ids of pods and containers: 64 lower-case hexadecimal digits, chosen at random by the engine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of an id in characters.
const LEN: usize = 64;

/// A string that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: 64 lower-case hexadecimal digits are wanted")]
pub struct IdError {
    /// The first characters of what was given.
    pub text: String,
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; LEN]);

        impl $name {
            /// The id that spells these 32 (random) bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0; LEN];
                for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                Self(text)
            }

            /// Reads a whole id; a prefix is not one.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                match <[u8; LEN]>::try_from(text.as_bytes()) {
                    Ok(bytes) if bytes.iter().copied().all(is_hex) => Ok(Self(bytes)),
                    _ => Err(IdError { text: text.chars().take(LEN + 8).collect() }),
                }
            }

            pub fn as_str(&self) -> &str {
                // The bytes are hexadecimal digits by construction; the fallback is never taken.
                std::str::from_utf8(&self.0).unwrap_or_default()
            }

            /// The first 13 characters, as the field's tools print them.
            pub fn short(&self) -> &str {
                &self.as_str()[..13]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

id! {
    /// Id of a pod (CRI: pod sandbox).
    SandboxId
}

id! {
    /// Id of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_reads_back(bytes: [u8; 32]) {
            let id = SandboxId::from_bytes(bytes);
            prop_assert_eq!(SandboxId::parse(id.as_str()).unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<SandboxId>(&json).unwrap(), id);
        }

        #[test]
        fn no_other_text_is_an_id(text in ".{0,80}") {
            prop_assume!(text.len() != LEN || !text.bytes().all(is_hex));
            prop_assert!(ContainerId::parse(&text).is_err());
        }
    }

    #[test]
    fn upper_case_is_refused() {
        assert!(ContainerId::parse(&"A".repeat(64)).is_err());
        assert!(ContainerId::parse(&"a".repeat(64)).is_ok());
    }
}
