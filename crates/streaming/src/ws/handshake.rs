//! The answer that proves a server has read the handshake (RFC 6455, section 4.2.2).

use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of `Sec-WebSocket-Accept`; `None` if the key is not 16 bytes in base64.
pub fn accept_key(key: &[u8]) -> Option<String> {
    let raw = STANDARD.decode(key).ok()?;
    (raw.len() == 16).then(|| STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_example() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ==").as_deref(),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        assert_eq!(accept_key(b"dGhlIHNhbXBsZQ=="), None);
        assert_eq!(accept_key(b"?"), None);
    }
}
