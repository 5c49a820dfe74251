//! A directory that goes away with the test.

use rustix::mount::{UnmountFlags, unmount};
use std::path::{Path, PathBuf};

/// A directory under the system's temporary directory, removed when dropped, with what is mounted below it taken off
/// first (in the calling thread's mount namespace).
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// `name` goes into the directory's name, for the reader of `ls`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&format!("holdfast-test-{name}-"))
            .tempdir()
            .unwrap_or_else(|error| panic!("could not make a scratch directory: {error}"));
        Self { path: dir.keep() }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory below it, made with its parents.
    #[must_use]
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("could not make {}: {error}", path.display()));
        path
    }

    /// A file below it, with its parents and `content`.
    #[must_use]
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        let parent = path.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(parent)
            .unwrap_or_else(|error| panic!("could not make {}: {error}", parent.display()));
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("could not write {}: {error}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut mounts = crate::procfs::mount_points("thread-self");
        mounts.retain(|point| point.starts_with(&self.path));
        // Newest first, so that what covers comes off before what is covered.
        for point in mounts.iter().rev() {
            let _ = unmount(point.as_path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if !std::thread::panicking() => {
                panic!("could not remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}
