//! One hook: a process that gets what the specification says and nothing else, and is killed with its descendants when
//! its time is over.
//!
//! ```text
//!  caller ── keeper ──[in the container's namespaces: attendant]── hook
//!     │         └ ends when the caller does; takes in what the hook leaves, so that all of it can be found
//!     └ watches: the outcome, the hook's words, the deadline, and whether anybody still wants it
//! ```

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_sys::clone::{self, NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUTS};
use holdfast_sys::pidfd::{self, Ended};
use holdfast_sys::process::{self, Control};
use holdfast_sys::{namespace, scm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use super::{Hook, Hooks};
use crate::error::Kind;
use crate::fault::{Context, Fault, Result, words};
use crate::init::close_others;
use crate::namespaces::MOUNT;
use crate::walk::kill_tree;

/// How long a killed hook may take to die.
const DIE: Duration = Duration::from_secs(2);
/// How much of a hook's last words is kept and told.
const WORDS: usize = 2 * 1024;
/// Reads of what is left in the pipe when a hook has ended: what it left running may go on writing for ever.
const LAST_READS: usize = 64;
/// Longest outcome: an errno in words.
const OUTCOME: usize = 1024;

/// What the hooks of one point have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circumstances<'a> {
    /// The container's init, as the hook's PID namespace sees it. `None`: there is none any more.
    pub pid: Option<i32>,
    /// The process in whose namespaces the hook runs; `None`: the caller's.
    pub within: Option<BorrowedFd<'a>>,
    /// The mount namespace to run it in, if it is not the caller's.
    pub mounts: Option<BorrowedFd<'a>>,
    /// A socket that becomes readable when nobody wants the hook's outcome any more.
    pub wanted: Option<BorrowedFd<'a>>,
    /// The working directory stays: a hook in the container does not see its bundle.
    pub in_place: bool,
}

/// How a hook ended, as its keeper tells.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Exited(i32),
    Signaled(i32),
    NotRun { why: String, errno: i32 },
}

/// Why nothing more is waited for.
#[derive(Debug)]
enum End {
    Told(Outcome),
    /// The keeper is gone without a word.
    Lost,
    Late,
    Unwanted,
}

/// What the new processes hold: the state, where words go, where the outcome goes.
struct Ends<'a> {
    state: BorrowedFd<'a>,
    words: BorrowedFd<'a>,
    outcome: BorrowedFd<'a>,
}

/// Runs one hook to its end. At its own timeout, or at `until`, it is killed with all that descends from it.
pub(super) fn one(
    hook: &Hook,
    hooks: &Hooks,
    with: &Circumstances<'_>,
    (state, until): (&OwnedFd, Instant),
) -> Result<()> {
    let path = hook.path.to_string_lossy();
    let what = || format!("{}: {} hook {path}", hooks.name, hook.point.name());
    let left = until.saturating_duration_since(Instant::now());
    let limit = hook.timeout.map_or(left, |own| own.min(left));
    if limit.is_zero() {
        let why = "not run: the hooks before it took all that the hooks of this step may take together";
        return Err(Fault::new(Kind::Internal, format!("{}: {why}", what())));
    }
    rustix::fs::seek(state, SeekFrom::Start(0)).at(what)?;
    let (said, words_end) = pipe_with(PipeFlags::CLOEXEC).at(what)?;
    let flags = fcntl_getfl(&said).at(what)?;
    fcntl_setfl(&said, flags | OFlags::NONBLOCK).at(what)?;
    let (ours, theirs) = scm::pair().at(what)?;
    let keeper = clone::fork(|| {
        let ends = Ends {
            state: state.as_fd(),
            words: words_end.as_fd(),
            outcome: theirs.as_fd(),
        };
        keep(hook, hooks, with, &ends)
    })
    .at(what)?;
    drop((theirs, words_end));
    let mut watch = Watch {
        outcome: &ours,
        wanted: with.wanted,
        said: Some(said.into()),
        tail: Vec::new(),
    };
    let end = watch.wait(Instant::now() + limit);
    match &end {
        End::Told(_) => {}
        End::Lost | End::Late | End::Unwanted => {
            let _killed = kill_tree(keeper.pid);
        }
    }
    reap(keeper.pidfd.as_fd());
    let told = watch.last_words();
    verdict(end, limit, hook.timeout == Some(limit)).map_err(|fault| Fault {
        message: match told.is_empty() {
            true => format!("{}: {}", what(), fault.message),
            false => format!("{}: {}: {told}", what(), fault.message),
        },
        ..fault
    })
}

