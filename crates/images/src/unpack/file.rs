//! Data of regular files, holes kept.

use std::io::{BufRead, Seek, SeekFrom, Write};

use super::attributes::{apply, set_times};
use super::place::Dir;
use super::{Outcome, Unpacker};
use crate::error::UnpackError;
use crate::tar::{Entry, Reader};

/// Bytes of one file that are written before the disk is told to begin, and the fewest for which it is told at all.
const WRITEBACK: u64 = 8 << 20;
const WRITEBACK_LEAST: u64 = 256 << 10;

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
            None => self.copy(&mut file, (0, stored), entry, archive)?,
            Some(extents) => {
                for extent in extents {
                    file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
                    self.copy(&mut file, (extent.offset, extent.length), entry, archive)?;
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

    /// Copies the next `length` stored bytes to `offset`, where the file stands, in pieces as they come.
    fn copy<R: BufRead>(
        &mut self,
        file: &mut std::fs::File,
        (offset, length): (u64, u64),
        entry: &Entry,
        archive: &mut Reader<R>,
    ) -> Outcome<()> {
        let (mut done, mut started) = (0, 0);
        while done < length {
            let bytes = archive.data()?;
            let count = bytes
                .len()
                .min(usize::try_from(length - done).unwrap_or(usize::MAX));
            file.write_all(&bytes[..count])
                .map_err(|e| UnpackError::io("write", &entry.path, e))?;
            archive.consume(count);
            done += count as u64;
            self.written(count as u64)?;
            let waiting = done - started;
            if waiting >= WRITEBACK || (done == length && waiting >= WRITEBACK_LEAST) {
                // A hint: while the processor inflates, the disk may as well write. The sync at the commit is what counts.
                let _ = holdfast_sys::writeback::start(&*file, offset + started, waiting);
                started = done;
            }
        }
        Ok(())
    }
}
