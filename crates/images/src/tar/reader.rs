//! Headers, extensions and data of an archive, one after the other.

use std::io::{BufRead, ErrorKind};

use super::header::{self, Header};
use super::pax::Pax;
use super::sparse::{self, Extent, MapReader};
use super::{BLOCK, Entry, Kind, MAX_EXTENSION, MAX_EXTENTS, TarError};

/// Reads members from a stream. After [`Reader::next`], the member's stored bytes come from [`Reader::data`]; what is not
/// taken is skipped by the following `next`.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    source: R,
    /// Bytes consumed so far.
    offset: u64,
    /// Offset of the header being worked on, for errors.
    at: u64,
    /// Stored bytes of the current member not yet taken.
    left: u64,
    /// Padding after them.
    padding: u64,
    done: bool,
}

/// Extensions that came before a member.
#[derive(Default)]
struct Pending {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            offset: 0,
            at: 0,
            left: 0,
            padding: 0,
            done: false,
        }
    }

    /// The stream, to read on behind the archive's end.
    pub fn into_source(self) -> R {
        self.source
    }

    /// Bytes consumed so far: after [`Reader::next`], where the member's data begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Stored bytes of the current member not yet taken.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next member; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        if self.done {
            return Ok(None);
        }
        let mut pending = Pending::default();
        let mut extended = false;
        loop {
            self.skip_data()?;
            self.at = self.offset;
            let Some(header) = self.header()? else {
                if extended {
                    return Err(self.malformed("an extended header belongs to no member"));
                }
                self.done = true;
                return Ok(None);
            };
            self.set_data(header.size)?;
            match header.flag {
                b'x' => {
                    let bytes = self.extension()?;
                    pending.pax = Pax::parse(&bytes).map_err(|reason| self.malformed(reason))?;
                }
                b'L' => pending.name = Some(header::text(&self.extension()?)),
                b'K' => pending.link = Some(header::text(&self.extension()?)),
                // Global PAX headers (comments of git archive) and volume labels say nothing about a layer's files.
                b'g' | b'V' => continue,
                _ => return self.entry(header, pending).map(Some),
            }
            extended = true;
        }
    }

    /// Some of the current member's stored bytes; empty at their end. Take them with [`Reader::consume`].
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        if fill(&mut self.source)?.is_empty() {
            return Err(TarError::Truncated {
                offset: self.offset,
                within: "a file",
            });
        }
        // Filled: this does not read again.
        let bytes = self.source.fill_buf()?;
        Ok(&bytes[..bytes.len().min(most)])
    }

    /// Marks bytes that [`Reader::data`] gave as taken.
    pub fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.offset += count as u64;
        self.left -= count as u64;
    }

    fn entry(&mut self, header: Header, pending: Pending) -> Result<Entry, TarError> {
        let Pending { pax, name, link } = pending;
        let mut path = pax.path.or(name).unwrap_or(header.name);
        let kind = match header.flag {
            // An old regular file whose name ends in a slash is a directory.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            flag => {
                return Err(self.malformed(format!("member type {:?} is not supported", char::from(flag))));
            }
        };
        // Only files have data; some archivers state the size of a hard link's target without storing it.
        let stored = if kind == Kind::File {
            pax.size.unwrap_or(header.size)
        } else {
            0
        };
        self.set_data(stored)?;
        let mut size = stored;
        let mut sparse = None;
        if kind == Kind::File {
            if let Some(gnu) = header.gnu_sparse {
                size = gnu.real_size;
                sparse = Some(self.gnu_map(gnu.extents, gnu.extended)?);
            } else if pax.sparse.major == Some(1) && pax.sparse.minor == Some(0) {
                size = pax.sparse.real_size.unwrap_or(stored);
                sparse = Some(self.pax_map()?);
            } else if let Some(map) = pax.sparse.map {
                size = pax.sparse.real_size.unwrap_or(stored);
                sparse = Some(map);
            }
            if let Some(map) = &sparse {
                path = pax.sparse.name.unwrap_or(path);
                sparse::check(map, size, self.left).map_err(|reason| self.malformed(reason))?;
            }
        }
        let owner = |id: u64, what: &str| {
            // The last number means "no change" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.malformed(format!("{what} {id} is out of range")))
        };
        Ok(Entry {
            uid: owner(pax.uid.unwrap_or(header.uid), "uid")?,
            gid: owner(pax.gid.unwrap_or(header.gid), "gid")?,
            path,
            link: pax.link.or(link).unwrap_or(header.link),
            kind,
            mode: header.mode,
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            size,
            device: header.device,
            xattrs: pax.xattrs,
            sparse,
        })
    }

    /// The header at the current place. Two blocks of zeros, or the stream's end, are the archive's end; one block of
    /// zeros with more behind it is not, or two readers would see two archives.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if let Some(header) = header::parse(&block).map_err(|reason| self.malformed(reason))? {
            return Ok(Some(header));
        }
        match self.block()? {
            Some(block) if block.iter().any(|b| *b != 0) => Err(self.malformed("a lone block of zeros")),
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = fill(&mut self.source)?;
            if bytes.is_empty() {
                if filled == 0 {
                    return Ok(None);
                }
                return Err(TarError::Truncated {
                    offset: self.offset,
                    within: "a header",
                });
            }
            let count = bytes.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&bytes[..count]);
            self.source.consume(count);
            self.offset += count as u64;
            filled += count;
        }
        Ok(Some(block))
    }

    fn set_data(&mut self, size: u64) -> Result<(), TarError> {
        // Leaves room for the padding and for offsets that never wrap.
        if size > i64::MAX as u64 - BLOCK as u64 {
            return Err(self.malformed(format!("size {size} is out of range")));
        }
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        self.left += std::mem::take(&mut self.padding);
        while self.left > 0 {
            let count = self.data()?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// The whole data of an extension.
    fn extension(&mut self) -> Result<Vec<u8>, TarError> {
        if self.left > MAX_EXTENSION {
            return Err(self.malformed(format!(
                "extended header of {} bytes, {MAX_EXTENSION} are allowed",
                self.left
            )));
        }
        let mut out = Vec::new();
        while self.left > 0 {
            let bytes = self.data()?;
            let count = bytes.len();
            out.extend_from_slice(bytes);
            self.consume(count);
        }
        Ok(out)
    }

    /// Blocks with more of the old GNU map come between header and data, and are not counted in the size.
    fn gnu_map(&mut self, mut extents: Vec<Extent>, mut extended: bool) -> Result<Vec<Extent>, TarError> {
        while extended {
            if extents.len() > MAX_EXTENTS {
                return Err(self.malformed(format!("sparse map has more than {MAX_EXTENTS} extents")));
            }
            let Some(block) = self.block()? else {
                return Err(TarError::Truncated {
                    offset: self.offset,
                    within: "a sparse map",
                });
            };
            let more =
                header::sparse_slots(&block[..504], &mut extents).map_err(|reason| self.malformed(reason))?;
            extended = more && block[504] != 0;
        }
        Ok(extents)
    }

    /// The PAX 1.0 map is decimal text at the beginning of the data, padded to a block.
    fn pax_map(&mut self) -> Result<Vec<Extent>, TarError> {
        let mut map = MapReader::default();
        loop {
            let Some(byte) = self.data()?.first().copied() else {
                return Err(self.malformed("sparse map is longer than the file's data"));
            };
            self.consume(1);
            if map.byte(byte).map_err(|reason| self.malformed(reason))? {
                break;
            }
        }
        let mut rest = (BLOCK as u64 - map.consumed % BLOCK as u64) % BLOCK as u64;
        if rest > self.left {
            return Err(self.malformed("sparse map is longer than the file's data"));
        }
        while rest > 0 {
            let count = self
                .data()?
                .len()
                .min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.consume(count);
            rest -= count as u64;
        }
        Ok(map.extents)
    }

    fn malformed(&self, reason: impl Into<String>) -> TarError {
        TarError::Malformed {
            offset: self.at,
            reason: reason.into(),
        }
    }
}

/// `fill_buf` that carries on after a signal.
fn fill<R: BufRead>(source: &mut R) -> Result<&[u8], TarError> {
    loop {
        match source.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    // Filled above; a second call only lends the bytes.
    Ok(source.fill_buf()?)
}
