//! The envelope of a record file: one line of header with version, length and SHA-256, then JSON.

use sha2::{Digest, Sha256};

/// First word of every record file; the number is the version of the envelope itself.
const MAGIC: &str = "holdfast-record/1";

/// Why an envelope was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Newer { found: u32 },
    Corrupt { reason: String },
}

/// Puts `body` into an envelope.
pub(crate) fn seal(version: u32, body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "{MAGIC} {version} {} {}\n",
        body.len(),
        hex(&Sha256::digest(body))
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Takes the body out again: its version (at most `known`) and its bytes.
pub(crate) fn unseal(bytes: &[u8], known: u32) -> Result<(u32, &[u8]), Refused> {
    let corrupt = |reason: &str| Refused::Corrupt {
        reason: reason.to_owned(),
    };
    if bytes.is_empty() {
        return Err(corrupt("it is empty"));
    }
    // The header is short: a file without a line end in its first bytes is none of ours.
    let end = bytes
        .iter()
        .take(160)
        .position(|b| *b == b'\n')
        .ok_or_else(|| corrupt("it has no header line"))?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| corrupt("its header is not text"))?;
    let fields: Vec<&str> = header.split(' ').collect();
    let [magic, version, length, sum] = fields[..] else {
        return Err(corrupt("its header does not have four fields"));
    };
    if magic != MAGIC {
        let envelope = magic
            .strip_prefix("holdfast-record/")
            .and_then(|n| n.parse().ok());
        return Err(match envelope {
            Some(found) if found > 1 => Refused::Newer { found },
            _ => corrupt("it does not begin as a record does"),
        });
    }
    let version: u32 = version
        .parse()
        .map_err(|_| corrupt("its version is not a number"))?;
    let body = &bytes[end + 1..];
    if length.parse::<usize>() != Ok(body.len()) {
        return Err(Refused::Corrupt {
            reason: format!("it holds {} bytes where its header says {length}", body.len()),
        });
    }
    if hex(&Sha256::digest(body)) != sum {
        return Err(corrupt("its checksum does not match"));
    }
    // Only a whole record can speak about its version.
    if version > known {
        return Err(Refused::Newer { found: version });
    }
    Ok((version, body))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
            let _ = write!(out, "{b:02x}");
            out
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_sealed_is_unsealed() {
        let sealed = seal(3, b"{\"a\":1}");
        assert_eq!(unseal(&sealed, 3), Ok((3, &b"{\"a\":1}"[..])));
        assert_eq!(unseal(&sealed, 2), Err(Refused::Newer { found: 3 }));
    }

    #[test]
    fn a_newer_envelope_is_not_called_damaged() {
        assert_eq!(
            unseal(b"holdfast-record/2 1 0 x\n", 9),
            Err(Refused::Newer { found: 2 })
        );
    }

    proptest! {
        #[test]
        fn no_single_changed_byte_goes_unnoticed(body in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let mut sealed = seal(1, &body);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            // A flipped digit of the version is the one change that may pass; it never yields other bytes.
            if let Ok((_, got)) = unseal(&sealed, u32::MAX) {
                prop_assert_eq!(got, &body[..]);
            }
        }

        #[test]
        fn a_cut_record_is_refused(body in prop::collection::vec(any::<u8>(), 1..200), keep in any::<prop::sample::Index>()) {
            let sealed = seal(1, &body);
            prop_assert!(unseal(&sealed[..keep.index(sealed.len())], 1).is_err());
        }
    }
}
