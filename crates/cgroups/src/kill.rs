//! Freezing, killing, waiting for and removing a cgroup: bounded in time, whatever is inside.

use crate::io::{self, Root};
use crate::{Cgroup, Error, Watch};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How deep below a cgroup removal and walks go: a container with its own subtree can nest without end.
const MAX_DEPTH: usize = 128;
/// First and longest pause where the kernel offers nothing to wait for.
const PAUSE: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(10));
/// Rounds of killing without `cgroup.kill`, before what forks faster than we signal is left to the next call.
const KILL_ROUNDS: usize = 16;
const MAX_LISTED: usize = 8;

impl Cgroup {
    /// The processes in it and below, as the hierarchy that tracks processes has them.
    pub fn procs(&self) -> Result<Vec<i32>, Error> {
        let root = self.hierarchy().tracking();
        let dir = self.dir_in(root);
        let fd = io::open_dir(root, &dir)?;
        let mut out = Vec::new();
        collect(root, &dir, fd.as_fd(), 0, &mut out)?;
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    /// Whether a living process is in it or below. A cgroup that is gone has none.
    pub fn is_populated(&self) -> Result<bool, Error> {
        let result = match self.watch_empty() {
            Ok(Some(watch)) => watch.populated(),
            Ok(None) => self.procs().map(|pids| !pids.is_empty()),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.is_gone() => Ok(false),
            other => other,
        }
    }

    /// Kills everything in it and below with SIGKILL, at once, and does not wait. A cgroup that is gone is fine.
    pub fn kill(&self) -> Result<(), Error> {
        let root = self.hierarchy().tracking();
        let dir = self.dir_in(root);
        match io::write(root, &dir, "cgroup.kill", "1") {
            Ok(()) => Ok(()),
            // Linux before 5.14, or version 1.
            Err(error) if error.is_gone() && io::exists(root, "", &dir) => self.kill_one_by_one(),
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until no living process is in it or below; zombies do not count. [`Error::Busy`] after `limit`.
    pub fn wait_empty(&self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let watch = match self.watch_empty() {
            Ok(watch) => watch,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut pause = PAUSE.0;
        loop {
            let populated = match &watch {
                Some(watch) => watch.populated()?,
                None => self.is_populated()?,
            };
            if !populated {
                return Ok(());
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(self.busy(start));
            }
            match &watch {
                Some(watch) => wait_for_change(watch, left)?,
                None => rest(&mut pause, left),
            }
        }
    }

    /// Stops every process in it and below, and returns once they are stopped. If they are not in time, they are let
    /// go again.
    pub fn freeze(&self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let root = self.hierarchy().tracking();
        let dir = self.dir_in(root);
        let watch = self.watch_empty()?;
        let mut pause = PAUSE.0;
        match watch {
            Some(_) => io::write(root, &dir, "cgroup.freeze", "1")?,
            None => io::write(root, &dir, "freezer.state", "FROZEN")?,
        }
        loop {
            let frozen = match &watch {
                Some(watch) => watch.event("frozen")?,
                None => io::read(root, &dir, "freezer.state")?.trim() == "FROZEN",
            };
            if frozen {
                return Ok(());
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                self.thaw()?;
                return Err(Error::NotFrozen {
                    path: self.path(),
                    waited_ms: limit.as_millis() as u64,
                });
            }
            match &watch {
                Some(watch) => wait_for_change(watch, left)?,
                None => rest(&mut pause, left),
            }
        }
    }

    pub fn thaw(&self) -> Result<(), Error> {
        let root = self.hierarchy().tracking();
        let dir = self.dir_in(root);
        match self.hierarchy().mounts.unified {
            Some(_) => io::write(root, &dir, "cgroup.freeze", "0"),
            None => io::write(root, &dir, "freezer.state", "THAWED"),
        }
    }

    /// Removes it and everything below, from every hierarchy, trying for at most `limit` while the kernel says EBUSY
    /// (it does for a moment after the last process has gone). One that is not there is fine. A leaf is removed alone.
    pub fn remove(&self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let mut first = None;
        if self.path() == "/" {
            return Err(Error::Path {
                path: "/".into(),
                problem: "is the root, which stays",
            });
        }
        for root in self.hierarchy().roots() {
            if self.is_leaf() && !std::ptr::eq(root, self.hierarchy().tracking()) {
                continue;
            }
            // Carry on: what one hierarchy keeps does not spoil the others.
            if let Err(error) = self.remove_in(root, start, limit) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn remove_in(&self, root: &Root, start: Instant, limit: Duration) -> Result<(), Error> {
        let dir = self.dir_in(root);
        let fail = |errno: Errno| Error::Remove {
            path: io::name(root, &dir, ""),
            source: errno.into(),
        };
        let mut pause = PAUSE.0;
        loop {
            match rustix::fs::unlinkat(&root.fd, dir.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(errno) => return Err(fail(errno)),
            }
            match io::open_dir(root, &dir) {
                Ok(fd) => remove_below(fd.as_fd(), 0).map_err(fail)?,
                Err(error) if error.is_gone() => return Ok(()),
                Err(error) => return Err(error),
            }
            match rustix::fs::unlinkat(&root.fd, dir.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(errno) => return Err(fail(errno)),
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(self.busy(start));
            }
            rest(&mut pause, left);
        }
    }

    fn busy(&self, start: Instant) -> Error {
        let mut pids = self.procs().unwrap_or_default();
        pids.truncate(MAX_LISTED);
        Error::Busy {
            path: self.path(),
            waited_ms: start.elapsed().as_millis() as u64,
            pids,
        }
    }

    /// Freezing first keeps what is inside from forking away from us; a frozen process dies once it is let go.
    fn kill_one_by_one(&self) -> Result<(), Error> {
        let frozen = self.freeze(Duration::from_millis(50)).is_ok();
        let mut seen = Vec::new();
        for _ in 0..KILL_ROUNDS {
            let pids = self.procs()?;
            let new: Vec<i32> = pids.iter().copied().filter(|pid| !seen.contains(pid)).collect();
            for pid in &new {
                self.signal(*pid)?;
            }
            if new.is_empty() || frozen {
                break;
            }
            seen = pids;
        }
        if frozen {
            self.thaw()?;
        }
        Ok(())
    }

    fn signal(&self, pid: i32) -> Result<(), Error> {
        let Some(target) = Pid::from_raw(pid) else {
            return Ok(());
        };
        match rustix::process::kill_process(target, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::Signal {
                path: self.path(),
                pid,
                signal: Signal::KILL.as_raw(),
                source: errno.into(),
            }),
        }
    }
}

fn wait_for_change(watch: &Watch, left: Duration) -> Result<(), Error> {
    let timeout = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut fds = [PollFd::new(watch, PollFlags::PRI)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::Wait {
            file: watch.name().to_owned(),
            source: errno.into(),
        }),
    }
}

fn rest(pause: &mut Duration, left: Duration) {
    std::thread::sleep((*pause).min(left));
    *pause = (*pause * 2).min(PAUSE.1);
}

fn open_child(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Removes the directories below an open one, as far as they let themselves be removed.
fn remove_below(dir: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth == MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    let own = open_child(dir, ".")?;
    for name in io::subdirectories(&own)? {
        match rustix::fs::unlinkat(dir, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
        match open_child(dir, &name) {
            Ok(child) => remove_below(child.as_fd(), depth + 1)?,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        }
        match rustix::fs::unlinkat(dir, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads `cgroup.procs` of an open directory and of those below it. Directories that vanish meanwhile are skipped.
fn collect(
    root: &Root,
    name: &str,
    dir: BorrowedFd<'_>,
    depth: usize,
    out: &mut Vec<i32>,
) -> Result<(), Error> {
    let fail = |errno: Errno| Error::Read {
        file: io::name(root, name, "cgroup.procs"),
        source: errno.into(),
    };
    // In a threaded cgroup `cgroup.procs` cannot be read (EOPNOTSUPP); its processes are listed further up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(dir, "cgroup.procs", flags, Mode::empty()).and_then(|fd| io::read_fd(&fd)) {
        // 0: a process that our PID namespace does not show.
        Ok(text) => out.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid != 0),
        ),
        Err(Errno::NOENT | Errno::NODEV) if depth > 0 => return Ok(()),
        Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(fail(errno)),
    }
    if depth == MAX_DEPTH {
        return Err(fail(Errno::LOOP));
    }
    let own = open_child(dir, ".").map_err(fail)?;
    for child in io::subdirectories(&own).map_err(fail)? {
        match open_child(dir, &child) {
            Ok(fd) => collect(root, &format!("{name}/{child}"), fd.as_fd(), depth + 1, out)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    Ok(())
}
