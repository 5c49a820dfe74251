//! The pump: a forked child that moves one container's output from its pipes to its log.
//!
//! It exists only while there is output: the monitor forks it when a pipe becomes readable, and it ends after a short
//! silence, leaving half a line in the state memfd. All that a sick disk can hang (open, write) hangs here, where
//! nothing else waits; the full pipe then is the container's back-pressure. It holds no descriptor but its own few.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use holdfast_sys::{pidfd, process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::logfile::{Change, LogFile, RETRY};
use super::state::{self, LogState};
use super::tap::Tap;
use super::wire::{self, Command, Notice, Order};
use crate::clock;
use crate::frame::{CHUNK, Framer, Stream};

/// Silence after which the pump ends.
const IDLE: Duration = Duration::from_millis(100);
/// Most that is read at once.
const READ: usize = 256 * 1024;
/// Framed bytes per write.
const WRITE: usize = 1024 * 1024;
/// Reads of this size show a writer that fills the pipe: it gets a larger one.
const BUSY_READ: usize = 60 * 1024;
const BIG_PIPE: usize = 1024 * 1024;
/// What is drained at most of a stream whose container has ended, where the pipe's size cannot be asked.
const DRAIN: usize = 128 * 1024;

/// What the monitor gives a pump.
pub struct Spec<'a> {
    pub sources: &'a [(Stream, BorrowedFd<'a>)],
    pub taps: &'a [Tap],
    pub tty: bool,
    pub control: BorrowedFd<'a>,
    pub state: BorrowedFd<'a>,
    /// Empty: throw the output away.
    pub path: &'a str,
    /// Open the log, and say so, before anything else.
    pub open_first: bool,
    /// The container has ended.
    pub finish: bool,
}

struct Source<'a> {
    stream: Stream,
    fd: BorrowedFd<'a>,
    /// Half a line.
    carry: Vec<u8>,
    open: bool,
    grown: bool,
    /// Set once the container has ended: how much may still be read. Whoever holds the pipe then is a stranger.
    budget: Option<usize>,
}

struct Child<'a> {
    spec: &'a Spec<'a>,
    sources: Vec<Source<'a>>,
    input: Vec<u8>,
    framer: Framer,
    log: LogFile,
    /// Ends with the monitor, even where another process still holds the monitor's end of `control`.
    monitor: Option<OwnedFd>,
    taps: Vec<Tap>,
    /// Received and not yet obeyed.
    orders: VecDeque<Command>,
    leaving: bool,
}

/// Runs in the forked child; the result is its exit code.
pub fn run(spec: &Spec<'_>) -> i32 {
    let monitor = rustix::process::getppid().and_then(|pid| pidfd::open(pid.as_raw_nonzero().get()).ok());
    let mut keep: Vec<_> = spec.sources.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    keep.extend([spec.control.as_raw_fd(), spec.state.as_raw_fd()]);
    keep.extend(spec.taps.iter().map(|tap| tap.fd.as_raw_fd()));
    keep.extend(monitor.as_ref().map(AsRawFd::as_raw_fd));
    if process::close_all_but(&mut keep).is_err() || state::lock(spec.state).is_err() {
        return 1;
    }
    let _ = rustix::thread::set_name(c"holdfast-log");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    Child::new(spec, monitor).run()
}

impl<'a> Child<'a> {
    fn new(spec: &'a Spec<'a>, monitor: Option<OwnedFd>) -> Self {
        let mut left = state::load(spec.state);
        let sources = spec.sources.iter().map(|(stream, fd)| Source {
            stream: *stream,
            fd: *fd,
            carry: std::mem::take(match stream {
                Stream::Stdout => &mut left.stdout,
                Stream::Stderr => &mut left.stderr,
            }),
            open: true,
            grown: false,
            budget: None,
        });
        Child {
            spec,
            sources: sources.collect(),
            // Both are zero pages until used.
            input: vec![0; CHUNK + READ],
            framer: Framer::new(WRITE),
            log: LogFile::new(spec.path, &left),
            monitor,
            taps: spec.taps.iter().filter_map(|tap| tap.duplicate().ok()).collect(),
            orders: VecDeque::new(),
            leaving: false,
        }
    }

    fn run(mut self) -> i32 {
        if self.spec.open_first {
            // The kubelet makes it; other clients may not have. What cannot be made is named by the file's own error.
            if let Some(dir) = Path::new(self.spec.path).parent() {
                let _ = std::fs::create_dir_all(dir);
            }
            self.reopen();
        }
        if self.spec.finish {
            self.finish();
        }
        while !self.leaving && !self.sources.is_empty() && self.wait() {}
        match self.save() {
            Ok(()) => 0,
            Err(_) => 1,
        }
    }

