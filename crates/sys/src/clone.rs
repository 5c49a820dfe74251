//! fork and clone3(2) of a Rust closure.
//!
//! Owns the two ways in which the launcher makes a process: [`fork`] for a helper and [`Clone3`] for a process in new
//! namespaces, in a chosen cgroup or with the caller's own parent. Leaves out what the child does.
//!
//! Both run a closure in a copy of the calling process. The copy has one thread: the closure must not wait for another.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::check;

pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

const PIDFD: u64 = libc::CLONE_PIDFD as u64;
const PARENT: u64 = libc::CLONE_PARENT as u64;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Exit code of a child whose closure panicked.
pub const PANICKED: i32 = 101;

/// A child that was just made. It must be reaped by its parent, which with [`Clone3::sibling`] is not the caller.
#[derive(Debug)]
pub struct Child {
    /// As the caller's PID namespace sees it.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// `struct clone_args`, version 2 (Linux 5.7).
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What a cloned process shares and where it starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clone3<'a> {
    /// `NEW*` flags of this module.
    pub namespaces: u64,
    /// The child's parent is the caller's parent (CLONE_PARENT), which gets the signal that the caller would send.
    pub sibling: bool,
    /// A directory of the cgroup v2 hierarchy in which the child is born. One of v1 gives EBADF.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Forks with libc's own `fork`, which brings the allocator to order even if the caller has other threads.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: the child runs only `run`, which never returns into the caller's frames; libc's fork makes the
    // allocator usable in it.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => run(child),
        pid => {
            // The child cannot have been reaped yet by anyone but us, so the number is still its own.
            crate::pidfd::open(pid)
                .map(|pidfd| Child { pid, pidfd })
                .inspect_err(|_| {
                    // Nobody would know of it: a limit of descriptors, or a seccomp filter that a hook's caller has.
                    // SAFETY: plain numbers; the process is our child and has not been waited for.
                    unsafe {
                        libc::kill(pid, libc::SIGKILL);
                        libc::waitpid(pid, std::ptr::null_mut(), 0);
                    }
                })
        }
    }
}

impl Clone3<'_> {
    /// Clones the calling process, which must have one thread (libc is not told), and runs `child` in the copy.
    pub fn spawn(&self, child: impl FnOnce() -> i32) -> io::Result<Child> {
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: self.namespaces | PIDFD,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        if self.sibling {
            args.flags |= PARENT;
            args.exit_signal = 0; // the kernel refuses one here and takes the caller's
        }
        if let Some(cgroup) = self.cgroup {
            args.flags |= INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: no stack is given and CLONE_VM is not set, so this is a fork: the child goes on in its own copy of
        // this frame. `args` and `pidfd` outlive the call. The child never returns from `run`.
        let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
        if pid == 0 {
            run(child);
        }
        // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor, which nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child {
            pid: pid as i32,
            pidfd,
        })
    }
}

/// Ends the child when its closure does: neither destructors nor `atexit` handlers of the parent's copy run.
fn run(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
    crate::process::exit_now(code)
}
