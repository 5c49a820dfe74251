//! Measuring a directory: bytes on disk and inodes, by descriptor, at a bounded rate.
//!
//! What is in it belongs to a container: it can be renamed, replaced by symbolic links and nested without end while it is
//! being walked. Nothing is followed, and another file system below is not entered.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::bounds;

/// How directories are opened: never through a symbolic link in the last place.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Walked {
    pub bytes: u64,
    pub inodes: u64,
    /// Everything was counted.
    pub complete: bool,
}

/// Counts `top` and what is below it. Ends early when `stop` is set or after `limit` entries.
pub(super) fn walk(top: &Path, limit: u64, stop: &AtomicBool) -> Result<Walked, Errno> {
    let root = rustix::fs::open(top, DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&root)?;
    let mut count = Count::new(&stat);
    count.add(&stat);
    let mut stack = vec![Dir::new(root)?];
    let mut seen = 0;
    while let Some(dir) = stack.last_mut() {
        let entry = match dir.read() {
            Some(Ok(entry)) => entry,
            Some(Err(_)) => {
                count.out.complete = false;
                stack.pop();
                continue;
            }
            None => {
                stack.pop();
                continue;
            }
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        seen += 1;
        if seen > limit || stop.load(Ordering::Relaxed) {
            count.out.complete = false;
            break;
        }
        if seen.is_multiple_of(bounds::WALK_STRIDE) {
            std::thread::sleep(bounds::WALK_REST);
        }
        let at = dir.fd()?;
        // It may be gone by now, or not be a directory any more.
        let Ok(stat) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if !count.add(&stat) || FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        let Ok(below) = rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) else {
            continue;
        };
        if stack.len() < bounds::WALK_DEPTH {
            stack.push(Dir::new(below)?);
        } else {
            count.out.complete = false;
        }
    }
    Ok(count.out)
}

struct Count {
    device: u64,
    /// Inodes with several names.
    links: HashSet<u64>,
    out: Walked,
}

impl Count {
    fn new(top: &Stat) -> Self {
        Self {
            device: top.st_dev,
            links: HashSet::new(),
            out: Walked {
                complete: true,
                ..Walked::default()
            },
        }
    }

    /// Whether it belongs to the file system that is measured.
    fn add(&mut self, stat: &Stat) -> bool {
        if stat.st_dev != self.device {
            return false;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 {
            if self.links.contains(&stat.st_ino) {
                return true;
            }
            if self.links.len() < bounds::WALK_LINKS {
                self.links.insert(stat.st_ino);
            }
        }
        self.out.inodes += 1;
        self.out.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn run(top: &Path, limit: u64) -> Walked {
        walk(top, limit, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn each_inode_once_and_nothing_is_followed() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("large"), vec![1; 1 << 20]).unwrap();
        let before = run(&top, 1000);
        assert_eq!((before.inodes, before.complete), (3, true));
        fs::write(top.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(top.join("a/file"), top.join("a/b/same")).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        let after = run(&top, 1000);
        assert_eq!(after.inodes, 5);
        let grown = after.bytes - before.bytes;
        assert!((100_000..200_000).contains(&grown), "{grown}");
        assert!(walk(&top.join("link"), 10, &AtomicBool::new(false)).is_err());
    }

    #[test]
    fn it_can_be_cut_short() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for n in 0..20 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let part = run(dir.path(), 10);
        assert_eq!((part.inodes, part.complete), (11, false));
        let stopped = walk(dir.path(), 100, &AtomicBool::new(true)).unwrap();
        assert_eq!((stopped.inodes, stopped.complete), (1, false));
        // Deeper than a walk goes: what is there is counted, what is below is not, and it says so.
        let mut deep = dir.path().to_path_buf();
        for _ in 0..bounds::WALK_DEPTH + 10 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let walked = run(dir.path(), 1000);
        assert_eq!(walked.inodes, 21 + bounds::WALK_DEPTH as u64);
        assert!(!walked.complete);
    }
}
