//! The calling process: descriptors, ids, limits, signals, its end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::check;

/// Ends the process at once: no destructor and no `atexit` handler runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches nothing.
    unsafe { libc::_exit(code) }
}

/// What the service manager says to a service by its environment (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)).
const OF_THE_SERVICE: [&str; 6] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// Keeps from a program that the daemon runs what is between the daemon and the service manager.
pub fn keep_service_private(command: &mut std::process::Command) {
    for name in OF_THE_SERVICE {
        command.env_remove(name);
    }
}

/// Closes every descriptor of the process from 3 up but those in `keep`.
///
/// For a freshly forked child that will never drop what it inherited: owners of closed descriptors that live on in the
/// child's copy of memory must be forgotten, not dropped.
pub fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut from: u32 = 3;
    for fd in keep.iter().filter(|fd| **fd >= 3) {
        let fd = *fd as u32;
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: plain numbers. Closing is what the caller promises.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Makes `fd` the standard descriptor `number` (0 to 2), not close-on-exec.
pub fn set_stdio(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if !(0..=2).contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if fd.as_raw_fd() == number {
        // dup2 onto itself would leave close-on-exec as it is.
        // SAFETY: F_SETFD takes a number.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: the standard descriptors are not owned by any Rust value that would be surprised.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Closes the three standard descriptors, for a program that is to have none. Whatever is opened next gets their
/// numbers.
pub fn close_stdio() {
    for number in 0..3 {
        // SAFETY: nothing in Rust owns the standard descriptors; one that is closed already is no harm.
        unsafe { libc::close(number) };
    }
}

/// A descriptor that a process was started with, by number (such as the socket at 0).
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor or fails.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    check(fd.into())?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over the descriptor `number` that this process was started with (kept across an exec), and marks it
/// close-on-exec.
///
/// # Safety contract
/// Called once for each number, early in `main`, for descriptors that nothing else owns: a second owner would close it
/// under the first. A number that is not open gives EBADF.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes a number and fails on one that is not open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: it is open (just checked), and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Becomes the given user of this thread's user namespace. Real, effective and saved ids are set.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    set_groups(groups)?;
    // SAFETY: plain numbers; the raw calls change the calling thread alone.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Sets the supplementary groups of this thread.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length belong to one slice of gid_t, which the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Every signal to its default action, and none blocked.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler. The kernel refuses SIGKILL and SIGSTOP, and libc keeps two for itself.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty set is built in place and read by the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()).into())
    }
    .map(drop)
}

/// Blocks these signals and no others. The mask outlives execve.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    // SAFETY: the set is built in place and read by the call; an invalid number is refused by sigaddset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            check(libc::sigaddset(&raw mut set, *signal).into())?;
        }
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()).into())
    }
    .map(drop)
}

/// Makes the terminal behind `fd` the controlling one of the session that this process leads.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// The other end of the pseudo-terminal master `fd`, opened without a path (TIOCGPTPEER).
pub fn terminal_peer(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes open flags and returns a new descriptor.
    let peer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    check(peer.into())?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// A soft and a hard limit; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// Sets resource limit `resource` (an `RLIMIT_*` number) and returns the old one; `None` only reads.
pub fn limit(resource: u32, new: Option<Limit>) -> io::Result<Limit> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let value = new.map(|l| libc::rlimit64 {
        rlim_cur: l.soft,
        rlim_max: l.hard,
    });
    let pointer = value.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both structures live for the whole call; null means "do not set".
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, pointer, &raw mut old) })?;
    Ok(Limit {
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// prctl(2) operations that take numbers only.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    NoNewPrivs,
    /// Whether /proc/<pid> and ptrace are open to the same user.
    Dumpable(bool),
    /// Whether orphaned descendants become this process's children.
    ChildSubreaper(bool),
    /// The signal that the process gets when its parent thread ends; 0: none.
    ParentDeathSignal(i32),
    /// Whether permitted capabilities survive a change from uid 0.
    KeepCapabilities(bool),
    DropBounding(u32),
    ClearAmbient,
    RaiseAmbient(u32),
}

/// Does `control`.
pub fn control(control: Control) -> io::Result<()> {
    const AMBIENT_RAISE: u64 = 2;
    const AMBIENT_CLEAR_ALL: u64 = 4;
    let (operation, a, b) = match control {
        Control::NoNewPrivs => (libc::PR_SET_NO_NEW_PRIVS, 1, 0),
        Control::Dumpable(on) => (libc::PR_SET_DUMPABLE, u64::from(on), 0),
        Control::ChildSubreaper(on) => (libc::PR_SET_CHILD_SUBREAPER, u64::from(on), 0),
        Control::ParentDeathSignal(signal) => (libc::PR_SET_PDEATHSIG, signal as u64, 0),
        Control::KeepCapabilities(on) => (libc::PR_SET_KEEPCAPS, u64::from(on), 0),
        Control::DropBounding(cap) => (libc::PR_CAPBSET_DROP, u64::from(cap), 0),
        Control::ClearAmbient => (libc::PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0),
        Control::RaiseAmbient(cap) => (libc::PR_CAP_AMBIENT, AMBIENT_RAISE, u64::from(cap)),
    };
    // SAFETY: none of these operations takes a pointer.
    check(unsafe { libc::prctl(operation, a, b, 0, 0) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_program_does_not_get_what_is_the_services() {
        let mut command = std::process::Command::new("env");
        command.env("NOTIFY_SOCKET", "/run/x").env("WATCHDOG_PID", "1");
        command.env("OTHER", "stays");
        keep_service_private(&mut command);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("OTHER=stays"), "{text}");
        assert!(!text.contains("NOTIFY") && !text.contains("WATCHDOG"), "{text}");
    }
}
