//! A tap: the pipe of one attached client, into which the pump copies one stream.
//!
//! A container never waits for a reader who does not read. One who reads gets a moment's patience when the pipe is full,
//! at most a twentieth of the time; for one who has not read a byte in that moment there is no waiting at all until he
//! does. What does not fit is dropped and counted, and a line says so before the next output that does.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::frame::Stream;

/// Most that is waited for one reader at a time.
const PATIENCE: Duration = Duration::from_millis(20);
/// Waiting may take this part of the time.
const SHARE: u32 = 20;

/// One stream of one client, as the monitor keeps it and the pump uses it.
#[derive(Debug)]
pub struct Tap {
    pub key: u32,
    pub stream: Stream,
    /// The non-blocking write end.
    pub fd: OwnedFd,
    /// Bytes dropped since the reader was last told.
    pub missed: u64,
    patience: Duration,
    asked: Option<Instant>,
    /// The last wait was in vain.
    stalled: bool,
}

/// The reader has closed its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Tap {
    pub fn new(key: u32, stream: Stream, fd: OwnedFd) -> Self {
        Tap {
            key,
            stream,
            fd,
            missed: 0,
            patience: PATIENCE,
            asked: None,
            stalled: false,
        }
    }

    /// The same tap, for a child that goes its own way with it.
    pub fn duplicate(&self) -> std::io::Result<Self> {
        let mut copy = Tap::new(self.key, self.stream, self.fd.try_clone()?);
        copy.missed = self.missed;
        // One who has missed something and has not read since is not waited for.
        copy.stalled = self.missed > 0;
        Ok(copy)
    }

    /// Writes what fits.
    pub fn give(&mut self, mut bytes: &[u8], tty: bool) -> Result<(), Gone> {
        if self.missed > 0 && !self.confess(tty)? {
            self.missed += bytes.len() as u64;
            return Ok(());
        }
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.stalled = false;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.room_comes() => {}
                Err(Errno::AGAIN) => {
                    self.missed += bytes.len() as u64;
                    return Ok(());
                }
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Says how much is missing; false: there is no room for that either. So short a write is done whole or not at all
    /// (pipe(7), PIPE_BUF).
    fn confess(&mut self, tty: bool) -> Result<bool, Gone> {
        let end = if tty { "\r\n" } else { "\n" };
        let line = format!(
            "{end}[holdfast] {} bytes of output are missing here: they were not read in time{end}",
            self.missed
        );
        match rustix::io::write(&self.fd, line.as_bytes()) {
            Ok(_) => {
                self.missed = 0;
                self.stalled = false;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Gone),
        }
    }

    /// Waits for room as long as this reader may be waited for.
    fn room_comes(&mut self) -> bool {
        let now = Instant::now();
        let since = self.asked.map_or(Duration::ZERO, |asked| now - asked);
        self.asked = Some(now);
        self.patience = (self.patience + since / SHARE).min(PATIENCE);
        if self.stalled || self.patience.is_zero() {
            return false;
        }
        let timeout = Timespec::try_from(self.patience).ok();
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::OUT)];
        let came = matches!(poll(&mut fds, timeout.as_ref()), Ok(1..));
        self.patience = self.patience.saturating_sub(now.elapsed());
        self.stalled = !came;
        came
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};

    use super::*;

    fn tap() -> (OwnedFd, Tap, usize) {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let size = fcntl_getpipe_size(&write).unwrap();
        (read, Tap::new(1, Stream::Stdout, write), size)
    }

    fn read_all(from: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = rustix::io::read(from, &mut buffer) {
            all.extend_from_slice(&buffer[..read]);
        }
        all
    }

    #[test]
    fn who_does_not_read_is_waited_for_once_and_told_what_is_missing() {
        let (reader, mut tap, size) = tap();
        let start = Instant::now();
        let chunk = vec![b'x'; 100_000];
        for _ in 0..200 {
            tap.give(&chunk, false).unwrap();
        }
        // Waiting each time would take four seconds.
        assert!(start.elapsed() < PATIENCE * 100, "{:?}", start.elapsed());
        assert_eq!(tap.missed, 20_000_000 - size as u64);
        let missed = tap.missed;
        assert_eq!(read_all(&reader).len(), size);
        tap.give(b"next", false).unwrap();
        let text = String::from_utf8(read_all(&reader)).unwrap();
        assert!(
            text.contains(&format!("{missed} bytes of output are missing")),
            "{text}"
        );
        assert!(text.ends_with("in time\nnext"), "{text}");
        assert_eq!(tap.missed, 0);
    }

    /// On a busy machine a reader may be kept from reading for longer than he is waited for; then he is one who does not.
    #[test]
    fn who_reads_gets_everything() {
        let whole = (0..50).any(|_| {
            let (reader, mut tap, size) = tap();
            let given = size + 1000;
            let reading = std::thread::spawn(move || {
                let mut all = 0;
                loop {
                    let mut fds = [PollFd::new(&reader, PollFlags::IN)];
                    poll(&mut fds, None).unwrap();
                    match read_all(&reader).len() {
                        0 => return all,
                        read => all += read,
                    }
                }
            });
            tap.give(&vec![b'y'; given], false).unwrap();
            let missed = tap.missed;
            drop(tap);
            assert_eq!(reading.join().unwrap() as u64 + missed, given as u64);
            missed == 0
        });
        assert!(whole);
    }

    #[test]
    fn who_is_gone_is_noticed() {
        let (reader, mut tap, _) = tap();
        drop(reader);
        assert_eq!(tap.give(b"x", false), Err(Gone));
    }
}
