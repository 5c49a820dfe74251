//! Places inside a container's root: finding them and making mount points, never outside it.
//!
//! Everything is resolved by descriptor with openat2(2): a symbolic link in the image, `..` or a magic link of procfs
//! cannot lead out of the root, and nothing that was checked is opened again by name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::fault::{Context, Fault, Result};

/// Dangling symbolic links that are followed while a mount point is made (as the kernel's own limit, 40).
const LINK_LIMIT: usize = 40;
/// Retries where a rename or mount elsewhere raced with the kernel's check of `..`.
const RACE_LIMIT: usize = 64;

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Directory,
    File,
}

/// A container's root directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root<'a> {
    pub fd: BorrowedFd<'a>,
    /// Owner of what is made in it: the container's root, in ids of the host.
    pub owner: (u32, u32),
}

impl Root<'_> {
    /// Opens what `path` leads to in the container, as a bare location.
    pub fn find(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// Opens a file of the container.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        resolve(
            self.fd,
            path,
            flags,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// As [`Root::find`], but through no symbolic link at all.
    pub fn find_plain(&self, path: &Path) -> io::Result<OwnedFd> {
        resolve(
            self.fd,
            path,
            OFlags::PATH,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// Finds `path` or makes it, with the directories above it.
    pub fn ensure(&self, path: &Path, want: Want) -> Result<OwnedFd> {
        let fd = self
            .ensure_at(path, want, LINK_LIMIT)
            .at(|| format!("make {} in the container's root", path.display()))?;
        let is_dir = is_dir(fd.as_fd()).at(|| format!("look at {}", path.display()))?;
        match (want, is_dir) {
            (Want::Directory, false) => Err(Fault::invalid(format!(
                "{} in the container is not a directory, but a directory is to be mounted there",
                path.display()
            ))),
            (Want::File, true) => Err(Fault::invalid(format!(
                "{} in the container is a directory, but a file is to be mounted there",
                path.display()
            ))),
            _ => Ok(fd),
        }
    }

    fn ensure_at(&self, path: &Path, want: Want, links: usize) -> io::Result<OwnedFd> {
        match self.find(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else {
            // `..` at the end, or nothing at all.
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let parent = self.ensure_at(above, Want::Directory, links)?;
        match self.make(parent.as_fd(), Path::new(name), want) {
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
            Ok(()) => {
                return resolve(
                    parent.as_fd(),
                    Path::new(name),
                    OFlags::PATH,
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
                );
            }
        }
        // It was not found and yet is there: a symbolic link to nowhere, whose target is made instead.
        if links == 0 {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = readlinkat(&parent, name, Vec::new())?;
        let target = PathBuf::from(std::ffi::OsString::from(target.to_string_lossy().into_owned()));
        let target = if target.is_absolute() {
            target
        } else {
            above.join(target)
        };
        self.ensure_at(&target, want, links - 1)
    }

    fn make(&self, parent: BorrowedFd<'_>, name: &Path, want: Want) -> Result<(), Errno> {
        match want {
            Want::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
            Want::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                drop(openat(parent, name, flags, Mode::from_raw_mode(0o644))?);
            }
        }
        if self.owner != (0, 0) {
            let (uid, gid) = self.owner;
            chownat(
                parent,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        Ok(())
    }
}

fn resolve(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, how: ResolveFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    for _ in 0..RACE_LIMIT {
        match openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

pub(crate) fn is_dir(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::FileType::from_raw_mode(fstat(fd)?.st_mode).is_dir())
}

/// Attaches a detached mount at an open location.
pub(crate) fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        at,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A destination in the container: absolute, with `.` and empty parts gone and `..` applied to the text. Refused where
/// it is the root itself.
pub(crate) fn destination(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if out.parent().is_none() {
        return Err(Fault::invalid(format!(
            "mount destination {:?} is the container's root",
            path.display().to_string()
        )));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_cleaned() {
        let clean = |p: &str| destination(Path::new(p)).map(|p| p.display().to_string());
        assert_eq!(clean("/a/./b//c").ok().as_deref(), Some("/a/b/c"));
        assert_eq!(clean("a/../../b").ok().as_deref(), Some("/b"));
        assert!(clean("/").is_err());
        assert!(clean("/..").is_err());
    }
}
