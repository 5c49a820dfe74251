//! The log pump of one container, from the monitor's side: a child that comes and goes with the output.
//!
//! ```text
//!          output, reopen, finish                     silence
//!  Idle ───────────────────────────> Running ───────────────────────> Idle
//!                                       │ Finish, then Drained
//!                                       └───────────────────────────> Drained
//! ```
//!
//! [`child`] is what runs in the child. The monitor's loop only forks, sends a byte and reads notices: it never touches
//! the log.

mod child;
mod logfile;
mod state;
mod tap;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_monitor_api::{ContainerDescriptors, Stdio};
use holdfast_sys::{clone, scm};

use crate::frame::Stream;
use crate::poller::Poller;
pub use tap::Tap;
use wire::Command;
pub use wire::Notice;

/// How often a pump that dies is started again to finish a log.
const FINISH_TRIES: u32 = 3;
/// Pause before a hung-up terminal, or a fork that failed, is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A running pump.
#[derive(Debug)]
pub struct Running {
    pub pid: i32,
    pub control: OwnedFd,
    /// Its number may by now be another process's.
    pub reaped: bool,
    /// It has no streams and only opens the log (of a terminal that is not yet made): it cannot finish anything.
    pub opener: bool,
}

/// The pump of one container. It starts idle; [`Pump::sources`] are what to watch then.
#[derive(Debug, Default)]
pub struct Pump {
    pub running: Option<Running>,
    /// All is written; nothing more will be.
    pub drained: bool,
    /// The container has ended.
    pub finishing: bool,
    finish_tries: u32,
    pub stdout_ended: bool,
    pub stderr_ended: bool,
    /// Do not watch the sources before this.
    pub paused_until: Option<Instant>,
    /// Who is attached; each pump starts with a copy.
    pub taps: Vec<Tap>,
}

/// Why to start a pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Output,
    /// [`Notice::Opened`] will tell.
    Open,
    Finish,
}

/// What a pump works on.
#[derive(Clone, Copy)]
pub struct Streams<'a> {
    /// None while a terminal is not yet made: then a pump can only open the log.
    pub stdio: Option<&'a Stdio>,
    /// The memfd of [`state`].
    pub state: BorrowedFd<'a>,
    /// Empty: throw the output away.
    pub log_path: &'a str,
}

impl<'a> Streams<'a> {
    pub fn of(descriptors: &'a ContainerDescriptors, log_path: &'a str) -> Option<Self> {
        let state = descriptors.log_state.as_ref()?.as_fd();
        Some(Streams {
            stdio: Some(&descriptors.stdio),
            state,
            log_path,
        })
    }
}

impl Pump {
    /// Starts a child. Does nothing if one runs.
    pub fn start(&mut self, streams: Streams<'_>, reason: Reason) -> io::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let (control, theirs) = scm::pair()?;
        let spec = child::Spec {
            sources: &self.sources(streams.stdio),
            taps: &self.taps,
            tty: matches!(streams.stdio, Some(Stdio::Tty { .. })),
            control: theirs.as_fd(),
            state: streams.state,
            path: streams.log_path,
            open_first: reason == Reason::Open,
            finish: self.finishing,
        };
        match clone::fork(|| child::run(&spec)) {
            Ok(child) => {
                let pid = child.pid;
                self.running = Some(Running {
                    pid,
                    control,
                    reaped: false,
                    opener: streams.stdio.is_none(),
                });
                Ok(())
            }
            Err(error) => {
                self.pause();
                Err(error)
            }
        }
    }

