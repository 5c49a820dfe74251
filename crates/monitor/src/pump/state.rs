//! What a pump leaves for the next one, in a memfd that the daemon's vault holds too: half lines, and how much was
//! lost. Empty (and without memory) nearly always.

use std::io;
use std::os::fd::BorrowedFd;

use prost::Message;
use rustix::fs::{FlockOperation, fcntl_lock, fstat, ftruncate};

use crate::frame::CHUNK;

#[derive(Clone, PartialEq, prost::Message)]
pub struct LogState {
    /// Output that is read but has no newline yet.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// Why the log cannot be written; 0: it can.
    #[prost(int32, tag = "3")]
    pub errno: i32,
    /// Bytes of output thrown away since.
    #[prost(uint64, tag = "4")]
    pub dropped: u64,
    /// The file ends within an entry.
    #[prost(bool, tag = "5")]
    pub broken_tail: bool,
}

/// Two half lines and the numbers.
const LIMIT: usize = 2 * CHUNK + 1024;

/// Waits until no other pump works on this container. The lock is the process's own (fcntl, not flock): monitor and
/// daemon share the open file.
pub fn lock(memfd: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        match fcntl_lock(memfd, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// What the last pump left. A state that cannot be read counts as none: the log goes on.
pub fn load(memfd: BorrowedFd<'_>) -> LogState {
    let size = fstat(memfd).map_or(0, |stat| stat.st_size);
    let Ok(size) = usize::try_from(size) else {
        return LogState::default();
    };
    if size == 0 || size > LIMIT {
        return LogState::default();
    }
    let mut bytes = vec![0; size];
    match rustix::io::pread(memfd, &mut bytes, 0) {
        Ok(read) if read == size => LogState::decode(bytes.as_slice()).unwrap_or_default(),
        _ => LogState::default(),
    }
}

pub fn save(memfd: BorrowedFd<'_>, state: &LogState) -> io::Result<()> {
    let bytes = state.encode_to_vec();
    if !bytes.is_empty() {
        rustix::io::pwrite(memfd, &bytes, 0)?;
    }
    Ok(ftruncate(memfd, bytes.len() as u64)?)
}

/// Whether there is anything for a pump to write even if no more output comes.
pub fn is_empty(memfd: BorrowedFd<'_>) -> bool {
    fstat(memfd).is_ok_and(|stat| stat.st_size == 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_nothing_takes_no_memory() {
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(load(memfd.as_fd()), LogState::default());
        let state = LogState {
            stdout: vec![7; CHUNK],
            dropped: 9,
            ..LogState::default()
        };
        save(memfd.as_fd(), &state).unwrap();
        assert!(!is_empty(memfd.as_fd()));
        assert_eq!(load(memfd.as_fd()), state);
        save(memfd.as_fd(), &LogState::default()).unwrap();
        assert!(is_empty(memfd.as_fd()));
        rustix::io::pwrite(&memfd, b"garbage", 0).unwrap();
        assert_eq!(load(memfd.as_fd()), LogState::default());
    }
}
