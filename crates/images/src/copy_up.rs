//! Copies of files of lower layers, which an archive can ask for with a hard link of a few bytes: holes stay holes, and what is
//! copied counts for the layer that asked, is bounded by its limits and by the free disk, and stops with its pull.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, openat};
use rustix::io::Errno;

use crate::Limits;
use crate::effort::Effort;
use crate::error::UnpackError;
use crate::unpack::{DISK_CHECK, Outcome, check_disk, set_times};

/// Bytes that are copied between two looks at whether the pull still runs.
const STEP: u64 = 8 << 20;

/// What the copies of one layer may still cost.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    limits: &'a Limits,
    effort: &'a Effort,
    /// Bytes left of the layer's limit.
    left: u64,
    /// Bytes written since the disk was looked at.
    unchecked: u64,
}

impl<'a> Budget<'a> {
    /// For a layer that has `used` bytes of its own; stopping `effort` ends it.
    pub fn new(limits: &'a Limits, used: u64, effort: &'a Effort) -> Self {
        Self {
            limits,
            effort,
            left: limits.layer_bytes.saturating_sub(used),
            unchecked: DISK_CHECK,
        }
    }

    fn spend(&mut self, bytes: u64, disk: impl AsFd) -> Outcome<()> {
        if self.effort.is_stopped() {
            return Err(UnpackError::Interrupted);
        }
        self.left = self.left.checked_sub(bytes).ok_or(UnpackError::Limit {
            what: "bytes when unpacked, with the files of lower layers that it links to",
            limit: self.limits.layer_bytes,
        })?;
        if self.unchecked >= DISK_CHECK {
            check_disk(disk, self.limits)?;
            self.unchecked = 0;
        }
        self.unchecked += bytes;
        Ok(())
    }
}

/// A file of a lower layer: its directory, its name there and what it is.
pub(crate) struct Source<'a> {
    pub dir: &'a OwnedFd,
    pub name: &'a [u8],
    pub stat: &'a Stat,
}

/// Copies a file of whatever type, with its attributes. `path` names it in errors.
pub(crate) fn copy_up(
    from: &Source<'_>,
    (to, to_name): (&OwnedFd, &[u8]),
    path: &[u8],
    budget: &mut Budget<'_>,
) -> Outcome<()> {
    let failed = |e| UnpackError::io("copy from a lower layer", path, e);
    let kind = FileType::from_raw_mode(from.stat.st_mode);
    if kind == FileType::RegularFile {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = openat(from.dir, from.name, flags, Mode::empty()).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to, to_name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let (mut source, mut target) = (File::from(source), File::from(target));
        data(&mut source, &mut target, path, budget)?;
        return copy_attributes(&source.into(), &target.into()).map_err(failed);
    }
    special(from, kind, (to, to_name)).map_err(failed)
}

/// Copies what is not a hole.
fn data(source: &mut File, target: &mut File, path: &[u8], budget: &mut Budget<'_>) -> Outcome<()> {
    let failed = |e: std::io::Error| UnpackError::io("copy from a lower layer", path, e);
    let size = source.metadata().map_err(failed)?.len();
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(failed(e.into())),
        };
        let end = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(at)).map_err(|e| failed(e.into()))?;
        source.seek(SeekFrom::Start(at)).map_err(failed)?;
        target.seek(SeekFrom::Start(at)).map_err(failed)?;
        while at < end {
            let step = (end - at).min(STEP);
            budget.spend(step, &*target)?;
            let copied = std::io::copy(&mut source.by_ref().take(step), target).map_err(failed)?;
            if copied != step {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            at += step;
        }
    }
    target.set_len(size).map_err(failed)
}

/// Makes a link, device node or pipe like the one of the lower layer.
fn special(from: &Source<'_>, kind: FileType, (to, name): (&OwnedFd, &[u8])) -> rustix::io::Result<()> {
    let stat = from.stat;
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(from.dir, from.name, Vec::new())?;
        rustix::fs::symlinkat(&target, to, name)?;
    } else {
        rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?;
    }
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    Ok(())
}

/// Owner, mode, xattrs and times, those of overlayfs itself left out.
pub(crate) fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    // Sizes as the kernel bounds them: XATTR_LIST_MAX and XATTR_SIZE_MAX.
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    for name in names[..length]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty() && !n.starts_with(b"trusted.overlay."))
    {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // Labels of a security module are not copied by hand.
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            other => other?,
        }
    }
    set_times(
        to,
        (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// Copies a file with a hole between two pieces of 1 MiB, and another behind them.
    fn copied(limits: &Limits, used: u64, stop: bool) -> (Outcome<()>, File, File) {
        let mut source = tempfile::tempfile_in("/var/tmp").unwrap();
        for at in [0, 1 << 30] {
            source.write_all_at(&vec![7; 1 << 20], at).unwrap();
        }
        source.set_len(4 << 30).unwrap();
        let mut target = tempfile::tempfile_in("/var/tmp").unwrap();
        let effort = Effort::new(0);
        if stop {
            effort.stop();
        }
        let mut budget = Budget::new(limits, used, &effort);
        let result = data(&mut source, &mut target, b"f", &mut budget);
        (result, source, target)
    }

    #[test]
    fn holes_stay_and_count_for_nothing() {
        let limits = Limits {
            layer_bytes: 10 << 20,
            ..Limits::default()
        };
        let (result, _, target) = copied(&limits, 8 << 20, false);
        result.unwrap();
        let meta = target.metadata().unwrap();
        assert_eq!(meta.len(), 4 << 30);
        assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
        let mut bytes = vec![0; 1 << 20];
        target.read_exact_at(&mut bytes, 1 << 30).unwrap();
        assert!(bytes.iter().all(|b| *b == 7));
    }

    #[test]
    fn the_limit_the_disk_and_the_pull_s_end_stop_it() {
        let limits = Limits {
            layer_bytes: 10 << 20,
            ..Limits::default()
        };
        let (result, ..) = copied(&limits, 9 << 20, false);
        assert!(matches!(result, Err(UnpackError::Limit { limit, .. }) if limit == 10 << 20));
        let full = Limits {
            reserve_bytes: u64::MAX,
            ..Limits::default()
        };
        let (result, _, target) = copied(&full, 0, false);
        assert!(matches!(result, Err(UnpackError::DiskFull { .. })));
        assert_eq!(target.metadata().unwrap().len(), 0);
        let (result, ..) = copied(&Limits::default(), 0, true);
        assert!(matches!(result, Err(UnpackError::Interrupted)));
    }
}
