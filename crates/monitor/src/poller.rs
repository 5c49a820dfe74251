//! epoll with names for what is watched. Level-triggered, but for output, which is one-shot: while a pump reads a pipe
//! the loop must not hear of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// What an event is about; the numbers are keys of containers, builds, execs and jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    Link,
    Listener,
    Build(u32),
    Barrier(u32),
    Output(u32),
    Pump(u32),
    Pidfd(u32),
    PausePidfd,
    ExecOutput(u32),
    ExecBarrier(u32),
    Job(u32),
    Tap(u32),
}

const KINDS: [fn(u32) -> Token; 13] = [
    |_| Token::Signals,
    |_| Token::Link,
    |_| Token::Listener,
    Token::Build,
    Token::Barrier,
    Token::Output,
    Token::Pump,
    Token::Pidfd,
    |_| Token::PausePidfd,
    Token::ExecOutput,
    Token::ExecBarrier,
    Token::Job,
    Token::Tap,
];

impl Token {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Token::Signals => (0, 0),
            Token::Link => (1, 0),
            Token::Listener => (2, 0),
            Token::Build(key) => (3, key),
            Token::Barrier(key) => (4, key),
            Token::Output(key) => (5, key),
            Token::Pump(key) => (6, key),
            Token::Pidfd(key) => (7, key),
            Token::PausePidfd => (8, 0),
            Token::ExecOutput(key) => (9, key),
            Token::ExecBarrier(key) => (10, key),
            Token::Job(key) => (11, key),
            Token::Tap(key) => (12, key),
        };
        u64::from(key) << 8 | kind
    }

    fn unpack(packed: u64) -> Option<Token> {
        let kind = KINDS.get((packed & 0xff) as usize)?;
        Some(kind((packed >> 8) as u32))
    }
}

pub struct Poller {
    epoll: OwnedFd,
}

/// Events taken from the kernel at once.
const BATCH: usize = 32;

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll })
    }

    /// Watches until told otherwise.
    pub fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(fd, token, epoll::EventFlags::IN)
    }

    /// Watches for the next input only; again after another call.
    pub fn watch_once(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        self.add(fd, token, flags)
    }

    /// Watches the write end of a pipe for its reader's departure alone, which epoll tells unasked.
    pub fn watch_reader(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(fd, token, epoll::EventFlags::empty())
    }

    /// Changes what is waited for: input, and with `output` room to write.
    pub fn want_output(&self, fd: impl AsFd, token: Token, output: bool) -> io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, output);
        self.add(fd, token, flags)
    }

    fn add(&self, fd: impl AsFd, token: Token, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.pack());
        match epoll::add(&self.epoll, &fd, data, flags) {
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.epoll, &fd, data, flags)?),
            other => Ok(other?),
        }
    }

    /// Must be called before a watched descriptor is closed: the daemon holds duplicates, and an epoll entry lives as
    /// long as the open file.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events; none when `timeout` has passed or a signal came.
    pub fn wait(&self, timeout: Option<Duration>, tokens: &mut Vec<Token>) -> io::Result<()> {
        let empty = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [empty; BATCH];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            other => other?,
        };
        tokens.clear();
        tokens.extend(
            events[..count]
                .iter()
                .filter_map(|event| Token::unpack(event.data.u64())),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for kind in KINDS {
            for key in [0, 7, u32::MAX] {
                let token = kind(key);
                assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }
        assert_eq!(Token::unpack(200), None);
    }
}
