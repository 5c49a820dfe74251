//! Whether file systems can show their files through the ids of a user namespace (idmapped mounts).
//!
//! Which can has grown with nearly every kernel since 5.12 (tmpfs: 6.3): it is tried, not looked up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};

use crate::mount::{Attributes, set_attributes};

/// The file system that `path` is on. An error says why not.
pub fn directory(user: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    map(user, open_tree(CWD, path, flags)?.as_fd())
}

/// A tmpfs, as many volumes are. An error says why not.
pub fn tmpfs(user: BorrowedFd<'_>) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    map(user, mount.as_fd())
}

fn map(user: BorrowedFd<'_>, mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attributes {
        idmap: Some(user),
        ..Attributes::default()
    };
    set_attributes(mount, attributes)
}
