//! What a layer's archive left open, settled once the layers below are known.
//!
//! Layers are unpacked side by side, each alone in its directory, but an archive is meant to be unpacked over the layers below
//! it. Three things make a difference, and are put right here, so that overlayfs shows what unpacking in order would have made:
//!
//! - A directory that the archive only implies gets mode, owner, xattrs and time of the one below, which the mount would
//!   otherwise hide.
//! - An implied directory where the layers below have a symbolic link: its entries belong into the link's target.
//! - A hard link to a file of a lower layer: the file is copied up, and linked. Where a later entry of the archive replaces or
//!   removes that file, the copy is the link's own. (Seen where both go by one name: links of lower layers are not followed for that.)
//!
//! Works on a directory that nobody else knows yet; lower layers are only read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, ResolveFlags, Stat, linkat, mkdirat, openat, openat2, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::copy_up::{Budget, Source, copy_attributes, copy_up};
use crate::effort::Effort;
use crate::error::UnpackError;
use crate::merged::{DIRECTORY, Merged, Node, is_link, is_opaque, is_whiteout};
use crate::unpack::{IMPLIED_MODE, Inside, Link, Outcome, Unpacked, below, set_opaque, set_times};
use crate::{Limits, remove};

/// Directories within each other that are merged into existing ones when entries move to a link's target.
const MAX_MERGE: usize = 64;

/// What layers are settled over, and within which bounds.
pub(crate) struct Ground<'a> {
    /// Uppermost first.
    pub lowers: &'a [PathBuf],
    /// A directory on the same file system.
    pub scratch: &'a Path,
    pub limits: &'a Limits,
    /// What this may cost, together with the image's other layers.
    pub effort: &'a Effort,
}

/// Settles the layer unpacked in `dir`.
pub(crate) fn settle(dir: &Path, left: &mut Unpacked, ground: &Ground<'_>) -> Outcome<()> {
    settle_over(dir, left, ground).map_err(|e| ground.effort.explain(e, ground.limits))
}

fn settle_over(dir: &Path, left: &mut Unpacked, ground: &Ground<'_>) -> Outcome<()> {
    let lowers = if left.opaque_root { &[][..] } else { ground.lowers };
    let open = |path: &Path| {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|e| {
            use std::os::unix::ffi::OsStrExt;
            UnpackError::io("open", path.as_os_str().as_bytes(), e)
        })
    };
    let all = std::iter::once(dir.to_path_buf())
        .chain(lowers.iter().cloned())
        .collect();
    let mut layer = Layer {
        root: open(dir)?,
        scratch: open(ground.scratch)?,
        below: Merged::new(lowers.to_vec(), ground.effort),
        merged: Merged::new(all, ground.effort),
        before: Merged::new(ground.lowers.to_vec(), ground.effort),
        effort: ground.effort,
        seen: None,
        copies: BTreeMap::new(),
        todo: std::mem::take(&mut left.implied),
        budget: Budget::new(ground.limits, left.bytes, ground.effort),
    };
    while let Some(path) = layer.todo.pop_first() {
        layer.imply(&path, left)?;
    }
    while let Some((path, link)) = left.pending.pop_first() {
        layer.link(&path, &link, left)?;
        while let Some(path) = layer.todo.pop_first() {
            layer.imply(&path, left)?;
        }
    }
    for (path, time) in std::mem::take(&mut left.times) {
        if ground.effort.is_stopped() {
            return Err(UnpackError::Interrupted);
        }
        // A directory may have been replaced since.
        if let Some(fd) = layer.open(&path)? {
            set_times(&fd, time).map_err(|e| UnpackError::io("set the time of", &path, e))?;
        }
    }
    Ok(())
}

struct Layer<'a> {
    root: OwnedFd,
    scratch: OwnedFd,
    /// The layers below alone, as far as this one does not hide them all, and with this one on top.
    below: Merged<'a>,
    merged: Merged<'a>,
    /// The layers below as they are without this one.
    before: Merged<'a>,
    effort: &'a Effort,
    /// Where the implied directory before was looked up: the next is beside or below it.
    seen: Option<Seen>,
    /// Implied directories not settled yet; parents come first.
    todo: BTreeSet<Inside>,
    /// Lower files that this layer hides but has links to, with the first of these, which is the copy.
    copies: BTreeMap<Inside, Inside>,
    /// For copies of lower files.
    budget: Budget<'a>,
}

