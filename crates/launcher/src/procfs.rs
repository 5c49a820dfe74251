//! A handle on procfs that is known to be procfs, whatever lies over `/proc`.
//!
//! The handle is a detached mount: nothing can be mounted below it, and every open goes through it with no mount
//! crossed and no magic link followed (the class of CVE-2019-5736, CVE-2025-52881).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};

use crate::fault::{Context, Fault, Result};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Inode of the root directory of every procfs.
const ROOT_INODE: u64 = 1;

#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

/// The host's, for every build of this process. Closing a detached mount for the last time waits for an RCU grace period,
/// so that no builder and no init should be the one to do it.
static SHARED: OnceLock<Procfs> = OnceLock::new();

impl Procfs {
    /// The `/proc` of the mount namespace that this process was in when it first asked.
    pub fn shared() -> Result<&'static Self> {
        match SHARED.get() {
            Some(shared) => Ok(shared),
            None => {
                let new = Self::of_host()?;
                Ok(SHARED.get_or_init(|| new))
            }
        }
    }

    /// The `/proc` of the mount namespace that we are in.
    pub fn of_host() -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = open_tree(CWD, "/proc", flags).at(|| "open /proc")?;
        Self::checked(fd)
    }

    /// A new procfs of the calling process's PID namespace, mounted nowhere yet.
    pub fn new_instance() -> Result<Self> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).at(|| "make a proc file system")?;
        fsconfig_create(context.as_fd()).at(|| "make a proc file system")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .at(|| "mount a proc file system")?;
        Self::checked(fd)
    }

    fn checked(fd: OwnedFd) -> Result<Self> {
        let is_root = fstat(&fd).is_ok_and(|s| s.st_ino == ROOT_INODE);
        if is_procfs(fd.as_fd()) && is_root {
            Ok(Self(fd))
        } else {
            Err(Fault::unsupported("/proc is not a proc file system"))
        }
    }

    pub fn open(&self, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(
            &self.0,
            path.as_ref(),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )?)
    }

    /// Writes `value` in one call, as files of procfs want it.
    pub fn write(&self, path: impl AsRef<Path>, value: &[u8]) -> io::Result<()> {
        let fd = self.open(path, OFlags::WRONLY)?;
        let n = rustix::io::write(&fd, value)?;
        if n == value.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The namespace `name` (as in `/proc/<pid>/ns`) of a process; 0 is our own.
    pub fn namespace(&self, pid: i32, name: &str) -> io::Result<OwnedFd> {
        let dir = if pid == 0 {
            "thread-self/ns".to_owned()
        } else {
            format!("{pid}/ns")
        };
        let dir = self.open(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        let fd = openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&fd)?.f_type as u64 == NSFS_MAGIC {
            Ok(fd)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether what is open behind `fd` lies on a procfs.
pub(crate) fn is_procfs(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|s| s.f_type as u64 == PROC_SUPER_MAGIC)
}
