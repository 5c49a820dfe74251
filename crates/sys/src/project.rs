//! Project ids of files, and what a file system accounts for under one.
//!
//! Owns FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR and quotactl_fd(2) with Q_GETQUOTA of projects. Leaves out limits: nothing here
//! sets one. What holders of an id may do with it is the caller's to know; see [`set`].

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::opcode;

/// linux/fs.h: what is made in the directory has the directory's project id.
const PROJINHERIT: u32 = 0x200;
/// linux/quota.h: Q_GETQUOTA of PRJQUOTA, as QCMD puts them together.
const GET_PROJECT: u32 = (0x0080_0007 << 8) | 2;

/// struct fsxattr of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// What is accounted for under one project id, in one file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Space that is taken or promised (written, but without a place on the disk yet).
    pub bytes: u64,
    pub inodes: u64,
    /// Somebody has set a limit on it.
    pub limited: bool,
}

impl Account {
    /// Nobody uses this id, nor has plans for it.
    #[must_use]
    pub fn unused(&self) -> bool {
        *self == Self::default()
    }
}

fn read(fd: impl AsFd) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    // SAFETY: the kernel writes one structure, which lives for the whole call; the descriptor is borrowed for as long.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            opcode::read::<FsXattr>(b'X', 31) as _,
            &raw mut attributes,
        )
    };
    crate::check(result.into())?;
    Ok(attributes)
}

/// The project id of a file or directory; 0: none. ENOTTY or EOPNOTSUPP where the file system has no such thing.
pub fn get(fd: impl AsFd) -> io::Result<u32> {
    Ok(read(fd)?.project)
}

/// Gives a directory a project id, which what is made in it from now on inherits. 0 takes id and inheritance away.
///
/// In a directory that hands its id down the kernel refuses (EXDEV) hard links to, and renames of, what has another id:
/// directories between which files move must have the same. An id is no fence: whoever owns a file may change it, unless
/// it is in a user namespace other than the first.
pub fn set(fd: impl AsFd, project: u32) -> io::Result<()> {
    let mut attributes = read(fd.as_fd())?;
    attributes.project = project;
    if project == 0 {
        attributes.flags &= !PROJINHERIT;
    } else {
        attributes.flags |= PROJINHERIT;
    }
    write(fd, attributes)
}

/// Gives a file a project id, whatever its directory has; 0: none.
pub fn set_file(fd: impl AsFd, project: u32) -> io::Result<()> {
    let mut attributes = read(fd.as_fd())?;
    attributes.project = project;
    write(fd, attributes)
}

fn write(fd: impl AsFd, attributes: FsXattr) -> io::Result<()> {
    // SAFETY: the kernel reads one structure, which lives for the whole call; the descriptor is borrowed for as long.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            opcode::write::<FsXattr>(b'X', 32) as _,
            &raw const attributes,
        )
    };
    crate::check(result.into()).map(drop)
}

/// What is accounted for under `project` in the file system that `fd` is on; nothing, if the id was never used there.
/// Wants CAP_SYS_ADMIN. ESRCH (ext4) or ENOSYS (XFS, and a kernel before 5.14) where it keeps no accounts of projects.
pub fn account(fd: impl AsFd, project: u32) -> io::Result<Account> {
    // SAFETY: integers, all of them; zero is a value of each.
    let mut found: libc::dqblk = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one structure, which lives for the whole call; the descriptor is borrowed for as long.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            fd.as_fd().as_raw_fd(),
            GET_PROJECT,
            project,
            &raw mut found,
        )
    };
    match crate::check(result) {
        Ok(_) => Ok(Account {
            bytes: found.dqb_curspace,
            inodes: found.dqb_curinodes,
            limited: [
                found.dqb_bhardlimit,
                found.dqb_bsoftlimit,
                found.dqb_ihardlimit,
                found.dqb_isoftlimit,
            ]
            .iter()
            .any(|limit| *limit != 0),
        }),
        // XFS has no record of an id before its first use.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Account::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_has_no_projects_says_so() {
        assert_eq!(size_of::<FsXattr>(), 28);
        let (reader, _writer) = io::pipe().unwrap();
        assert!(get(&reader).is_err());
        assert!(set(&reader, 7).is_err());
        assert!(account(&reader, 7).is_err());
        // /proc never has, whatever the disks have.
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(set(&proc, 7).is_err());
        assert!(account(&proc, 7).is_err());
    }
}
