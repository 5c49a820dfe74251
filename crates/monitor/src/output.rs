//! Output of an exec, collected up to a limit: small in the heap, large in a memfd, so that megabytes never pass through
//! the monitor's heap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// What is kept in the heap before it goes to a memfd.
const HEAP: usize = 8 * 1024;

/// What one stream has given.
#[derive(Debug, Default)]
pub struct Output {
    small: Vec<u8>,
    large: Option<OwnedFd>,
    size: u64,
    pub discarded: u64,
}

/// How a read went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Some(usize),
    /// Nothing now.
    Empty,
    Ended,
}

impl Output {
    /// Carries on with what an older program of this process has collected in `memfd`.
    pub fn resumed(small: Vec<u8>, large: Option<OwnedFd>, size: u64, discarded: u64) -> Self {
        Output {
            small,
            large,
            size,
            discarded,
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn small(&self) -> &[u8] {
        &self.small
    }

    pub fn large(&self) -> Option<BorrowedFd<'_>> {
        self.large.as_ref().map(AsFd::as_fd)
    }

    /// One read from a non-blocking pipe; keeps at most `room` bytes of it.
    pub fn read(&mut self, from: BorrowedFd<'_>, room: u64, scratch: &mut [u8]) -> Progress {
        match rustix::io::read(from, &mut *scratch) {
            Ok(0) => Progress::Ended,
            Ok(read) => {
                let keep = usize::try_from(room).unwrap_or(usize::MAX).min(read);
                let kept = self.keep(&scratch[..keep]);
                self.discarded += (read - kept) as u64;
                Progress::Some(read)
            }
            Err(Errno::AGAIN | Errno::INTR) => Progress::Empty,
            Err(_) => Progress::Ended,
        }
    }

    /// Returns how much was kept: less only where memory is short.
    fn keep(&mut self, bytes: &[u8]) -> usize {
        if self.large.is_none() && self.small.len() + bytes.len() <= HEAP {
            self.small.extend_from_slice(bytes);
            self.size += bytes.len() as u64;
            return bytes.len();
        }
        self.spill(bytes).unwrap_or(0)
    }

    fn spill(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let memfd = match &self.large {
            Some(memfd) => memfd,
            None => {
                let memfd = create()?;
                write_all(&memfd, &self.small)?;
                self.small = Vec::new();
                self.large.insert(memfd)
            }
        };
        write_all(memfd, bytes)?;
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    /// What to send: bytes for the message itself, or a sealed memfd.
    pub fn finish(self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        if let Some(memfd) = &self.large {
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(memfd, seals)?;
        }
        Ok((self.small, self.large))
    }
}

fn create() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL is unknown before Linux 6.3.
    let fd = rustix::fs::memfd_create("exec-output", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create("exec-output", flags))?;
    Ok(fd)
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn collect(input: &[u8], limit: u64) -> Output {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut output = Output::default();
        let mut scratch = vec![0; 4096];
        let mut rest = input;
        loop {
            if let Ok(written) = rustix::io::write(&write, rest) {
                rest = &rest[written..];
            }
            let room = limit - output.size();
            match output.read(read.as_fd(), room, &mut scratch) {
                Progress::Some(_) => {}
                _ if rest.is_empty() => return output,
                _ => {}
            }
        }
    }

    #[test]
    fn small_output_stays_inline_and_large_goes_to_a_sealed_memfd() {
        let (small, large) = collect(b"hello", 100).finish().unwrap();
        assert_eq!((small.as_slice(), large.is_none()), (&b"hello"[..], true));
        let input: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let (small, large) = collect(&input, 1 << 20).finish().unwrap();
        assert!(small.is_empty());
        let got = holdfast_monitor_api::codec::read_sealed(large.unwrap()).unwrap();
        assert_eq!(got, input);
    }

    #[test]
    fn what_is_over_the_limit_is_counted_and_gone() {
        for limit in [0, 1, 5000, 100_000] {
            let output = collect(&vec![b'x'; 150_000], limit);
            assert_eq!(output.size(), limit);
            assert_eq!(output.discarded, 150_000 - limit);
        }
    }
}
