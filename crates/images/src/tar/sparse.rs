//! Maps of sparse files: checks, and the form that GNU's PAX 1.0 keeps before the data.

use super::MAX_EXTENTS;

/// Stored bytes and where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// Checks that extents ascend, do not overlap, end within `real_size` and hold `stored` bytes in all.
pub(super) fn check(extents: &[Extent], real_size: u64, stored: u64) -> Result<(), String> {
    let (mut end, mut total) = (0u64, 0u64);
    for extent in extents {
        let next = extent
            .offset
            .checked_add(extent.length)
            .filter(|_| extent.offset >= end);
        end = next
            .filter(|end| *end <= real_size)
            .ok_or("sparse map overlaps itself or passes the end of the file")?;
        // Cannot overflow: extents are disjoint and end within a u64.
        total += extent.length;
    }
    if total != stored {
        return Err(format!(
            "sparse map describes {total} bytes where {stored} are stored"
        ));
    }
    Ok(())
}

/// Reads the decimal lines of a PAX 1.0 map one byte at a time.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    /// Bytes consumed so far.
    pub consumed: u64,
    count: Option<usize>,
    offset: Option<u64>,
    number: u64,
    digits: u8,
    pub extents: Vec<Extent>,
}

impl MapReader {
    /// Takes one byte; true when the map is complete.
    pub fn byte(&mut self, byte: u8) -> Result<bool, String> {
        self.consumed += 1;
        if byte.is_ascii_digit() {
            let added = self
                .number
                .checked_mul(10)
                .and_then(|n| n.checked_add(u64::from(byte - b'0')));
            self.number = added
                .filter(|_| self.digits < 20)
                .ok_or("sparse map has a number out of range")?;
            self.digits += 1;
            return Ok(false);
        }
        if byte != b'\n' || self.digits == 0 {
            return Err("sparse map is not made of decimal lines".into());
        }
        let number = std::mem::take(&mut self.number);
        self.digits = 0;
        match (self.count, self.offset.take()) {
            (None, _) => {
                let count = usize::try_from(number).ok().filter(|n| *n <= MAX_EXTENTS);
                self.count =
                    Some(count.ok_or_else(|| format!("sparse map has more than {MAX_EXTENTS} extents"))?);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.extents.push(Extent {
                offset,
                length: number,
            }),
        }
        Ok(self.offset.is_none() && self.count == Some(self.extents.len()))
    }
}
