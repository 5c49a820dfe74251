//! Telling the kernel early that written data should go to the disk.
//!
//! Owns sync_file_range(2). Leaves out making anything durable: that is fsync's and syncfs's business.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Starts writing the dirty pages of `length` bytes from `offset` on, without waiting for them, so that a later syncfs
/// finds less to do.
pub fn start(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: the call takes numbers only, and the descriptor is borrowed for its whole length.
    let result = unsafe {
        libc::sync_file_range(
            fd.as_fd().as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    crate::check(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_takes_it_and_a_pipe_does_not() {
        let path = std::env::temp_dir().join(format!("holdfast-writeback-{}", std::process::id()));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&[1; 8192]).unwrap();
        start(&file, 0, 8192).unwrap();
        std::fs::remove_file(path).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        assert!(start(&reader, 0, 1).is_err());
    }
}