    /// One round; false when there is nothing more to do for now.
    fn wait(&mut self) -> bool {
        let timeout = if self.log.in_trouble() { RETRY } else { IDLE };
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = vec![PollFd::from_borrowed_fd(self.spec.control, PollFlags::IN)];
        fds.extend(self.monitor.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let first = fds.len();
        let open: Vec<usize> = (0..self.sources.len())
            .filter(|index| self.sources[*index].open)
            .collect();
        fds.extend(
            open.iter()
                .map(|index| PollFd::from_borrowed_fd(self.sources[*index].fd, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return true,
            Err(_) => return false,
            Ok(0) if self.log.in_trouble() => {
                self.log.recover(false);
                self.report();
                return true;
            }
            Ok(0) => return false,
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] {
            self.listen();
            self.obey();
        }
        if first > 1 && ready[1] {
            self.leaving = true;
        }
        if !self.leaving {
            for (index, _) in open.iter().zip(&ready[first..]).filter(|(_, ready)| **ready) {
                self.pump(*index);
            }
            self.framer.flush(&mut self.log);
            self.report();
            self.obey();
        }
        // With every stream ended only commands are left to wait for, and those can start another pump.
        !open.is_empty() || self.log.in_trouble()
    }

    /// Takes what the monitor has sent. Taps count at once.
    fn listen(&mut self) {
        loop {
            match wire::take_order(self.spec.control) {
                Ok(Some(Order::Tap(tap))) => self.taps.push(tap),
                Ok(Some(Order::Command(command))) => self.orders.push_back(command),
                Ok(None) => {
                    self.leaving = true;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.orders.pop_front() {
            match command {
                Command::Reopen => self.reopen(),
                Command::Finish => self.finish(),
            }
        }
    }

    fn reopen(&mut self) {
        let outcome = self.log.reopen();
        let errno = outcome.map_or_else(Errno::raw_os_error, |()| 0);
        wire::send_notice(self.spec.control, Notice::Opened { errno });
    }

    /// Takes one read's worth of a source; true if there may be more at once.
    fn pump(&mut self, index: usize) -> bool {
        let source = &mut self.sources[index];
        let held = source.carry.len();
        self.input[..held].copy_from_slice(&source.carry);
        let room = source.budget.map_or(READ, |budget| budget.min(READ));
        let read = match rustix::io::read(source.fd, &mut self.input[held..held + room]) {
            Ok(0) => return self.end(index),
            Ok(read) => read,
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => return false,
            // EIO from a terminal: nobody has it open now. Others: nothing can come any more.
            Err(_) => return self.end(index),
        };
        source.budget = source.budget.map(|budget| budget - read);
        if read >= BUSY_READ && !source.grown {
            source.grown = true;
            let _ = rustix::pipe::fcntl_setpipe_size(source.fd, BIG_PIPE);
        }
        // Whoever attached before these bytes were written is in the queue by now.
        self.listen();
        self.tap(index, held, read);
        let source = &mut self.sources[index];
        let stamp = clock::stamp(clock::now());
        let input = &self.input[..held + read];
        let used = self.framer.frame(input, source.stream, &stamp, &mut self.log);
        source.carry.clear();
        source.carry.extend_from_slice(&input[used..]);
        true
    }

    /// Copies what was just read to those who are attached.
    fn tap(&mut self, index: usize, held: usize, read: usize) {
        let (stream, tty) = (self.sources[index].stream, self.spec.tty);
        let fresh = &self.input[held..held + read];
        let control = self.spec.control;
        self.taps.retain_mut(|tap| {
            let here = tap.stream != stream || tap.give(fresh, tty).is_ok();
            if !here {
                wire::send_notice(control, Notice::TapGone { key: tap.key });
            }
            here
        });
    }

    fn end(&mut self, index: usize) -> bool {
        let source = &mut self.sources[index];
        source.open = false;
        let notice = if self.spec.tty {
            Notice::Hangup
        } else {
            let stream = source.stream;
            self.finish_line(index);
            Notice::Ended { stream }
        };
        wire::send_notice(self.spec.control, notice);
        false
    }

    fn finish_line(&mut self, index: usize) {
        let source = &mut self.sources[index];
        let stamp = clock::stamp(clock::now());
        let rest = std::mem::take(&mut source.carry);
        self.framer.finish(&rest, source.stream, &stamp, &mut self.log);
    }

    /// The container has ended: what its pipes hold now is the rest.
    fn finish(&mut self) {
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            source.budget = Some(rustix::pipe::fcntl_getpipe_size(source.fd).unwrap_or(DRAIN));
            while self.sources[index].budget != Some(0) && self.pump(index) {}
            self.finish_line(index);
        }
        let tty = self.spec.tty;
        for tap in &mut self.taps {
            // The last chance to say what is missing.
            let _ = tap.give(&[], tty);
        }
        self.framer.flush(&mut self.log);
        let recovered = self.log.recover(true);
        self.report();
        if !recovered {
            let (errno, dropped, _) = self.log.condition();
            wire::send_notice(self.spec.control, Notice::Trouble { errno, dropped });
        }
        wire::send_notice(self.spec.control, Notice::Drained);
        self.leaving = true;
    }

    fn report(&mut self) {
        for change in self.log.changes() {
            let notice = match change {
                Change::Trouble { errno } => Notice::Trouble { errno, dropped: 0 },
                Change::Recovered { dropped } => Notice::Recovered { dropped },
            };
            wire::send_notice(self.spec.control, notice);
        }
    }

    fn save(&mut self) -> std::io::Result<()> {
        for tap in &self.taps {
            let told = self.spec.taps.iter().find(|known| known.key == tap.key);
            if tap.missed != told.map_or(0, |known| known.missed) {
                let (key, bytes) = (tap.key, tap.missed);
                wire::send_notice(self.spec.control, Notice::Missed { key, bytes });
            }
        }
        self.framer.flush(&mut self.log);
        let (errno, dropped, broken_tail) = self.log.condition();
        let mut left = LogState {
            errno,
            dropped,
            broken_tail,
            ..LogState::default()
        };
        for source in &mut self.sources {
            let carry = std::mem::take(&mut source.carry);
            match source.stream {
                Stream::Stdout => left.stdout = carry,
                Stream::Stderr => left.stderr = carry,
            }
        }
        state::save(self.spec.state.as_fd(), &left)
    }
}
