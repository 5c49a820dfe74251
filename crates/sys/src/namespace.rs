//! setns(2), unshare(2) and the identity of namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::unlink;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::check;

/// Joins the namespace behind `fd`, which must be of the one `kind` given (a `clone::NEW*` flag; 0: any).
pub fn join(fd: BorrowedFd<'_>, kind: u64) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a number; it changes only the calling thread's namespaces.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), kind as libc::c_int) }).map(drop)
}

/// Joins several namespaces of the process behind `pidfd` at once (Linux 5.8).
pub fn join_process(pidfd: BorrowedFd<'_>, kinds: u64) -> io::Result<()> {
    join(pidfd, kinds)
}

/// Takes the mount that holds a namespace off `path`, and removes the file. What is not there, or not a mount, is no error.
pub fn unbind(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Moves the calling thread into new namespaces of the given kinds.
///
/// CLONE_FILES and the like, which would make descriptors come and go behind Rust's back, are refused.
pub fn unshare(kinds: u64) -> io::Result<()> {
    use crate::clone::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS};
    if kinds & !(NEWCGROUP | NEWIPC | NEWNET | NEWNS | NEWPID | NEWUSER | NEWUTS) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: only namespace flags are passed; they touch no memory and no descriptor.
    check(unsafe { libc::syscall(libc::SYS_unshare, kinds as libc::c_int) }).map(drop)
}

/// Whether two descriptors name the same namespace (or any same file).
pub fn same(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let a = rustix::fs::fstat(a)?;
    let b = rustix::fs::fstat(b)?;
    Ok(a.st_dev == b.st_dev && a.st_ino == b.st_ino)
}
