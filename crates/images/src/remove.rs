//! Removal of a directory tree that somebody else's archive or container made: any depth, any names, never through a link.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Directories held open at a time. What lies deeper is moved up first, so that descriptors and stack stay bounded.
const MAX_OPEN: usize = 32;

/// Removes `path`, of whatever type. `scratch` is a directory of the same file system for what lies very deep. Succeeds if
/// there is nothing.
pub(crate) fn tree(path: &Path, scratch: &Path) -> std::io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    use std::os::unix::ffi::OsStrExt;
    let parent = rustix::fs::open(parent, DIRECTORY, Mode::empty())?;
    let scratch = rustix::fs::open(scratch, DIRECTORY, Mode::empty())?;
    Ok(entry(
        parent.as_fd(),
        &CString::new(name.as_bytes())?,
        scratch.as_fd(),
    )?)
}

/// Removes a directory; what lies very deep in it is moved into itself first, not out of it. Succeeds if there is nothing.
pub(crate) fn in_itself(path: &Path) -> std::io::Result<()> {
    let dir = match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut names = Vec::new();
    for child in Dir::read_from(&dir)? {
        let name = child?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in &names {
        entry(dir.as_fd(), name, dir.as_fd())?;
    }
    std::fs::remove_dir(path)
}

/// Removes the entry `name` of `parent`, of whatever type.
pub(crate) fn entry(
    parent: BorrowedFd<'_>,
    name: &CString,
    scratch: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let mut deep = Vec::new();
    directory(parent, name, scratch, 0, &mut deep)?;
    while let Some(name) = deep.pop() {
        directory(scratch, &name, scratch, 0, &mut deep)?;
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn directory(
    parent: BorrowedFd<'_>,
    name: &CString,
    scratch: BorrowedFd<'_>,
    depth: usize,
    deep: &mut Vec<CString>,
) -> rustix::io::Result<()> {
    if depth == MAX_OPEN {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let aside = format!(
            "deep-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let aside = CString::new(aside).map_err(|_| Errno::INVAL)?;
        renameat(parent, name, scratch, &aside)?;
        deep.push(aside);
        return Ok(());
    }
    let dir: OwnedFd = openat(parent, name, DIRECTORY, Mode::empty())?;
    for child in Dir::read_from(&dir)? {
        let child = child?;
        let child_name = child.file_name();
        if matches!(child_name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match child.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(&dir, child_name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        if is_dir {
            directory(dir.as_fd(), &child_name.to_owned(), scratch, depth + 1, deep)?;
        } else {
            unlinkat(&dir, child_name, AtFlags::empty())?;
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "stays").unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        let mut at = rustix::fs::open(&top, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        let scratch = dir.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        tree(&top, &scratch).unwrap();
        tree(&top, &scratch).unwrap();
        assert!(!top.exists());
        assert!(outside.exists());
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_is_removed_without_leaving_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("upper").join("d/".repeat(100))).unwrap();
        std::fs::create_dir_all(top.join("work").join("e/".repeat(100))).unwrap();
        std::fs::write(top.join("file"), "x").unwrap();
        in_itself(&top).unwrap();
        in_itself(&top).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
