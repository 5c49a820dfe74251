//! Finding and making the directory in which an entry goes. One component at a time, never through a link of the kernel's.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use super::attributes::set_opaque;
use super::{DISK_BLOCK, Inside, Outcome, Unpacker};
use crate::error::UnpackError;
use crate::merged::{DIRECTORY, components, is_whiteout};

/// Symbolic links expanded for one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Deepest directory. Links could otherwise build trees deeper than any path names.
const MAX_DEPTH: usize = 1024;

/// Mode of a directory that no archive describes.
pub(crate) const IMPLIED_MODE: Mode = Mode::RWXU
    .union(Mode::RGRP)
    .union(Mode::XGRP)
    .union(Mode::ROTH)
    .union(Mode::XOTH);

/// `O_PATH`: good for looking up and making entries, not for reading.
const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An open directory of the layer and its real path.
#[derive(Debug)]
pub(super) struct Dir {
    pub fd: OwnedFd,
    pub path: Inside,
    pub depth: usize,
}

impl Dir {
    pub fn below(&self, name: &[u8]) -> Inside {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}

/// Where the way to a directory leads.
#[derive(Debug)]
pub(super) enum Way {
    /// To a directory of this layer.
    Here(Rc<Dir>),
    /// Out of this layer, to a path that those below may have. Links of this layer are expanded in it; what comes behind them,
    /// `..` included, is as they say.
    Below(Inside),
    /// Nowhere: this layer has no directory on the way but something that hides those below.
    Nowhere,
}

impl Unpacker<'_> {
    /// The directory that `parents` names, made if it is missing.
    pub(super) fn parent(&mut self, parents: &[&[u8]]) -> Outcome<Rc<Dir>> {
        let named = parents.join(&b'/');
        if let Some((last, dir)) = &self.last
            && *last == named
        {
            return Ok(Rc::clone(dir));
        }
        let Way::Here(dir) = self.walk(parents, true)? else {
            return Err(UnpackError::entry(&named, "cannot be made"));
        };
        self.last = Some((named, Rc::clone(&dir)));
        Ok(dir)
    }

    /// The directory that `parents` names, if it is in this layer. Makes nothing.
    pub(super) fn find(&mut self, parents: &[&[u8]]) -> Outcome<Way> {
        self.walk(parents, false)
    }

    fn walk(&mut self, parents: &[&[u8]], make: bool) -> Outcome<Way> {
        let mut todo: VecDeque<Vec<u8>> = parents.iter().map(|c| c.to_vec()).collect();
        let mut at = Rc::clone(&self.root);
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            self.step()?;
            if name == b".." {
                at = self.up(&at)?;
                continue;
            }
            let failed = |e| UnpackError::io("open directory", &at.below(&name), e);
            let fd = match openat(&at.fd, &*name, STEP, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if !make => return Ok(Way::Below(onward(&at, &name, &todo))),
                Err(Errno::NOENT) => self.imply(&at, &name, false)?,
                // Not a directory: a link of the archive, a whiteout, or something that nothing can be below.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = statat(&at.fd, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(failed(Errno::LOOP));
                        }
                        let target = readlinkat(&at.fd, &*name, Vec::new())
                            .map_err(failed)?
                            .into_bytes();
                        if target.starts_with(b"/") {
                            at = Rc::clone(&self.root);
                        }
                        for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                            todo.push_front(component.to_vec());
                        }
                        continue;
                    }
                    if !make {
                        return Ok(Way::Nowhere);
                    }
                    if !is_whiteout(&stat) {
                        let reason = "is below a file that is not a directory";
                        return Err(UnpackError::entry(&at.below(&name), reason));
                    }
                    unlinkat(&at.fd, &*name, AtFlags::empty()).map_err(failed)?;
                    self.imply(&at, &name, true)?
                }
                Err(e) => return Err(failed(e)),
            };
            if at.depth == MAX_DEPTH {
                return Err(UnpackError::Limit {
                    what: "directories within each other",
                    limit: MAX_DEPTH as u64,
                });
            }
            at = Rc::new(Dir {
                fd,
                path: at.below(&name),
                depth: at.depth + 1,
            });
        }
        Ok(Way::Here(at))
    }

    /// One up, but not above the root. Nobody else moves directories here, so that the parent is where the path says.
    fn up(&self, at: &Dir) -> Outcome<Rc<Dir>> {
        if at.depth <= 1 {
            return Ok(Rc::clone(&self.root));
        }
        let fd = openat(&at.fd, c"..", STEP, Mode::empty())
            .map_err(|e| UnpackError::io("open directory", &at.path, e))?;
        let end = at.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Ok(Rc::new(Dir {
            fd,
            path: at.path[..end].to_vec(),
            depth: at.depth - 1,
        }))
    }

    /// Makes a directory that the archive has no entry for (yet).
    fn imply(&mut self, at: &Dir, name: &[u8], opaque: bool) -> Outcome<OwnedFd> {
        let path = at.below(name);
        let failed = |e| UnpackError::io("make directory", &path, e);
        mkdirat(&at.fd, name, IMPLIED_MODE).map_err(failed)?;
        self.hide(&path);
        if opaque {
            let fd = openat(&at.fd, name, DIRECTORY, Mode::empty()).map_err(failed)?;
            // The archive removed what was here: lower layers have no say about the new one.
            rustix::fs::fchmod(&fd, IMPLIED_MODE).map_err(failed)?;
            set_opaque(&fd).map_err(failed)?;
        } else {
            self.left.implied.insert(path.clone());
        }
        let fd = openat(&at.fd, name, STEP, Mode::empty()).map_err(failed)?;
        self.remember(path.len() + 64)?;
        self.count(DISK_BLOCK);
        Ok(fd)
    }
}

/// The path of what is left to go from a directory.
fn onward(at: &Dir, name: &[u8], todo: &VecDeque<Vec<u8>>) -> Inside {
    let mut path = at.below(name);
    for component in todo {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    path
}
