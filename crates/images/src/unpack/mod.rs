//! One layer's archive into one directory, confined to it, in the form that overlayfs mounts.
//!
//! The archive is hostile. Every step of a path is one `openat` of one component that does not follow links; links of the
//! archive itself are expanded by this code and cannot leave the layer ([`place`]). Nothing outside the directory is read or
//! written whatever the names say.
//!
//! Left open for [`crate::commit`], which knows the layers below: directories that the archive only implies, hard links to
//! files of lower layers, and the times of directories.

mod attributes;
mod file;
mod place;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::Limits;
use crate::error::UnpackError;
use crate::merged::{DIRECTORY, components, is_whiteout};
use crate::tar::{Entry, Kind, Reader};
pub(crate) use attributes::{set_opaque, set_times};
pub(crate) use place::IMPLIED_MODE;
use place::{Dir, Way};

pub(crate) type Outcome<T> = Result<T, UnpackError>;

/// Prefix of a whiteout's name, and of the two special ones (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest path of an entry, as the kernel has it.
const MAX_PATH: usize = 4095;
/// Bytes of directory names that are remembered until the commit: about a million directories.
const MAX_REMEMBERED: usize = 64 << 20;
/// Memory of a remembered hard link and of its target besides their names.
const LINK: usize = 192;
/// Directories that are gone through on the way to those of entries, links of the archive included: so many, and on average so
/// many for each entry. Few have more than a dozen above them; but links can lead through each other.
const MAX_STEPS: u64 = 1_000_000;
const STEPS_EACH: u64 = 64;
/// Bytes written between two looks at the free disk space.
pub(crate) const DISK_CHECK: u64 = 64 << 20;
/// Use of the disk is counted in blocks of this size.
const DISK_BLOCK: u64 = 4096;

/// A path inside the layer: components joined by `/`, none in front. The root is empty.
pub(crate) type Inside = Vec<u8>;

/// What unpacking left for the commit, and what it cost.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub bytes: u64,
    pub inodes: u64,
    /// Directories that were made because something is below them, but have no entry of their own.
    pub implied: BTreeSet<Inside>,
    /// Times of directories, to be set when nothing is written below them any more.
    pub times: BTreeMap<Inside, (i64, u32)>,
    /// Hard links whose target was not in this layer when their entries came.
    pub pending: BTreeMap<Inside, Link>,
    /// The archive hides everything in the layers below.
    pub opaque_root: bool,
}

/// A hard link to a file of a lower layer.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub target: Inside,
    /// Number of the entry that asked for it.
    entry: u64,
    /// That entry or a later one hides the target: the link is to what the layers below have there.
    pub outdated: bool,
}

/// Unpacks entries into one directory.
pub(crate) struct Unpacker<'a> {
    root: Rc<Dir>,
    scratch: OwnedFd,
    limits: &'a Limits,
    entries: u64,
    steps: u64,
    remembered: usize,
    unchecked: u64,
    /// The parent of the entry before, by its name in the archive.
    last: Option<(Vec<u8>, Rc<Dir>)>,
    /// Targets of links into lower layers, until this layer hides them.
    awaited: BTreeSet<Inside>,
    /// Those that were hidden, with the number of the entry that did it; of the last where links were made in between.
    hidden: BTreeMap<Inside, u64>,
    left: Unpacked,
}

impl<'a> Unpacker<'a> {
    /// Prepares to unpack into `root`, an empty directory; `scratch` is another on the same file system.
    pub fn new(root: &Path, scratch: &Path, limits: &'a Limits) -> Outcome<Self> {
        use std::os::unix::ffi::OsStrExt;
        let open = |path: &Path| {
            let opened = rustix::fs::open(path, DIRECTORY, Mode::empty());
            opened.map_err(|e| UnpackError::io("open", path.as_os_str().as_bytes(), e))
        };
        let mut left = Unpacked::default();
        left.implied.insert(Vec::new());
        let root = Rc::new(Dir {
            fd: open(root)?,
            path: Vec::new(),
            depth: 0,
        });
        let mut unpacker = Self {
            root,
            scratch: open(scratch)?,
            limits,
            entries: 0,
            steps: 0,
            remembered: 0,
            unchecked: 0,
            last: None,
            awaited: BTreeSet::new(),
            hidden: BTreeMap::new(),
            left,
        };
        unpacker.check_disk()?;
        Ok(unpacker)
    }