fn verdict(end: End, limit: Duration, own: bool) -> Result<()> {
    let failed = |text: String| Err(Fault::new(Kind::Internal, text));
    match end {
        End::Told(Outcome::Exited(0)) => Ok(()),
        End::Told(Outcome::Exited(code)) => failed(format!("exit code {code}")),
        End::Told(Outcome::Signaled(signal)) => failed(format!("killed by signal {signal}")),
        End::Told(Outcome::NotRun { why, errno }) => Err(Fault {
            message: format!("it could not be run: {why}"),
            kind: not_run_kind(errno),
            errno,
        }),
        End::Lost => failed("its keeper was killed".to_owned()),
        End::Late => {
            let whose = match own {
                true => "its timeout",
                false => "all that the hooks of this step may take together",
            };
            let seconds = limit.as_secs_f32();
            failed(format!(
                "killed after {seconds:.0} s ({whose}) with all that it had started"
            ))
        }
        End::Unwanted => failed("killed: the container was given up meanwhile".to_owned()),
    }
}

/// Never "precondition": that is what a container answers which does not wait to be started.
fn not_run_kind(errno: i32) -> Kind {
    match errno {
        libc::ENOENT => Kind::NotFound,
        libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::ENOTDIR | libc::ELOOP => Kind::Invalid,
        _ => Kind::Internal,
    }
}

/// A keeper ends by itself, or has been killed.
fn reap(keeper: BorrowedFd<'_>) {
    let deadline = Instant::now() + DIE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut watched = [PollFd::from_borrowed_fd(keeper, PollFlags::IN)];
        match poll(&mut watched, Timespec::try_from(left).ok().as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    let _reaped = pidfd::try_reap(keeper);
}

struct Watch<'a> {
    outcome: &'a OwnedFd,
    wanted: Option<BorrowedFd<'a>>,
    /// Until its other end is closed everywhere.
    said: Option<std::fs::File>,
    tail: Vec<u8>,
}

