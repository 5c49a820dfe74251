//! Data of regular files, holes kept.

use std::io::{BufRead, Seek, SeekFrom, Write};

use super::attributes::{apply, set_times};
use super::place::Dir;
use super::{Outcome, Unpacker};
use crate::error::UnpackError;
use crate::tar::{Entry, Reader};

impl Unpacker<'_> {
    pub(super) fn file<R: BufRead>(
        &mut self,
        parent: &Dir,
        name: &[u8],
        entry: &Entry,
        archive: &mut Reader<R>,
    ) -> Outcome<()> {
        let mut file = std::fs::File::from(self.create_file(parent, name, entry)?);
        let failed = |e: std::io::Error| UnpackError::io("write", &entry.path, e);
        let stored = archive.left();
        match &entry.sparse {
            None => self.copy(&mut file, stored, entry, archive)?,
            Some(extents) => {
                for extent in extents {
                    file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
                    self.copy(&mut file, extent.length, entry, archive)?;
                }
                file.set_len(entry.size).map_err(failed)?;
            }
        }
        let fd = file.into();
        apply(&fd, entry)?;
        set_times(&fd, entry.mtime).map_err(|e| UnpackError::io("set the time of", &entry.path, e))?;
        self.count(stored);
        Ok(())
    }

    /// Copies the next `length` stored bytes, in pieces as they come.
    fn copy<R: BufRead>(
        &mut self,
        file: &mut std::fs::File,
        length: u64,
        entry: &Entry,
        archive: &mut Reader<R>,
    ) -> Outcome<()> {
        let mut left = length;
        while left > 0 {
            let bytes = archive.data()?;
            let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&bytes[..count])
                .map_err(|e| UnpackError::io("write", &entry.path, e))?;
            archive.consume(count);
            left -= count as u64;
            self.written(count as u64)?;
        }
        Ok(())
    }
}
