//! The 512 bytes before each member. Pure.

use super::BLOCK;
use super::sparse::Extent;

/// The fields that unpacking needs, undecoded extensions excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub flag: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Bytes stored after the header.
    pub size: u64,
    pub mtime: i64,
    pub device: (u32, u32),
    pub gnu_sparse: Option<GnuSparse>,
}

/// The old GNU sparse form keeps its map in the header and in blocks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GnuSparse {
    pub extents: Vec<Extent>,
    pub extended: bool,
    pub real_size: u64,
}

/// Reads a header block; `None` for a block of zeros. The error is a sentence.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, String> {
    if block.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    check_sum(block)?;
    let flag = block[156];
    let mut name = text(&block[..100]);
    // Only POSIX archives have a prefix; GNU ones keep other things there.
    if &block[257..263] == b"ustar\0" {
        let star = &block[508..512] == b"tar\0";
        let prefix = text(&block[345..if star { 476 } else { 500 }]);
        if !prefix.is_empty() {
            name = [prefix.as_slice(), b"/", name.as_slice()].concat();
        }
    }
    let gnu_sparse = if flag == b'S' {
        Some(gnu_sparse(block)?)
    } else {
        None
    };
    let device = if matches!(flag, b'3' | b'4') {
        (
            small(&block[329..337], "device major")?,
            small(&block[337..345], "device minor")?,
        )
    } else {
        (0, 0)
    };
    Ok(Some(Header {
        name,
        link: text(&block[157..257]),
        flag,
        // Some archivers keep the file type in the upper bits.
        mode: u32::try_from(unsigned(&block[100..108], "mode")? & 0o7777).unwrap_or(0),
        uid: unsigned(&block[108..116], "uid")?,
        gid: unsigned(&block[116..124], "gid")?,
        size: unsigned(&block[124..136], "size")?,
        mtime: number(&block[136..148], "mtime")?,
        device,
        gnu_sparse,
    }))
}

fn gnu_sparse(block: &[u8; BLOCK]) -> Result<GnuSparse, String> {
    let mut extents = Vec::new();
    let more = sparse_slots(&block[386..482], &mut extents)?;
    Ok(GnuSparse {
        extents,
        extended: more && block[482] != 0,
        real_size: unsigned(&block[483..495], "sparse size")?,
    })
}

/// Reads pairs of 12-byte offset and length; false once an unused slot was met.
pub(super) fn sparse_slots(slots: &[u8], extents: &mut Vec<Extent>) -> Result<bool, String> {
    for slot in slots.chunks_exact(24) {
        if slot[0] == 0 || slot[12] == 0 {
            return Ok(false);
        }
        extents.push(Extent {
            offset: unsigned(&slot[..12], "sparse offset")?,
            length: unsigned(&slot[12..], "sparse length")?,
        });
    }
    Ok(true)
}

/// The sum is of unsigned bytes in POSIX; some old archivers summed signed ones.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), String> {
    let stated = number(&block[148..156], "checksum")?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(i8::from_ne_bytes([byte]));
    }
    if stated == unsigned || stated == signed {
        Ok(())
    } else {
        Err(format!("header checksum is {stated}, its bytes give {unsigned}"))
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|b| *b != 0).collect()
}

fn small(field: &[u8], what: &str) -> Result<u32, String> {
    u32::try_from(unsigned(field, what)?).map_err(|_| format!("{what} is out of range"))
}

fn unsigned(field: &[u8], what: &str) -> Result<u64, String> {
    u64::try_from(number(field, what)?).map_err(|_| format!("{what} is negative"))
}

/// Octal text, or base-256 (two's complement, big endian) if the first bit is set.
pub(super) fn number(field: &[u8], what: &str) -> Result<i64, String> {
    let out_of_range = || format!("{what} is out of range");
    let Some(first) = field.first() else { return Ok(0) };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        // 7 bits of the first byte, sign-extended, then whole bytes.
        let mut value = i128::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        for byte in &field[1..] {
            value = (value << 8) | i128::from(*byte);
            if i64::try_from(value).is_err() {
                return Err(out_of_range());
            }
        }
        return i64::try_from(value).map_err(|_| out_of_range());
    }
    let digits = field
        .iter()
        .skip_while(|b| **b == b' ')
        .take_while(|b| !matches!(**b, 0 | b' '));
    let mut value = 0i64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err(format!("{what} is not an octal number"));
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or_else(out_of_range)?;
    }
    Ok(value)
}
