//! PAX extended headers: `length key=value\n` records (POSIX.1-2001, pax, "Extended Header"). Pure.

use super::MAX_EXTENTS;
use super::sparse::Extent;

/// What the extended header of one member says. Keys that unpacking has no use for are skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// The three PAX forms of GNU's sparse files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Forms 0.0 and 0.1 have the map here; 1.0 has it before the data.
    pub map: Option<Vec<Extent>>,
    /// Form 0.0: an offset whose length has not come yet.
    offset: Option<u64>,
}

impl Pax {
    /// Reads all records. The error is a sentence.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            pax.apply(key, value)?;
            bytes = rest;
        }
        if pax.sparse.offset.is_some() {
            return Err("PAX sparse map ends with an offset that has no length".into());
        }
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes an earlier one back.
        let some = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = some.map(<[u8]>::to_vec),
            b"linkpath" => self.link = some.map(<[u8]>::to_vec),
            b"size" => self.size = some.map(|v| decimal(v, "size")).transpose()?,
            b"uid" => self.uid = some.map(|v| decimal(v, "uid")).transpose()?,
            b"gid" => self.gid = some.map(|v| decimal(v, "gid")).transpose()?,
            b"mtime" => self.mtime = some.map(time).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(n, _)| n != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.apply(name, value)?;
                }
            }
        }
        Ok(())
    }
}

impl PaxSparse {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"major" => self.major = Some(decimal(value, "sparse major")?),
            b"minor" => self.minor = Some(decimal(value, "sparse minor")?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value, "sparse size")?),
            b"map" => {
                let mut map = Vec::new();
                let mut numbers = value.split(|b| *b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers
                        .next()
                        .ok_or("PAX sparse map has an odd number of fields")?;
                    push(
                        &mut map,
                        decimal(offset, "sparse offset")?,
                        decimal(length, "sparse length")?,
                    )?;
                }
                self.map = Some(map);
            }
            b"offset" => {
                let offset = decimal(value, "sparse offset")?;
                if self.offset.replace(offset).is_some() {
                    return Err("PAX sparse map has two offsets in a row".into());
                }
            }
            b"numbytes" => {
                let offset = self
                    .offset
                    .take()
                    .ok_or("PAX sparse map has a length without an offset")?;
                push(
                    self.map.get_or_insert_default(),
                    offset,
                    decimal(value, "sparse length")?,
                )?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn push(map: &mut Vec<Extent>, offset: u64, length: u64) -> Result<(), String> {
    if map.len() == MAX_EXTENTS {
        return Err(format!("sparse map has more than {MAX_EXTENTS} extents"));
    }
    map.push(Extent { offset, length });
    Ok(())
}

/// Key, value, and what follows.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits off one record.
fn record(bytes: &[u8]) -> Result<Record<'_>, String> {
    let space = bytes
        .iter()
        .take(8)
        .position(|b| *b == b' ')
        .ok_or("PAX record has no length")?;
    let length = usize::try_from(decimal(&bytes[..space], "PAX record length")?).unwrap_or(usize::MAX);
    if length <= space + 1 || length > bytes.len() {
        return Err(format!("PAX record says that it is {length} bytes long"));
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..]
        .strip_suffix(b"\n")
        .ok_or("PAX record does not end with a line end")?;
    let equals = body
        .iter()
        .position(|b| *b == b'=')
        .ok_or("PAX record has no equals sign")?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() {
        return Err("PAX record has an empty key".into());
    }
    Ok((key, value, rest))
}

/// Plain digits only: no sign, no blanks.
pub(super) fn decimal(text: &[u8], what: &str) -> Result<u64, String> {
    let digits = std::str::from_utf8(text)
        .ok()
        .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| format!("{what} is not a decimal number in range"))
}

/// Seconds with an optional fraction, cut to nanoseconds; may be negative.
fn time(text: &[u8]) -> Result<(i64, u32), String> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = decimal(parts.next().unwrap_or_default(), "mtime")?;
    let mut nanos = 0u32;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("mtime is not a decimal number in range".into());
    }
    for at in 0..9 {
        nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |d| d - b'0'));
    }
    let seconds = i64::try_from(whole).map_err(|_| "mtime is not a decimal number in range")?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        // The fraction counts forward from a whole second.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
