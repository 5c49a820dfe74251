//! A mount namespace of the test's own.

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use std::path::Path;

/// Gives the calling thread, and whatever it starts from now on, a mount namespace from which nothing gets out and
/// into which nothing comes. Threads that it started earlier stay where they are, and `/proc/self` is about the
/// process's first thread: read `/proc/thread-self` instead.
pub fn isolate_mounts() {
    holdfast_sys::namespace::unshare(holdfast_sys::clone::NEWNS)
        .unwrap_or_else(|error| panic!("this test needs root: could not leave the mount namespace: {error}"));
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .unwrap_or_else(|error| panic!("could not make all mounts private: {error}"));
}

/// Mounts a tmpfs on `path`, which is made if need be.
pub fn mount_tmpfs(path: &Path) {
    std::fs::create_dir_all(path)
        .unwrap_or_else(|error| panic!("could not make {}: {error}", path.display()));
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None)
        .unwrap_or_else(|error| panic!("could not mount a tmpfs on {}: {error}", path.display()));
}
