//! Reading and writing the kernel's files, relative to a hierarchy's root, with errors that name them.

use crate::Error;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// No file of a cgroup is longer: a pid takes 8 bytes, and pid_max is at most 2^22.
const MAX_FILE: usize = 64 << 20;

/// The root of one mounted cgroup file system.
#[derive(Debug)]
pub(crate) struct Root {
    pub fd: OwnedFd,
    /// Its mount point, for error texts.
    pub at: String,
}

/// A file below `root` as errors name it.
pub(crate) fn name(root: &Root, dir: &str, file: &str) -> String {
    let mut out = root.at.clone();
    for part in [dir, file] {
        if !part.is_empty() {
            out.push('/');
            out.push_str(part);
        }
    }
    out
}

fn join(dir: &str, file: &str) -> String {
    if dir.is_empty() {
        file.to_owned()
    } else {
        format!("{dir}/{file}")
    }
}

pub(crate) fn open(root: &Root, dir: &str, file: &str, flags: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::openat(
        &root.fd,
        join(dir, file),
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(|errno| Error::Open {
        file: name(root, dir, file),
        source: errno.into(),
    })
}

/// Opens a directory of a cgroup; `dir` may be empty for the root itself.
pub(crate) fn open_dir(root: &Root, dir: &str) -> Result<OwnedFd, Error> {
    let dir = if dir.is_empty() { "." } else { dir };
    open(root, "", dir, OFlags::RDONLY | OFlags::DIRECTORY)
}

pub(crate) fn exists(root: &Root, dir: &str, file: &str) -> bool {
    rustix::fs::accessat(
        &root.fd,
        join(dir, file),
        rustix::fs::Access::EXISTS,
        AtFlags::empty(),
    )
    .is_ok()
}

/// Writes `value` in one write(2), as the kernel wants it.
pub(crate) fn write(root: &Root, dir: &str, file: &str, value: &str) -> Result<(), Error> {
    let fail = |errno: Errno| Error::Write {
        file: name(root, dir, file),
        value: value.to_owned(),
        source: errno.into(),
    };
    let fd = rustix::fs::openat(
        &root.fd,
        join(dir, file),
        OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(fail)?;
    loop {
        match rustix::io::write(&fd, value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
}

pub(crate) fn read(root: &Root, dir: &str, file: &str) -> Result<String, Error> {
    let fd = open(root, dir, file, OFlags::RDONLY)?;
    read_fd(&fd).map_err(|errno| Error::Read {
        file: name(root, dir, file),
        source: errno.into(),
    })
}

/// Reads an open file of the kernel's from its beginning.
pub(crate) fn read_fd(fd: &OwnedFd) -> Result<String, Errno> {
    let mut out = Vec::with_capacity(512);
    let mut chunk = [0u8; 8192];
    loop {
        match rustix::io::pread(fd, &mut chunk, out.len() as u64) {
            Ok(0) => break,
            Ok(n) => out.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if out.len() > MAX_FILE {
            return Err(Errno::FBIG);
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Holds what [`read_short`] reads.
pub(crate) const SHORT: usize = 8192;

/// Reads a file whose whole text the kernel makes at once, with one pread: a second one, which would say that this was
/// the end, would have it made again. Text beyond the buffer is left out.
pub(crate) fn read_short<'a>(fd: &OwnedFd, buffer: &'a mut [u8; SHORT]) -> Result<&'a str, Errno> {
    let len = loop {
        match rustix::io::pread(fd, &mut buffer[..], 0) {
            Ok(len) => break len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    std::str::from_utf8(&buffer[..len]).map_err(|_| Errno::ILSEQ)
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// Names of the directories in an open directory.
pub(crate) fn subdirectories(fd: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut out = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == rustix::fs::FileType::Directory && name != c"." && name != c".." {
            // Names come from whoever may make cgroups there; one that is not UTF-8 cannot be ours, but is removable.
            out.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(out)
}
