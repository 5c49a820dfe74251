//! Removing a directory with all that lies in it, and nothing that is mounted there.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Directories below each other that are followed; each holds a descriptor.
const DEPTH: usize = 64;

/// Removes the directory `path`; one that is not there is none to remove. A mount in it, of the same file system too, is an error
/// (EXDEV), and what lies there stays. Symbolic links are removed, never followed. Its directories `places` are where something is
/// mounted otherwise: one that is not empty is an error, and nothing in it is touched.
pub fn remove(path: &Path, places: &[&str]) -> io::Result<()> {
    for place in places {
        match std::fs::remove_dir(path.join(place)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => empty(opened?.as_fd(), DEPTH)?,
    }
    std::fs::remove_dir(path)
}

fn empty(dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG.into());
    }
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Some file systems do not say what it is: then it is tried.
        let gone = match entry.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            _ => unlinkat(dir, name, AtFlags::empty()),
        };
        match gone {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                empty(below(dir, name)?.as_fd(), depth - 1)?;
                unlinkat(dir, name, AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn below(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(dir, name, flags, Mode::empty(), within)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn everything_and_no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let (top, other) = (home.path().join("top"), home.path().join("other"));
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "x").unwrap();
        fs::write(top.join("a/file"), "x").unwrap();
        fs::create_dir(top.join("mnt")).unwrap();
        fs::write(top.join("mnt/file"), "x").unwrap();
        remove(&top, &["mnt"]).unwrap_err();
        assert!(top.join("mnt/file").exists() && top.join("a/file").exists());
        fs::remove_file(top.join("mnt/file")).unwrap();
        std::os::unix::fs::symlink(&other, top.join("a/b/link")).unwrap();
        remove(&top, &["mnt"]).unwrap();
        assert!(!top.exists() && other.join("kept").exists());
        remove(&top, &["mnt"]).unwrap();
    }

    #[test]
    fn no_deeper_than_descriptors_allow() {
        let home = tempfile::tempdir().unwrap();
        let top = home.path().join("top");
        let deep: std::path::PathBuf = std::iter::repeat_n("d", DEPTH + 1).collect();
        fs::create_dir_all(top.join(deep)).unwrap();
        assert_eq!(
            remove(&top, &["mnt"]).unwrap_err().raw_os_error(),
            Some(libc::ENAMETOOLONG)
        );
    }
}
