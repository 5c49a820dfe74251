//! Layers seen as overlayfs shows them: upper entries hide lower ones, whiteouts and opaque directories end the search, and
//! symbolic links are followed inside the merged tree only. Nothing is mounted.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::effort::Effort;
use crate::{Error, ImageId, Result};

/// Symbolic links followed in one lookup, as in the kernel.
const MAX_LINKS: usize = 40;
/// Directories that are looked into for one path of an operator, a pod or a program: 127 layers, each 1,500 directories deep.
pub(crate) const ONE_PATH: u64 = 200_000;
/// Name of the xattr that makes a directory hide those below it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a name is in the merged tree.
#[derive(Debug)]
pub(crate) enum Node {
    Absent,
    /// The directories that make it up, uppermost first.
    Directory(Vec<OwnedFd>),
    /// Anything else: the directory that holds it, and its last name there.
    Leaf {
        dir: OwnedFd,
        name: Vec<u8>,
        stat: Box<Stat>,
    },
}

/// Where a path leads, links followed.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Its real path; what is behind the last directory that exists is as the path and its links say.
    pub path: Vec<Vec<u8>>,
    /// What is there.
    pub node: Node,
    /// Something on the way is absent or not a directory.
    pub broken: bool,
}

/// A stack of layers, uppermost first.
#[derive(Debug)]
pub(crate) struct Merged<'a> {
    layers: Vec<PathBuf>,
    effort: &'a Effort,
}

impl<'a> Merged<'a> {
    /// One whose look-ups cost `effort`.
    pub fn new(layers: Vec<PathBuf>, effort: &'a Effort) -> Self {
        Self { layers, effort }
    }

    /// What `path` is, followed through links except (unless `follow_last`) the last component. `ELOOP` for a circle.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> rustix::io::Result<Resolved> {
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut node = Node::Directory(self.root()?);
        let mut links = 0;
        let mut broken = false;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                real.pop();
                node = self.walk(&real)?;
                continue;
            }
            let Node::Directory(dirs) = node else {
                broken = true;
                real.push(name);
                node = Node::Absent;
                continue;
            };
            let next = self.lookup(&dirs, &name)?;
            match &next {
                Node::Leaf { dir, stat, .. } if is_link(stat) && (follow_last || !todo.is_empty()) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(dir, &*name, Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component.to_vec());
                    }
                    node = self.walk(&real)?;
                }
                _ => {
                    real.push(name);
                    node = next;
                }
            }
        }
        Ok(Resolved {
            path: real,
            node,
            broken,
        })
    }

    /// The directories that make up the root, uppermost first.
    pub fn root(&self) -> rustix::io::Result<Vec<OwnedFd>> {
        self.effort.spend(self.layers.len())?;
        let mut dirs = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let fd = rustix::fs::open(layer, DIRECTORY, Mode::empty())?;
            let last = is_opaque(&fd)?;
            dirs.push(fd);
            if last {
                break;
            }
        }
        Ok(dirs)
    }

    /// What is at a path whose links are not followed.
    pub fn walk(&self, path: &[Vec<u8>]) -> rustix::io::Result<Node> {
        let mut node = Node::Directory(self.root()?);
        for name in path {
            node = match node {
                Node::Directory(dirs) => self.lookup(&dirs, name)?,
                _ => return Ok(Node::Absent),
            };
        }
        Ok(node)
    }

    /// What `name` is in a merged directory.
    pub fn lookup(&self, dirs: &[OwnedFd], name: &[u8]) -> rustix::io::Result<Node> {
        let mut found = Vec::new();
        for dir in dirs {
            self.effort.spend(1)?;
            let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                // No file of any layer has such a name.
                Err(Errno::NAMETOOLONG) => return Ok(Node::Absent),
                Err(e) => return Err(e),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let fd = openat(dir, name, DIRECTORY, Mode::empty())?;
                let last = is_opaque(&fd)?;
                found.push(fd);
                if last {
                    break;
                }
            } else if found.is_empty() && !is_whiteout(&stat) {
                let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
                return Ok(Node::Leaf {
                    dir,
                    name: name.to_vec(),
                    stat: Box::new(stat),
                });
            } else {
                break;
            }
        }
        Ok(if found.is_empty() {
            Node::Absent
        } else {
            Node::Directory(found)
        })
    }
}

/// Follows one path through a stack of layers. The error is in words.
pub(crate) fn resolve(layers: &[PathBuf], path: &str) -> std::result::Result<Resolved, String> {
    let effort = Effort::new(ONE_PATH);
    let merged = Merged::new(layers.to_vec(), &effort);
    merged.resolve(path.as_bytes(), true).map_err(|e| {
        if effort.is_spent() {
            format!("it leads through more than {ONE_PATH} directories of the image's layers")
        } else {
            std::io::Error::from(e).to_string()
        }
    })
}

