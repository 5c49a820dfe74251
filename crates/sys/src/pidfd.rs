//! Process descriptors: opening, signalling, waiting, asking for an exit code.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::check;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    /// Killed by this signal.
    Signaled(i32),
}

impl Ended {
    /// The shell's convention: 128 + signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// Opens the process with number `pid`. The caller knows by other means that the number was not given out anew.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in, a new descriptor out.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal`; 0 only checks that the process is there.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for what kill(2) would send.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Whether the process has ended, reaped or not.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut watched = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    Ok(poll(&mut watched, Some(&Timespec::default()))? > 0)
}

/// Reaps a child without waiting: `None` while it lives. A process that is not our child gives ECHILD.
pub fn try_reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ended>> {
    wait(pidfd, libc::WNOHANG)
}

/// Waits for a child and reaps it.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Ended> {
    loop {
        match wait(pidfd, 0) {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn wait(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<Option<Ended>> {
    // SAFETY: an all-zero siginfo is valid, and the kernel fills it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives for the whole call.
    let result = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as libc::id_t,
            &raw mut info,
            libc::WEXITED | flags,
        )
    };
    check(result.into())?;
    // SAFETY: after a successful waitid these fields are set, or all zero where nothing was reaped.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Ended::Exited(status),
        _ => Ended::Signaled(status),
    }))
}

/// A child that was reaped by [`reap_any`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    pub pid: i32,
    pub ended: Ended,
}

/// Reaps one child that has ended, whichever it is. `None`: none has, or there is no child.
pub fn reap_any() -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: `status` lives for the whole call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    match pid {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            e => Err(e),
        },
        0 => Ok(None),
        pid => Ok(Some(Reaped {
            pid,
            ended: Ended::from_wait_status(status),
        })),
    }
}

/// How a process that is not our child ended, from PIDFD_GET_INFO (Linux 6.15, and the descriptor opened before the
/// process was reaped). `None`: it lives, or the kernel does not say.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ended>> {
    /// `struct pidfd_info` up to `exit_code` and padding (PIDFD_INFO_SIZE_VER1).
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroupid: u64,
        pid: u32,
        tgid: u32,
        ppid: u32,
        ids: [u32; 8],
        exit_code: i32,
        coredump_mask: u32,
        spare: u32,
    }
    const INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xFF, 11, struct pidfd_info): the size is part of the number, and the kernel takes any from version 0 up.
    const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<Info>() as u64) << 16) | (0xff << 8) | 11;
    let mut info = Info {
        mask: INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the request carries the size of `info`, which lives for the whole call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result == -1 {
        return match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH)) => Ok(None),
            e => Err(e),
        };
    }
    Ok((info.mask & INFO_EXIT != 0).then(|| Ended::from_wait_status(info.exit_code)))
}
