//! Base64 that comes in pieces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// Decodes one message, whose pieces may end anywhere.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Up to three characters that wait for the rest of their group.
    rest: Vec<u8>,
}

impl Decoder {
    /// `None` if it is no base64.
    pub fn push(&mut self, piece: &[u8]) -> Option<Bytes> {
        self.rest.extend_from_slice(piece);
        let whole = self.rest.len() / 4 * 4;
        let decoded = STANDARD.decode(self.rest.get(..whole)?).ok()?;
        self.rest.drain(..whole);
        Some(decoded.into())
    }
}

pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_of_any_size() {
        let text = encode(b"the quick brown fox jumps");
        for size in 1..text.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                out.extend_from_slice(&decoder.push(piece).unwrap());
            }
            assert_eq!(out, b"the quick brown fox jumps", "{size}");
        }
        assert!(Decoder::default().push(b"!!!!").is_none());
    }
}
