//! Owner, mode, xattrs and times of what was unpacked.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Outcome;
use crate::error::UnpackError;
use crate::merged::OPAQUE;
use crate::tar::Entry;

/// What becomes of an xattr of the archive.
#[derive(Debug, PartialEq, Eq)]
enum Rule {
    Set,
    Drop,
    Refuse,
}

/// Overlayfs's own attributes say which files to show: from an archive they would be a way to show others. Labels of
/// security modules belong to the host; the launcher sets them by mount option.
fn rule(name: &[u8]) -> Rule {
    if name.starts_with(b"trusted.overlay.") {
        Rule::Refuse
    } else if name == b"security.capability"
        || name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"system.posix_acl_")
    {
        Rule::Set
    } else {
        Rule::Drop
    }
}

/// Sets everything but the time on an open file or directory: the owner first, as that clears set-id bits and capabilities.
pub(super) fn apply(fd: &OwnedFd, entry: &Entry) -> Outcome<()> {
    let failed = |action| move |e: Errno| UnpackError::io(action, &entry.path, e);
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(failed("change the owner of"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(failed("change the mode of"))?;
    for (name, value) in &entry.xattrs {
        let shown = || String::from_utf8_lossy(name).into_owned();
        match rule(name) {
            Rule::Drop => continue,
            Rule::Refuse => {
                let reason = format!("has the attribute {}, which no archive may set", shown());
                return Err(UnpackError::entry(&entry.path, reason));
            }
            Rule::Set => {}
        }
        match rustix::fs::fsetxattr(fd, &**name, value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file without its capability would run and fail in odd ways; other attributes are not missed.
            Err(Errno::OPNOTSUPP) if name != b"security.capability" => {}
            Err(e) => {
                let reason = format!(
                    "has the attribute {}, which cannot be set: {}",
                    shown(),
                    std::io::Error::from(e)
                );
                return Err(UnpackError::entry(&entry.path, reason));
            }
        }
    }
    Ok(())
}

/// Sets owner, mode (unless it is a link) and time by name, on something that was just made in a private directory. Links and
/// devices get no xattrs: none of those that images carry is allowed on them.
pub(super) fn apply_at(parent: &OwnedFd, name: &[u8], entry: &Entry, mode: bool) -> Outcome<()> {
    let failed = |action| move |e: Errno| UnpackError::io(action, &entry.path, e);
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("change the owner of"))?;
    if mode {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(failed("change the mode of"))?;
    }
    rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the time of"))
}

/// Sets access and modification time.
pub(crate) fn set_times(fd: impl AsFd, time: (i64, u32)) -> rustix::io::Result<()> {
    rustix::fs::futimens(fd, &times(time))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanos),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Makes a directory hide those of the same path in lower layers.
pub(crate) fn set_opaque(dir: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_attributes_an_archive_may_set() {
        assert_eq!(rule(b"security.capability"), Rule::Set);
        assert_eq!(rule(b"user.comment"), Rule::Set);
        assert_eq!(rule(b"security.selinux"), Rule::Drop);
        assert_eq!(rule(b"trusted.overlay.redirect"), Rule::Refuse);
        assert_eq!(rule(b"trusted.overlay.overlay.opaque"), Rule::Refuse);
    }
}
