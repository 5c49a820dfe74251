//! The tiny tree that is pause's root and, copied, the first root of every container of the pod while it is built.
//!
//! The container's root is attached over it (with a user namespace at `/root`), `/empty` and `/null` are what masked paths are covered with,
//! `/proc` shows a whole procfs where a user namespace needs one to be allowed its own, `/shm` is the pod's /dev/shm,
//! `/pause` the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat, openat2};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::fault::{Context, Fault, Result};
use crate::mounts::tmpfs;
use crate::selinux::Label;

pub(crate) const ROOT: &str = "root";
pub(crate) const EMPTY: &str = "empty";
pub(crate) const NULL: &str = "null";
pub(crate) const PROC: &str = "proc";
pub(crate) const SHM: &str = "shm";
/// Where pause's program is bound, read-only.
pub(crate) const PAUSE: &str = "pause";

/// Makes the tree, attached nowhere yet.
pub(crate) fn make(label: Option<Label<'_>>) -> Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mut options = vec![
        ("mode".to_owned(), Some("555".to_owned())),
        ("size".to_owned(), Some("64k".to_owned())),
    ];
    // What covers masked paths must be the container's to look at.
    options.extend(label.map(Label::option));
    let tree = tmpfs(&options, attributes)?;
    for name in [ROOT, EMPTY, PROC, SHM] {
        mkdirat(&tree, name, Mode::from_raw_mode(0o555)).at(|| format!("make staging /{name}"))?;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(&tree, PAUSE, flags, Mode::from_raw_mode(0o444)).at(|| "make staging /pause")?;
    mknodat(
        &tree,
        NULL,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .at(|| "make staging /null")?;
    Ok(tree)
}

/// Opens a place of the tree, which is the calling process's root.
pub(crate) fn open(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    openat2(
        root,
        name,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .at(|| format!("open staging /{name}"))
}

/// The process's root directory.
pub(crate) fn root() -> Result<OwnedFd> {
    openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at(|| "open /")
}

/// A detached copy of the mount at an open place, and of what is below it with `recursive`.
pub(crate) fn clone_tree(place: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags)
}

/// Covers masked files: a null device that is checked to be one (CVE-2025-31133).
pub(crate) fn null_clone(null: BorrowedFd<'_>) -> Result<OwnedFd> {
    let clone = clone_tree(null, false).at(|| "clone the null device")?;
    if is_null(clone.as_fd()) {
        Ok(clone)
    } else {
        Err(Fault::unsupported("staging /null is not the null device"))
    }
}

/// Whether `fd` is the null device.
pub(crate) fn is_null(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|s| {
        FileType::from_raw_mode(s.st_mode).is_char_device() && s.st_rdev == rustix::fs::makedev(1, 3)
    })
}