    /// Unpacks all members of an archive.
    pub fn run<R: BufRead>(&mut self, archive: &mut Reader<R>) -> Outcome<()> {
        while let Some(entry) = archive.next()? {
            self.entries += 1;
            if self.entries > self.limits.layer_entries {
                return Err(UnpackError::Limit {
                    what: "entries",
                    limit: self.limits.layer_entries,
                });
            }
            self.entry(&entry, archive)?;
        }
        Ok(())
    }

    /// What is left for the commit.
    pub fn finish(mut self) -> Unpacked {
        for link in self.left.pending.values_mut() {
            let hidden = self.hidden.get(&link.target);
            link.outdated = hidden.is_some_and(|entry| *entry >= link.entry);
        }
        self.left
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Reader<R>) -> Outcome<()> {
        let path = checked(&entry.path, &entry.path)?;
        let Some((name, parents)) = path.split_last() else {
            return self.root_entry(entry);
        };
        if let Some(marker) = path.iter().find(|c| c.starts_with(WHITEOUT)) {
            if *name == WHITEOUT_OPAQUE && parents.iter().all(|c| !c.starts_with(WHITEOUT)) {
                let dir = self.parent(parents)?;
                return self.opaque(&dir);
            }
            if marker.starts_with(WHITEOUT_META) {
                // Bookkeeping of aufs, which no other reader has a use for.
                return Ok(());
            }
            let hidden = &marker[WHITEOUT.len()..];
            if !std::ptr::eq(*marker, *name) || matches!(hidden, b"" | b"." | b"..") {
                return Err(UnpackError::entry(&entry.path, "is a whiteout of nothing"));
            }
            let dir = self.parent(parents)?;
            return self.whiteout(&dir, hidden);
        }
        let dir = self.parent(parents)?;
        match entry.kind {
            Kind::Directory => self.directory(&dir, name, entry),
            Kind::File => self.file(&dir, name, entry, archive),
            Kind::Symlink => self.symlink(&dir, name, entry),
            Kind::HardLink => self.hard_link(&dir, name, entry),
            Kind::CharDevice => self.node(&dir, name, entry, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(&dir, name, entry, FileType::BlockDevice),
            Kind::Fifo => self.node(&dir, name, entry, FileType::Fifo),
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Outcome<()> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::entry(
                &entry.path,
                "would replace the root directory",
            ));
        }
        attributes::apply(&self.root.fd, entry)?;
        self.left.implied.remove(&Vec::new());
        self.remember_time(Vec::new(), entry.mtime)
    }

    fn directory(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<()> {
        let path = parent.below(name);
        let mut replaced = false;
        while let Err(e) = mkdirat(&parent.fd, name, Mode::RWXU) {
            if e != Errno::EXIST {
                return Err(UnpackError::io("make directory", &entry.path, e));
            }
            let stat = self.stat(parent, name, entry)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                break;
            }
            // What was here hides what lower layers have, and so must the directory that takes its place.
            self.replace(parent, name, entry)?;
            replaced = true;
        }
        self.hide(&path);
        let fd = openat(&parent.fd, name, DIRECTORY, Mode::empty())
            .map_err(|e| UnpackError::io("open directory", &entry.path, e))?;
        if replaced {
            set_opaque(&fd).map_err(|e| UnpackError::io("mark as opaque", &entry.path, e))?;
        }
        attributes::apply(&fd, entry)?;
        self.count(DISK_BLOCK);
        self.left.implied.remove(&path);
        self.remember_time(path, entry.mtime)
    }

    fn symlink(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<()> {
        if entry.link.is_empty() || entry.link.len() > MAX_PATH || entry.link.contains(&0) {
            return Err(UnpackError::entry(
                &entry.path,
                "is a symbolic link with an impossible target",
            ));
        }
        self.create(parent, name, entry, "make symbolic link", |dir| {
            symlinkat(&*entry.link, dir, name)
        })?;
        self.count(0);
        attributes::apply_at(&parent.fd, name, entry, false)
    }

    fn node(&mut self, parent: &Dir, name: &[u8], entry: &Entry, kind: FileType) -> Outcome<()> {
        let (major, minor) = if kind == FileType::Fifo {
            (0, 0)
        } else {
            entry.device
        };
        // The kernel has 12 and 20 bits for them; more would quietly become another device.
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(UnpackError::entry(
                &entry.path,
                format!("has impossible device numbers {major}:{minor}"),
            ));
        }
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::RUSR | Mode::WUSR;
        self.create(parent, name, entry, "make device node", |dir| {
            mknodat(dir, name, kind, mode, device)
        })?;
        self.count(0);
        attributes::apply_at(&parent.fd, name, entry, true)
    }

