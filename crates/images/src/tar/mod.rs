//! A streaming reader of tar archives: v7, ustar, GNU and PAX, with their sparse forms.
//!
//! Owns the format only. It never touches a file: [`crate::unpack`] decides what an entry becomes. Whatever the archive says,
//! memory stays flat: names, PAX records and sparse maps have bounds (below), and file data is handed on as it arrives.

mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;

pub(crate) use reader::Reader;
pub(crate) use sparse::Extent;

/// Size of a header and unit of padding.
pub(crate) const BLOCK: usize = 512;
/// Longest PAX header or GNU long name, in bytes.
pub(crate) const MAX_EXTENSION: u64 = 1 << 20;
/// Most data extents of one sparse file (16 bytes of memory each).
pub(crate) const MAX_EXTENTS: usize = 1 << 18;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed.
    #[error("cannot read the archive")]
    Read(#[from] std::io::Error),
    /// The archive breaks its format.
    #[error("archive is malformed at byte {offset}: {reason}")]
    Malformed {
        /// Offset in the uncompressed stream of the entry's header.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// It ends in the middle of something.
    #[error("archive ends at byte {offset} in the middle of {within}")]
    Truncated {
        /// Offset of its end.
        offset: u64,
        /// What was being read.
        within: &'static str,
    },
}

/// What an entry becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member of an archive, with the extensions before it applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As in the archive: may be absolute or hold `..`.
    pub path: Vec<u8>,
    /// Target of a link, as in the archive.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Size of the file once unpacked, holes included.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes of a sparse file belong. `None`: the file is plain.
    pub sparse: Option<Vec<Extent>>,
}