/// A directory of this layer, and those below it that it lets show.
struct Seen {
    path: Inside,
    upper: OwnedFd,
    below: Vec<OwnedFd>,
}

impl Layer<'_> {
    /// Opens a directory of this layer; `None` if it is something else or absent.
    fn open(&self, path: &[u8]) -> Outcome<Option<OwnedFd>> {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let name = if path.is_empty() { b"." } else { path };
        match openat2(&self.root, name, DIRECTORY, Mode::empty(), inside) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(UnpackError::io("open directory", path, e)),
        }
    }

    fn imply(&mut self, path: &Inside, left: &mut Unpacked) -> Outcome<()> {
        let Some(dir) = self.open(path)? else {
            return Ok(());
        };
        let failed = |e| UnpackError::io("settle directory", path, e);
        match self.counterpart(path).map_err(failed)? {
            Node::Directory(below) if !below.is_empty() => copy_attributes(&below[0], &dir).map_err(failed),
            Node::Leaf {
                dir: holder,
                name,
                stat,
            } if is_link(&stat) => {
                let target = rustix::fs::readlinkat(&holder, &*name, Vec::new()).map_err(failed)?;
                drop(dir);
                self.relocate(path, target.as_bytes(), left)
            }
            // Nothing below, or something that the directory hides.
            _ => rustix::fs::fchmod(&dir, IMPLIED_MODE).map_err(failed),
        }
    }

    /// What the layers below have at a path, as far as this layer's directories let them show.
    fn counterpart(&mut self, path: &[u8]) -> rustix::io::Result<Node> {
        if path.is_empty() {
            return Ok(Node::Directory(self.below.root()?));
        }
        let (parent, name) = split(path);
        let known = self
            .seen
            .take()
            .filter(|seen| seen.path.is_empty() || is_within(parent, &seen.path));
        let mut at = match known {
            Some(seen) => seen,
            None => Seen {
                path: Inside::new(),
                upper: rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?,
                below: self.below.root()?,
            },
        };
        for name in parent[at.path.len()..]
            .split(|b| *b == b'/')
            .filter(|c| !c.is_empty())
        {
            self.effort.spend(1)?;
            at = Seen {
                below: match self.shown(&at, name)? {
                    Node::Directory(below) => below,
                    _ => Vec::new(),
                },
                upper: openat(&at.upper, name, DIRECTORY, Mode::empty())?,
                path: joined(&at.path, name),
            };
        }
        let node = self.shown(&at, name)?;
        self.seen = Some(at);
        Ok(node)
    }

    /// What the layers below have of a name in a directory of this layer.
    fn shown(&self, at: &Seen, name: &[u8]) -> rustix::io::Result<Node> {
        if at.below.is_empty() || is_opaque(&at.upper)? {
            return Ok(Node::Absent);
        }
        self.below.lookup(&at.below, name)
    }

    /// Moves what this layer has below `path` to where the lower link of that name leads.
    fn relocate(&mut self, path: &[u8], link: &[u8], left: &mut Unpacked) -> Outcome<()> {
        let failed = |e| UnpackError::io("move entries through the symbolic link", path, e);
        let (parent, name) = split(path);
        let whole = if link.starts_with(b"/") {
            link.to_vec()
        } else {
            [parent, b"/", link].concat()
        };
        self.seen = None;
        let resolved = self.merged.resolve(&whole, true).map_err(failed)?;
        if matches!(resolved.node, Node::Leaf { .. }) {
            return Err(UnpackError::entry(path, "is below a symbolic link to a file"));
        }
        let target = resolved.path.join(&b'/');
        if is_within(&target, path) {
            return Err(failed(Errno::LOOP));
        }
        // First out of the way, as the target may be a parent.
        let aside = aside().map_err(failed)?;
        let holder = self.open(parent)?.ok_or_else(|| failed(Errno::NOENT))?;
        renameat(&holder, name, &self.scratch, &aside).map_err(failed)?;
        if let Err(error) = self.put_back(&aside, (path, &target), left) {
            let removed = remove::entry(self.scratch.as_fd(), &aside, self.scratch.as_fd());
            if let Err(error) = removed {
                tracing::warn!(dir = ?aside, %error, "a part of an unfinished layer could not be removed");
            }
            return Err(error);
        }
        let moved: Vec<Inside> = self.todo.range(below(path)).cloned().collect();
        let count = moved.len();
        for old in moved {
            self.todo.remove(&old);
            self.todo.insert(renamed(&old, path, &target));
        }
        let count = count
            + rename_keys(&mut left.times, path, &target)
            + rename_keys(&mut left.pending, path, &target);
        // One link can lead to the next, and all goes along each time.
        self.effort.spend(count).map_err(failed)
    }

    /// Merges what was moved aside from `path` into `target`.
    fn put_back(
        &mut self,
        aside: &CString,
        (path, target): (&[u8], &[u8]),
        left: &mut Unpacked,
    ) -> Outcome<()> {
        let failed = |e| UnpackError::io("move entries through the symbolic link", path, e);
        let into = self.make_dirs(target, left)?;
        let from = openat(&self.scratch, aside, DIRECTORY, Mode::empty()).map_err(failed)?;
        self.merge(&from, &into, 0).map_err(failed)?;
        unlinkat(&self.scratch, aside, AtFlags::REMOVEDIR).map_err(failed)
    }

    /// Opens a directory of this layer, made where it is missing; what is made is implied in turn.
    fn make_dirs(&mut self, path: &[u8], left: &mut Unpacked) -> Outcome<OwnedFd> {
        let failed = |e| UnpackError::io("make directory", path, e);
        self.seen = None;
        let mut at = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(failed)?;
        let mut inside = Inside::new();
        for name in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            self.effort.spend(1).map_err(failed)?;
            inside = joined(&inside, name);
            match statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_whiteout(&stat) => {
                    unlinkat(&at, name, AtFlags::empty()).map_err(failed)?;
                    mkdirat(&at, name, IMPLIED_MODE).map_err(failed)?;
                    let dir = openat(&at, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                    rustix::fs::fchmod(&dir, IMPLIED_MODE).map_err(failed)?;
                    set_opaque(&dir).map_err(failed)?;
                }
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    mkdirat(&at, name, IMPLIED_MODE).map_err(failed)?;
                    left.inodes += 1;
                    self.todo.insert(inside.clone());
                }
                Err(e) => return Err(failed(e)),
            }
            at = openat(&at, name, DIRECTORY, Mode::empty()).map_err(failed)?;
        }
        Ok(at)
    }

    /// Moves the entries of one directory into another of this layer. What both have is merged, or taken from `from`.
    fn merge(&self, from: &OwnedFd, into: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
        if depth == MAX_MERGE {
            return Err(Errno::NAMETOOLONG);
        }
        if is_opaque(from)? {
            set_opaque(into)?;
        }
        let mut names = Vec::new();
        for child in Dir::read_from(from)? {
            let name = child?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        for name in names {
            self.effort.spend(1)?;
            let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let there = match statat(into, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => {
                    renameat(from, &name, into, &name)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            match (is_dir(&stat), is_dir(&there)) {
                (true, true) => {
                    let (lower, upper) = (open_dir(from, &name)?, open_dir(into, &name)?);
                    self.merge(&lower, &upper, depth + 1)?;
                    unlinkat(from, &name, AtFlags::REMOVEDIR)?;
                }
                // A whiteout concerns lower layers, not what this one has.
                (false, upper) if is_whiteout(&stat) => {
                    if upper {
                        set_opaque(&open_dir(into, &name)?)?;
                    }
                    unlinkat(from, &name, AtFlags::empty())?;
                }
                (dir, _) => {
                    remove::entry(into.as_fd(), &name, self.scratch.as_fd())?;
                    renameat(from, &name, into, &name)?;
                    if dir {
                        set_opaque(&open_dir(into, &name)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a hard link whose target is in a lower layer: copies the target up, then links it.
    fn link(&mut self, path: &[u8], link: &Link, left: &mut Unpacked) -> Outcome<()> {
        let failed = |e| UnpackError::io("make hard link", path, e);
        let missing = || {
            let target = crate::error::show(&link.target);
            UnpackError::entry(
                path,
                format!("is a hard link to {target:?}, which does not exist"),
            )
        };
        self.effort.spend(1).map_err(failed)?;
        let (parent, name) = split(path);
        let Some(holder) = self.open(parent)? else {
            return Ok(());
        };
        match statat(&holder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
            // A later entry of the archive took the name.
            Ok(_) => return Ok(()),
        }
        if link.outdated && self.link_before(&link.target, (&holder, path), left)? {
            return Ok(());
        }
        let resolved = self.merged.resolve(&link.target, false).map_err(failed)?;
        let Node::Leaf {
            dir,
            name: source_name,
            stat,
        } = resolved.node
        else {
            return Err(missing());
        };
        let real = resolved.path.join(&b'/');
        let (target_parent, target_name) = split(&real);
        let target_dir = self.make_dirs(target_parent, left)?;
        match statat(&target_dir, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let from = Source {
                    dir: &dir,
                    name: &source_name,
                    stat: &stat,
                };
                self.copy(&from, (&target_dir, target_name), &real, left)?;
            }
            Err(e) => return Err(failed(e)),
        }
        linkat(&target_dir, target_name, &holder, name, AtFlags::empty()).map_err(failed)
    }

    /// Makes a hard link to what the layers below have at `target`, which this one hides: a copy, which all links to the same
    /// file share. `false` if they have none; then an archive can only mean what it has itself.
    fn link_before(
        &mut self,
        target: &[u8],
        (holder, path): (&OwnedFd, &[u8]),
        left: &mut Unpacked,
    ) -> Outcome<bool> {
        let failed = |e| UnpackError::io("make hard link", path, e);
        let resolved = self.before.resolve(target, false).map_err(failed)?;
        let Node::Leaf { dir, name, stat } = resolved.node else {
            return Ok(false);
        };
        let real = resolved.path.join(&b'/');
        let (_, link_name) = split(path);
        if let Some(first) = self.copies.get(&real) {
            let (first_parent, first_name) = split(first);
            let from = self.open(first_parent)?.ok_or_else(|| failed(Errno::NOENT))?;
            linkat(&from, first_name, holder, link_name, AtFlags::empty()).map_err(failed)?;
            return Ok(true);
        }
        let from = Source {
            dir: &dir,
            name: &name,
            stat: &stat,
        };
        self.copy(&from, (holder, link_name), &real, left)?;
        self.copies.insert(real, path.to_vec());
        Ok(true)
    }

    /// Copies a file of a lower layer, which counts for this one. `path` names it in errors.
    fn copy(
        &mut self,
        from: &Source<'_>,
        to: (&OwnedFd, &[u8]),
        path: &[u8],
        left: &mut Unpacked,
    ) -> Outcome<()> {
        copy_up(from, to, path, &mut self.budget)?;
        left.inodes += 1;
        left.bytes += u64::try_from(from.stat.st_blocks).unwrap_or(0) * 512;
        Ok(())
    }
}

/// A path at or below `dir`, with `target` in its place, which may be the root.
fn renamed(path: &[u8], dir: &[u8], target: &[u8]) -> Inside {
    let whole = [target, &path[dir.len()..]].concat();
    whole.strip_prefix(b"/").map(<[u8]>::to_vec).unwrap_or(whole)
}

/// In a table by path, renames a directory and what is below it, and says how many that were. Touches nothing else: there may be
/// many of both.
fn rename_keys<V>(table: &mut BTreeMap<Inside, V>, dir: &[u8], target: &[u8]) -> usize {
    let mut moved: Vec<Inside> = table.range(below(dir)).map(|(path, _)| path.clone()).collect();
    moved.push(dir.to_vec());
    let count = moved.len();
    for old in moved {
        if let Some(value) = table.remove(&old) {
            table.insert(renamed(&old, dir, target), value);
        }
    }
    count
}

fn joined(dir: &[u8], name: &[u8]) -> Inside {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// A name in the scratch directory that no other layer has, which may be settled at the same time.
fn aside() -> rustix::io::Result<CString> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    CString::new(format!("moved-{}-{number}", std::process::id())).map_err(|_| Errno::INVAL)
}

fn open_dir(at: &OwnedFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    openat(at, name, DIRECTORY, Mode::empty())
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Parent and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Whether `path` is `dir` or below it.
fn is_within(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