    /// Asks a running pump to open the log anew. False: none runs (any more), start one.
    pub fn reopen(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| wire::send_command(running.control.as_fd(), Command::Reopen).is_ok())
    }

    /// Adds a tap; a running pump is told. Fails only where that does not listen, for the log's disk hangs.
    pub fn tap(&mut self, tap: Tap) -> io::Result<()> {
        if let Some(running) = &self.running {
            match wire::send_tap(running.control.as_fd(), &tap) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // Where it ends just now, the next one has the tap from the start.
                Ok(()) | Err(_) => {}
            }
        }
        self.taps.push(tap);
        Ok(())
    }

    /// The container has ended: have the rest written. Afterwards `drained` may already be true.
    pub fn finish(&mut self, poller: &Poller, streams: Streams<'_>) {
        self.finishing = true;
        if let Some(running) = &self.running {
            if running.opener {
                // Its end brings us here again.
                return;
            }
            if wire::send_command(running.control.as_fd(), Command::Finish).is_ok() {
                return;
            }
            poller.forget(&running.control);
            self.running = None;
        }
        let empty = |fd: &BorrowedFd<'_>| rustix::io::ioctl_fionread(fd).is_ok_and(|bytes| bytes == 0);
        let sources = self.sources(streams.stdio);
        // What a terminal holds may still be on its way to the master, where only a read makes it come.
        let tty = matches!(streams.stdio, Some(Stdio::Tty { .. }));
        if !tty && state::is_empty(streams.state) && sources.iter().all(|(_, fd)| empty(fd)) {
            self.drained = true;
            return;
        }
        self.finish_tries += 1;
        if self.finish_tries > FINISH_TRIES || self.start(streams, Reason::Finish).is_err() {
            self.drained = true;
        }
    }

    /// The next notice of the running pump: `Ok(None)` when it has ended (and `running` can go), `WouldBlock` when there is none.
    pub fn notice(&mut self) -> io::Result<Option<Notice>> {
        let Some(running) = &self.running else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let notice = match wire::take_notice(running.control.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => None,
            Ok(notice) => notice,
        };
        match notice {
            // The caller takes `running` off its poller and away.
            None => {}
            Some(Notice::Ended {
                stream: Stream::Stdout,
            }) => self.stdout_ended = true,
            Some(Notice::Ended {
                stream: Stream::Stderr,
            }) => self.stderr_ended = true,
            Some(Notice::Hangup) => self.pause(),
            Some(Notice::Drained) => self.drained = true,
            Some(Notice::Missed { key, bytes }) => {
                for tap in self.taps.iter_mut().filter(|tap| tap.key == key) {
                    tap.missed = bytes;
                }
            }
            Some(_) => {}
        }
        Ok(notice)
    }

    fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// The streams that can still give output.
    pub fn sources<'d>(&self, stdio: Option<&'d Stdio>) -> Vec<(Stream, BorrowedFd<'d>)> {
        match stdio {
            None => Vec::new(),
            Some(Stdio::Tty { master }) => vec![(Stream::Stdout, master.as_fd())],
            Some(Stdio::Pipes { stdout, stderr, .. }) => [
                (self.stdout_ended, Stream::Stdout, stdout),
                (self.stderr_ended, Stream::Stderr, stderr),
            ]
            .into_iter()
            .filter(|(ended, ..)| !ended)
            .map(|(_, stream, fd)| (stream, fd.as_fd()))
            .collect(),
        }
    }

    /// Kills a running child, whatever it hangs in; its last words are lost.
    pub fn abandon(&mut self) {
        self.drained = true;
        let running = self.running.take().filter(|running| !running.reaped);
        // Not reaped, and our child: the number is its own.
        if let Some(pid) = running.and_then(|running| rustix::process::Pid::from_raw(running.pid)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poller::Token;

    /// A builder that hangs in the kernel, though killed, keeps its duplicates.
    #[test]
    fn a_pump_that_is_gone_when_it_is_to_finish_is_not_heard_of_again() {
        let poller = Poller::new().unwrap();
        let (control, theirs) = scm::pair().unwrap();
        let _held = control.try_clone().unwrap();
        poller.watch(&control, Token::Pump(1)).unwrap();
        drop(theirs);
        let state = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let running = Running {
            pid: 0,
            control,
            reaped: true,
            opener: false,
        };
        let mut pump = Pump {
            running: Some(running),
            ..Pump::default()
        };
        let streams = Streams {
            stdio: None,
            state: state.as_fd(),
            log_path: "",
        };
        pump.finish(&poller, streams);
        assert!(pump.drained && pump.running.is_none());
        let mut tokens = Vec::new();
        poller.wait(Some(Duration::ZERO), &mut tokens).unwrap();
        assert_eq!(tokens, []);
    }
}