    fn hard_link(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<()> {
        let target = checked(&entry.link, &entry.path)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(UnpackError::entry(
                &entry.path,
                "is a hard link to the root directory",
            ));
        };
        let removed = "is a hard link to a file that its own layer removes";
        let dir = match self.find(target_parents)? {
            Way::Here(dir) => dir,
            Way::Below(dir) => {
                let target = [&dir[..], b"/", *target_name].concat();
                return self.link_below(parent, name, &target, entry);
            }
            Way::Nowhere => return Err(UnpackError::entry(&entry.path, removed)),
        };
        let stat = match statat(&dir.fd, *target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {
                return self.link_below(parent, name, &dir.below(target_name), entry);
            }
            Err(e) => return Err(UnpackError::io("look up", &entry.link, e)),
        };
        if is_whiteout(&stat) {
            return Err(UnpackError::entry(&entry.path, removed));
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(UnpackError::entry(&entry.path, "is a hard link to a directory"));
        }
        if dir.path == parent.path && *target_name == name {
            return Ok(());
        }
        self.create(parent, name, entry, "make hard link", |at| {
            linkat(&dir.fd, *target_name, at, name, AtFlags::empty())
        })
    }

    /// Remembers a hard link into a lower layer; a link to such a link shares its target, as that was then.
    fn link_below(&mut self, parent: &Dir, name: &[u8], target: &[u8], entry: &Entry) -> Outcome<()> {
        let earlier = self.left.pending.get(target).cloned();
        let link = earlier.unwrap_or_else(|| Link {
            target: target.to_vec(),
            entry: self.entries,
            outdated: false,
        });
        let path = parent.below(name);
        // Checked at the commit: that the target exists, and that nothing took the name meanwhile.
        if statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            self.replace(parent, name, entry)?;
        }
        self.remember(path.len() + 2 * link.target.len() + LINK)?;
        self.awaited.insert(link.target.clone());
        self.left.pending.insert(path.clone(), link);
        // What had this name below may be the target of others.
        self.hide_tree(&path);
        Ok(())
    }

    /// From here on this layer hides what those below it have at `path`. Links to it so far are to that nevertheless.
    fn hide(&mut self, path: &[u8]) {
        if let Some(target) = self.awaited.take(path) {
            self.hidden.insert(target, self.entries);
        }
    }

    /// The same with all that is below it. No target is gone through twice, however often an archive hides it.
    fn hide_tree(&mut self, path: &[u8]) {
        if self.awaited.is_empty() {
            return;
        }
        let hidden: Vec<Inside> = if path.is_empty() {
            self.awaited.iter().cloned().collect()
        } else {
            self.awaited.range(below(path)).cloned().collect()
        };
        for target in hidden {
            self.hide(&target);
        }
        self.hide(path);
    }

    fn whiteout(&mut self, parent: &Dir, name: &[u8]) -> Outcome<()> {
        let path = parent.below(name);
        self.hide_tree(&path);
        let failed = |e| UnpackError::io("make whiteout", &path, e);
        match statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The same for a link that waits: at the commit it is there.
            Err(Errno::NOENT) if self.left.pending.contains_key(&path) => Ok(()),
            Err(Errno::NOENT) => {
                self.count(0);
                mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed)
            }
            Err(e) => Err(failed(e)),
            // A whiteout concerns lower layers, never its own: the directory stays and hides theirs. Anything else does anyway.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let fd = openat(&parent.fd, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                set_opaque(&fd).map_err(failed)
            }
            Ok(_) => Ok(()),
        }
    }

    fn opaque(&mut self, dir: &Dir) -> Outcome<()> {
        if dir.path.is_empty() {
            self.left.opaque_root = true;
        }
        self.hide_tree(&dir.path);
        let fd = openat(&dir.fd, c".", DIRECTORY, Mode::empty());
        fd.and_then(|fd| set_opaque(&fd))
            .map_err(|e| UnpackError::io("mark as opaque", &dir.path, e))
    }

    /// Makes something that must not exist, out of the way of what does.
    fn create<T>(
        &mut self,
        parent: &Dir,
        name: &[u8],
        entry: &Entry,
        action: &'static str,
        make: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Outcome<T> {
        self.hide_tree(&parent.below(name));
        match make(&parent.fd) {
            Err(Errno::EXIST) => {
                self.replace(parent, name, entry)?;
                make(&parent.fd).map_err(|e| UnpackError::io(action, &entry.path, e))
            }
            made => made.map_err(|e| UnpackError::io(action, &entry.path, e)),
        }
    }

    /// Removes what an earlier entry of the same archive made, of whatever type.
    fn replace(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<()> {
        self.last = None;
        let failed = |e| UnpackError::io("replace", &entry.path, e);
        match unlinkat(&parent.fd, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(failed(e)),
        }
        let gone = below(&parent.below(name));
        let gone: Vec<Inside> = self
            .left
            .pending
            .range(gone)
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.left.pending.remove(&path);
        }
        let name = std::ffi::CString::new(name).map_err(|_| failed(Errno::INVAL))?;
        crate::remove::entry(parent.fd.as_fd(), &name, self.scratch.as_fd()).map_err(failed)
    }

    fn stat(&self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<rustix::fs::Stat> {
        statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| UnpackError::io("look up", &entry.path, e))
    }

    fn create_file(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Outcome<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.create(parent, name, entry, "make file", |dir| {
            openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
        })
    }

    fn count(&mut self, bytes: u64) {
        self.left.inodes += 1;
        self.left.bytes += bytes.next_multiple_of(DISK_BLOCK);
    }

    /// Counts one directory on a way.
    fn step(&mut self) -> Outcome<()> {
        self.steps += 1;
        let limit = MAX_STEPS + STEPS_EACH * self.entries;
        if self.steps > limit {
            return Err(UnpackError::Limit {
                what: "directories and links on the ways to its entries",
                limit,
            });
        }
        Ok(())
    }

    fn remember_time(&mut self, path: Inside, time: (i64, u32)) -> Outcome<()> {
        self.remember(path.len() + 48)?;
        self.left.times.insert(path, time);
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Outcome<()> {
        self.remembered += bytes;
        if self.remembered > MAX_REMEMBERED {
            return Err(UnpackError::Limit {
                what: "bytes of directory and link names",
                limit: MAX_REMEMBERED as u64,
            });
        }
        Ok(())
    }

    /// Counts bytes written and looks at the disk now and then.
    fn written(&mut self, bytes: u64) -> Outcome<()> {
        self.unchecked += bytes;
        if self.unchecked >= DISK_CHECK {
            self.check_disk()
        } else {
            Ok(())
        }
    }

    fn check_disk(&mut self) -> Outcome<()> {
        self.unchecked = 0;
        check_disk(&self.root.fd, self.limits)
    }
}

/// What is below a directory, in a table by path: `/` is followed by `0`.
pub(crate) fn below(dir: &[u8]) -> std::ops::Range<Inside> {
    [dir, b"/"].concat()..[dir, b"0"].concat()
}

/// Whether the disk of an open file has more left than is kept free.
pub(crate) fn check_disk(file: impl AsFd, limits: &Limits) -> Outcome<()> {
    let stat = rustix::fs::fstatvfs(file).map_err(|e| UnpackError::io("look at the disk of", b"/", e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < limits.reserve_bytes {
        return Err(UnpackError::DiskFull {
            free,
            reserve: limits.reserve_bytes,
        });
    }
    Ok(())
}

/// The components of a name in the archive. `..` is refused wherever it stands; a leading `/` means the layer's root.
fn checked<'p>(path: &'p [u8], entry: &[u8]) -> Outcome<Vec<&'p [u8]>> {
    if path.len() > MAX_PATH {
        return Err(UnpackError::entry(
            entry,
            format!("has a path of {} bytes, {MAX_PATH} are allowed", path.len()),
        ));
    }
    if path.contains(&0) {
        return Err(UnpackError::entry(entry, "has a NUL in a path"));
    }
    let parts: Vec<&[u8]> = components(path).collect();
    if parts.contains(&&b".."[..]) {
        return Err(UnpackError::entry(
            entry,
            "has '..' in a path, which could leave the layer",
        ));
    }
    Ok(parts)
}
