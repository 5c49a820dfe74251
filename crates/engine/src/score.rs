//! `oom_score_adj` of a container that runs: it belongs to each process, not to the cgroup.
//!
//! Processes that have set a score of their own, other than the container's, keep it. Everything blocks.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use holdfast_cgroups::Cgroup;
use rustix::fs::{Mode, OFlags, openat};

/// Rounds over the list of processes: what is forked meanwhile has its parent's score, new or old.
const ROUNDS: usize = 16;
/// A child whose fork had begun when its parent was changed has the old score, and is on the list when the fork is done: the list is read
/// again after these pauses. (To freeze the cgroup would be sure, and leave it frozen if the daemon died then.)
const FORKS: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
];
/// `/proc/<pid>/cgroup` has a line for each hierarchy.
const FILE: usize = 64 << 10;
const NAME: &str = "oom_score_adj";

/// Which processes are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Those with the same score as this one, the container's first.
    SameAs(i32),
    All,
}

/// What was changed, and how it was before.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    list: Vec<(i32, OwnedFd, i32)>,
    /// The kernel did not allow it, and that was to be borne.
    pub clamped: bool,
}

impl Changed {
    /// Puts the scores back; what cannot be is named.
    pub(crate) fn put_back(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, dir, before) in &self.list {
            match write(dir, *before) {
                Err(error) if !ended(&error) => left.push(format!("{NAME} of process {pid}: {error}")),
                _ => {}
            }
        }
        left
    }
}

/// A process whose score could not be set, after the others were put back.
#[derive(Debug, thiserror::Error)]
#[error("could not write {score} to /proc/{pid}/{NAME}")]
pub(crate) struct Failed {
    pid: i32,
    score: i32,
    /// What could not be put back.
    pub left: Vec<String>,
    #[source]
    source: io::Error,
}

/// Sets the score of a container's processes. `clamp`: where the kernel wants CAP_SYS_RESOURCE for a lower one, and we
/// have it not, things stay as they are.
pub(crate) fn set(cgroup: &Cgroup, of: Of, score: i32, clamp: bool) -> Result<Changed, Failed> {
    let mut changed = Changed::default();
    let failed = |pid, source, changed: &Changed| Failed {
        pid,
        score,
        left: changed.put_back(),
        source,
    };
    let base = match of {
        Of::All => None,
        Of::SameAs(first) => match open(cgroup, first).and_then(|dir| read(&dir)) {
            Ok(base) => Some(base),
            // It has ended: there is nothing to change any more.
            Err(error) if ended(&error) => return Ok(changed),
            Err(error) => return Err(failed(first, error, &changed)),
        },
    };
    let (mut seen, mut pauses) = (Vec::new(), FORKS.iter());
    for _ in 0..ROUNDS {
        let mut pids = match cgroup.procs() {
            Ok(pids) => pids,
            Err(error) if error.is_gone() => return Ok(changed),
            Err(error) => return Err(failed(0, io::Error::other(error), &changed)),
        };
        pids.retain(|pid| !seen.contains(pid));
        if pids.is_empty() {
            match pauses.next().filter(|_| !changed.list.is_empty()) {
                Some(pause) => std::thread::sleep(*pause),
                None => break,
            }
        }
        for pid in &pids {
            match one(cgroup, *pid, base, score) {
                Ok(Some((dir, before))) => changed.list.push((*pid, dir, before)),
                Ok(None) => {}
                Err(error) if ended(&error) => {}
                Err(error) if clamp && denied(&error) => {
                    // Half of the processes with the one score and half with the other would be nobody's wish.
                    let left = changed.put_back();
                    if left.is_empty() {
                        return Ok(Changed {
                            list: Vec::new(),
                            clamped: true,
                        });
                    }
                    return Err(failed(*pid, error, &changed));
                }
                Err(error) => return Err(failed(*pid, error, &changed)),
            }
        }
        seen.extend(pids);
    }
    Ok(changed)
}

fn one(cgroup: &Cgroup, pid: i32, base: Option<i32>, score: i32) -> io::Result<Option<(OwnedFd, i32)>> {
    let dir = open(cgroup, pid)?;
    let before = read(&dir)?;
    if before == score || base.is_some_and(|base| base != before) {
        return Ok(None);
    }
    write(&dir, score)?;
    Ok(Some((dir, before)))
}

/// The process's directory, once it is sure that the process is the container's: its number may be another's by now.
fn open(cgroup: &Cgroup, pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
    let own = cgroup.path();
    let inside = |line: &str| {
        let path = line.splitn(3, ':').nth(2).unwrap_or_default();
        path == own || path.strip_prefix(&own).is_some_and(|rest| rest.starts_with('/'))
    };
    if text(&dir, "cgroup")?.lines().any(inside) {
        Ok(dir)
    } else {
        Err(rustix::io::Errno::SRCH.into())
    }
}

fn text(dir: &OwnedFd, file: &str) -> io::Result<String> {
    use std::io::Read as _;
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut out = String::new();
    std::fs::File::from(fd)
        .take(FILE as u64)
        .read_to_string(&mut out)?;
    Ok(out)
}

fn read(dir: &OwnedFd) -> io::Result<i32> {
    let text = text(dir, NAME)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{NAME} holds {text:?}")))
}

fn write(dir: &OwnedFd, score: i32) -> io::Result<()> {
    let fd = openat(dir, NAME, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, score.to_string().as_bytes())?;
    Ok(())
}

fn ended(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::SRCH, rustix::io::Errno::NOENT].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

fn denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