impl Watch<'_> {
    fn wait(&mut self, deadline: Instant) -> End {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return End::Late;
            }
            let mut fds = vec![PollFd::new(self.outcome, PollFlags::IN)];
            fds.extend(self.said.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let wanted_at = fds.len();
            fds.extend(self.wanted.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return End::Lost,
            }
            let unwanted = fds.get(wanted_at).is_some_and(|fd| !fd.revents().is_empty());
            let over = !fds[0].revents().is_empty();
            drop(fds);
            self.read();
            if over {
                return self.told();
            }
            if unwanted {
                return End::Unwanted;
            }
        }
    }

    fn told(&self) -> End {
        let mut buffer = [0; OUTCOME];
        match scm::try_recv(self.outcome.as_fd(), &mut buffer) {
            Ok(received) => serde_json::from_slice(&buffer[..received.length]).map_or(End::Lost, End::Told),
            Err(_) => End::Lost,
        }
    }

    /// Takes some of what the hook says; how much it was.
    fn read(&mut self) -> usize {
        let mut buffer = [0; 16 * 1024];
        let Some(said) = &mut self.said else {
            return 0;
        };
        match said.read(&mut buffer) {
            Ok(0) => {
                self.said = None;
                0
            }
            Ok(length) => {
                self.tail.extend_from_slice(&buffer[..length]);
                let surplus = self.tail.len().saturating_sub(WORDS);
                self.tail.drain(..surplus);
                length
            }
            Err(_) => 0,
        }
    }

    fn last_words(&mut self) -> String {
        for _ in 0..LAST_READS {
            if self.read() == 0 {
                break;
            }
        }
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

/// The keeper: brings the hook where it belongs and tells how it ended.
fn keep(hook: &Hook, hooks: &Hooks, with: &Circumstances<'_>, ends: &Ends<'_>) -> i32 {
    match go(hook, hooks, with, ends) {
        Ok(code) => code,
        Err(error) => {
            tell(ends, &not_run("make its process", &error));
            1
        }
    }
}

fn go(hook: &Hook, hooks: &Hooks, with: &Circumstances<'_>, ends: &Ends<'_>) -> std::io::Result<i32> {
    process::control(Control::ParentDeathSignal(libc::SIGKILL))?;
    let mut keep = vec![ends.state, ends.words, ends.outcome];
    keep.extend([with.within, with.mounts].into_iter().flatten());
    close_others(&keep)?;
    if let Some(mounts) = with.mounts {
        namespace::join(mounts, MOUNT)?;
    }
    let Some(init) = with.within else {
        return attend(hook, hooks, with, ends);
    };
    // The PID namespace is that of children only, and orphans are taken in only by one who is in it.
    namespace::join_process(init, NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)?;
    let attendant = clone::fork(|| {
        attend(hook, hooks, with, ends).unwrap_or_else(|error| {
            tell(ends, &not_run("make its process", &error));
            1
        })
    })?;
    pidfd::reap(attendant.pidfd.as_fd()).map(Ended::code)
}

/// Runs the hook as a child, and is the one to whom what it leaves behind falls.
fn attend(hook: &Hook, hooks: &Hooks, with: &Circumstances<'_>, ends: &Ends<'_>) -> std::io::Result<i32> {
    process::control(Control::ParentDeathSignal(libc::SIGKILL))?;
    process::control(Control::ChildSubreaper(true))?;
    let child = clone::fork(|| {
        let (step, error) = match become_it(hooks, with, ends) {
            Ok(()) => ("execute it", hook.image.exec(&hook.path)),
            Err(error) => ("prepare its process", error),
        };
        tell(ends, &not_run(step, &error));
        127
    })?;
    let outcome = match pidfd::reap(child.pidfd.as_fd())? {
        Ended::Exited(code) => Outcome::Exited(code),
        Ended::Signaled(signal) => Outcome::Signaled(signal),
    };
    // After a hook that was not run: that came first, and nobody reads this.
    tell(ends, &outcome);
    Ok(0)
}

/// In the hook's process: three descriptors, no signal blocked or ignored, a session of its own, and a working directory
/// that no container can have put anything into (CVE-2025-23266: a library that a relative LD_PRELOAD names).
fn become_it(hooks: &Hooks, with: &Circumstances<'_>, ends: &Ends<'_>) -> std::io::Result<()> {
    process::control(Control::ParentDeathSignal(libc::SIGKILL))?;
    process::reset_signals()?;
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if !with.in_place {
        rustix::process::chdir(&hooks.bundle)?;
    }
    process::set_stdio(ends.state, 0)?;
    process::set_stdio(ends.words, 1)?;
    process::set_stdio(ends.words, 2)?;
    // The last one is close-on-exec.
    process::close_all_but(&mut [ends.outcome.as_raw_fd()])
}

fn not_run(step: &str, error: &std::io::Error) -> Outcome {
    Outcome::NotRun {
        why: format!("{step}: {}", words(error)),
        errno: error.raw_os_error().unwrap_or(0),
    }
}

fn tell(ends: &Ends<'_>, outcome: &Outcome) {
    let bytes = serde_json::to_vec(outcome).unwrap_or_default();
    let _gone = scm::send(ends.outcome, &bytes, &[]);
}

pub(super) fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}