/// Overlayfs's mark of a removed entry: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

pub(crate) fn is_opaque(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let mut value = [0u8; 8];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        // A longer value is not one that overlayfs knows.
        Err(Errno::RANGE) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Components without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// The body of [`crate::Images::read_file`].
pub(crate) fn read_file(
    lowers: &[PathBuf],
    image: &ImageId,
    path: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>> {
    let told = |reason: String| Error::FilePath {
        image: image.to_string(),
        path: path.to_owned(),
        reason,
    };
    let refused = |e: Errno| told(std::io::Error::from(e).to_string());
    let resolved = resolve(lowers, path).map_err(told)?;
    let Node::Leaf { dir, name, stat } = resolved.node else {
        return Ok(None);
    };
    if resolved.broken || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > limit {
        return Err(Error::FileTooLarge {
            image: image.to_string(),
            path: path.to_owned(),
            size,
            limit,
        });
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(&dir, &*name, flags, Mode::empty()).map_err(refused)?);
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| told(e.to_string()))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    #[test]
    fn upper_entries_whiteouts_opaque_directories_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (low, mid, top) = (dir.path().join("0"), dir.path().join("1"), dir.path().join("2"));
        for layer in [&low, &mid, &top] {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::create_dir_all(low.join("opaque")).unwrap();
        std::fs::create_dir_all(low.join("gone/deep")).unwrap();
        std::fs::write(low.join("etc/passwd"), "low").unwrap();
        std::fs::write(low.join("etc/group"), "low").unwrap();
        std::fs::write(low.join("etc/shadow"), "low").unwrap();
        std::fs::write(low.join("opaque/hidden"), "low").unwrap();
        std::fs::write(low.join("gone/deep/file"), "low").unwrap();
        std::fs::write(mid.join("etc/passwd"), "mid").unwrap();
        whiteout(&mid.join("etc/shadow"));
        whiteout(&mid.join("gone"));
        std::fs::create_dir_all(top.join("opaque")).unwrap();
        rustix::fs::setxattr(top.join("opaque"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        std::fs::create_dir_all(top.join("gone")).unwrap();
        symlink("/etc", top.join("abs")).unwrap();
        symlink("../../../../etc/passwd", top.join("etc/up")).unwrap();
        symlink("a", top.join("b")).unwrap();
        symlink("b", top.join("a")).unwrap();
        symlink("/proc/self/root/etc/hostname", top.join("escape")).unwrap();
        let lowers = [top, mid, low];
        let id = ImageId::sha256(b"");
        let read = |path: &str| {
            read_file(&lowers, &id, path, 100)
                .unwrap()
                .map(|b| String::from_utf8(b).unwrap())
        };
        assert_eq!(read("/etc/passwd").as_deref(), Some("mid"));
        assert_eq!(read("etc/group").as_deref(), Some("low"));
        assert_eq!(read("/abs/passwd").as_deref(), Some("mid"));
        assert_eq!(read("/etc/up").as_deref(), Some("mid"));
        assert_eq!(read("/../../etc/./group").as_deref(), Some("low"));
        for absent in [
            "/etc/shadow",
            "/opaque/hidden",
            "/gone/deep/file",
            "/escape",
            "/etc",
            "/etc/passwd/x",
            "/none",
        ] {
            assert_eq!(read(absent), None, "{absent}");
        }
        assert!(matches!(
            read_file(&lowers, &id, "/a", 100),
            Err(Error::FilePath { .. })
        ));
        assert!(matches!(
            read_file(&lowers, &id, "/etc/passwd", 2),
            Err(Error::FileTooLarge { size: 3, .. })
        ));
    }

    #[test]
    fn a_path_that_costs_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d/".repeat(400));
        std::fs::create_dir_all(&deep).unwrap();
        // Each `..` is looked up from the root again, and each link goes all the way down once more.
        let target = format!("/{}{}passwd", "d/".repeat(400), "../d/".repeat(300));
        for n in 0..30 {
            symlink(
                format!("{target}{n}"),
                dir.path().join("d/".repeat(400)).join(format!("passwd{}", n + 1)),
            )
            .unwrap();
        }
        std::fs::write(deep.join("passwd0"), "root").unwrap();
        let lowers = [dir.path().to_path_buf()];
        let read = |n: u32| {
            read_file(
                &lowers,
                &ImageId::sha256(b""),
                &format!("{}passwd{n}", "d/".repeat(400)),
                100,
            )
        };
        assert_eq!(read(0).unwrap().unwrap(), b"root");
        let begun = std::time::Instant::now();
        let error = read(30).unwrap_err().to_string();
        assert!(error.contains("through more than 200000 directories"), "{error}");
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}
