//! A container's bundle: the directory, and the mount namespace in which its root file system lies.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use holdfast_sys::namespace;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};

use crate::fault::{Context, Fault, Result};
use crate::mountinfo;
use crate::namespaces::MOUNT;
use crate::place::attach;
use crate::procfs::Procfs;
use crate::staging;

pub(crate) const ROOT: &str = "rootfs";
pub(crate) const SHM: &str = "shm";
/// The staging tree of the launcher, where hooks are to find it.
pub(crate) const STAGING: &str = "staging";
pub(crate) const CONFIG: &str = "config.json";

/// Makes the directory, empty.
pub(crate) fn make(bundle: &Path) -> Result<()> {
    remove(bundle)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(bundle.join(ROOT))
        .at(|| format!("make the bundle {}", bundle.display()))
}

/// Removes the directory with what lies in it, and what hooks have left there: it is their working directory. Some of the
/// directories are mount points in a mount namespace elsewhere; the kernel takes those mounts off. What is mounted here, or lies
/// where the container's mounts do, is not ours.
pub(crate) fn remove(bundle: &Path) -> Result<()> {
    holdfast_sys::tree::remove(bundle, &[ROOT, SHM, STAGING])
        .at(|| format!("remove the bundle {}", bundle.display()))
}

pub(crate) fn write(bundle: &Path, spec: &serde_json::Value) -> Result<()> {
    write_file(&bundle.join(CONFIG), spec)
}

pub(crate) fn write_file(path: &Path, value: &serde_json::Value) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .at(what)?;
    file.write_all(value.to_string().as_bytes()).at(what)
}

/// The pod's /dev/shm out of pause's mount namespace, as a mount that is attached nowhere. Leaves the caller in `host`.
pub(crate) fn pod_shm(pause: BorrowedFd<'_>, host: BorrowedFd<'_>) -> Result<OwnedFd> {
    namespace::join(pause, MOUNT).at(|| "join the pod's mount namespace")?;
    let clone = staging::root()
        .and_then(|root| staging::open(root.as_fd(), staging::SHM))
        .and_then(|shm| staging::clone_tree(shm.as_fd(), false).at(|| "clone the pod's /dev/shm"));
    namespace::join(host, MOUNT).at(|| "go back to the host's mount namespace")?;
    clone
}

/// A copy of the host's mount namespace with its peer groups, so that volumes propagate in both directions, and in which
/// what is mounted in the bundle stays unseen by the host.
pub(crate) fn enter_copy(bundle: &Path, proc: &Procfs) -> Result<OwnedFd> {
    namespace::unshare(MOUNT).at(|| "copy the host's mount namespace")?;
    let copy = proc
        .namespace(0, "mnt")
        .at(|| "open the copied mount namespace")?;
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").at(|| "read mountinfo")?;
    let lines = mountinfo::parse(&text);
    if !is_private(&lines, bundle) {
        return Err(Fault::unsupported(format!(
            "{} must lie on a private mount of its own, or the host would see the container's root file system: \
             restart the daemon, which makes that mount",
            bundle.display()
        )));
    }
    for place in mountinfo::lone_namespaces(&lines) {
        // Else the copy would keep other pods' network namespaces alive.
        let _there = unmount(place, UnmountFlags::DETACH);
    }
    Ok(copy)
}

fn is_private(lines: &[mountinfo::Line], bundle: &Path) -> bool {
    // The last line of a place is its topmost mount.
    let parent = bundle.parent().unwrap_or(bundle);
    lines
        .iter()
        .rev()
        .find(|line| Path::new(&line.place) == parent)
        .is_some_and(|line| !line.shared)
}

/// Puts a mount at a new directory of the bundle.
pub(crate) fn place(bundle: &Path, name: &str, mount: BorrowedFd<'_>) -> Result<()> {
    let at = bundle.join(name);
    let what = || format!("mount at {}", at.display());
    match std::fs::create_dir(&at) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).at(what),
        _ => {}
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&at, flags, Mode::empty()).at(what)?;
    attach(mount, fd.as_fd()).at(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_removed_and_nothing_deeper() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        make(&bundle).unwrap();
        write(&bundle, &serde_json::json!({})).unwrap();
        remove(&bundle).unwrap();
        assert!(!bundle.exists());
        remove(&bundle).unwrap();
        make(&bundle).unwrap();
        std::fs::write(bundle.join(ROOT).join("file"), "x").unwrap();
        assert!(
            remove(&bundle).is_err(),
            "what is mounted there must not be deleted"
        );
        assert!(bundle.join(ROOT).join("file").exists());
        std::fs::remove_file(bundle.join(ROOT).join("file")).unwrap();
        // A hook's cache.
        std::fs::create_dir_all(bundle.join("out/deep")).unwrap();
        std::fs::write(bundle.join("out/deep/file"), "x").unwrap();
        remove(&bundle).unwrap();
        assert!(!bundle.exists());
    }

    #[test]
    fn the_topmost_mount_counts() {
        let lines = mountinfo::parse(
            "1 0 8:1 / / rw shared:1 - ext4 a rw\n2 1 8:1 / /b rw shared:1 - ext4 a rw\n3 2 8:1 / /b rw - ext4 a rw\n",
        );
        assert!(is_private(&lines, Path::new("/b/id")));
        assert!(!is_private(&lines[..2], Path::new("/b/id")));
        assert!(!is_private(&lines, Path::new("/c/id")));
    }
}
