//! The members of an archive or layout directory, by name, as pieces of open files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::config::Limits;
use crate::merged::components;
use crate::pipeline::decompress;
use crate::tar::{Kind, Reader};
use crate::{Error, Result};

/// Members of one archive. An image of 127 layers has some 400.
const MAX_MEMBERS: usize = 100_000;
/// Links followed from one member to another; old archives link layers that they hold twice.
const MAX_LINKS: usize = 8;

/// A part of an open file.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    file: Arc<File>,
    path: Arc<PathBuf>,
    offset: u64,
    len: u64,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// At most `most` bytes from `at` on, all that there are up to that.
    pub fn read(&self, at: u64, most: usize) -> Result<Bytes> {
        let count = usize::try_from(self.len.saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(most);
        let mut bytes = vec![0; count];
        self.file
            .read_exact_at(&mut bytes, self.offset + at)
            .map_err(|e| Error::io("read", &*self.path, e))?;
        Ok(bytes.into())
    }
}

/// Where members are looked up.
pub(crate) enum Members {
    /// Below a directory, never above it.
    Directory {
        path: PathBuf,
        root: std::os::fd::OwnedFd,
    },
    Archive {
        members: HashMap<String, Member>,
    },
}

/// A member of an archive.
pub(crate) enum Member {
    Piece(Piece),
    /// A link to another one, by its full name.
    Link(String),
}

impl Members {
    /// Opens a directory or an archive. A compressed one is inflated into an unnamed file in `tmp`.
    pub fn open(path: &Path, tmp: &Path, limits: &Limits) -> Result<Self> {
        let io = |action| move |e: std::io::Error| Error::io(action, path, e);
        let mut file = File::open(path).map_err(io("open"))?;
        let kind = file.metadata().map_err(io("read"))?.file_type();
        if kind.is_dir() {
            return Ok(Self::Directory {
                path: path.to_path_buf(),
                root: file.into(),
            });
        }
        if !kind.is_file() {
            return Err(Error::Archive {
                path: path.to_path_buf(),
                reason: "it is neither a file nor a directory".into(),
            });
        }
        if let Some(mut inflated) = decompress(file.try_clone().map_err(io("open"))?).map_err(io("read"))? {
            file = spool(&mut inflated, path, tmp, limits)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(io("read"))?;
        Self::scan(file, path)
    }

    fn scan(file: File, path: &Path) -> Result<Self> {
        let file = Arc::new(file);
        let path = Arc::new(path.to_path_buf());
        let refuse = |reason: String| Error::Archive {
            path: path.to_path_buf(),
            reason,
        };
        let mut reader = Reader::new(BufReader::with_capacity(1 << 20, &*file));
        let mut members = HashMap::new();
        let damaged = |e: crate::TarError| match std::error::Error::source(&e) {
            Some(source) => refuse(format!("{e}: {source}")),
            None => refuse(e.to_string()),
        };
        while let Some(entry) = reader.next().map_err(damaged)? {
            if members.len() == MAX_MEMBERS {
                return Err(refuse(format!("it has more than {MAX_MEMBERS} members")));
            }
            let name = joined(&[], &entry.path);
            let member = match entry.kind {
                Kind::File if entry.sparse.is_none() => Member::Piece(Piece {
                    file: Arc::clone(&file),
                    path: Arc::clone(&path),
                    offset: reader.offset(),
                    len: reader.left(),
                }),
                Kind::HardLink => Member::Link(joined(&[], &entry.link)),
                Kind::Symlink => {
                    let parent = name.rfind('/').map_or("", |at| &name[..at]);
                    Member::Link(joined(parent.as_bytes(), &entry.link))
                }
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self::Archive { members })
    }

    /// The member of that name; `None` if there is none.
    pub fn find(&self, name: &str) -> Result<Option<Piece>> {
        match self {
            Self::Archive { members } => {
                let mut name = joined(&[], name.as_bytes());
                for _ in 0..=MAX_LINKS {
                    match members.get(&name) {
                        Some(Member::Piece(piece)) => return Ok(Some(piece.clone())),
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
            Self::Directory { path, root } => {
                let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file: File = match openat2(root, name, flags, Mode::empty(), inside) {
                    Ok(fd) => fd.into(),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(e) => return Err(Error::io("open", path.join(name), e)),
                };
                let metadata = file
                    .metadata()
                    .map_err(|e| Error::io("read", path.join(name), e))?;
                let path = Arc::new(path.join(name));
                Ok(metadata.is_file().then(|| Piece {
                    file: Arc::new(file),
                    path,
                    offset: 0,
                    len: metadata.len(),
                }))
            }
        }
    }
}

/// A name below a directory, without `.` and `..`. It is only a key of a table.
fn joined(parent: &[u8], name: &[u8]) -> String {
    let mut parts: Vec<&[u8]> = if name.starts_with(b"/") {
        Vec::new()
    } else {
        components(parent).collect()
    };
    for part in components(name) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    String::from_utf8_lossy(&parts.join(&b'/')).into_owned()
}

/// Inflates into a file without a name, bounded by the limits for a layer and by what is free.
fn spool(inflated: &mut dyn Read, path: &Path, tmp: &Path, limits: &Limits) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let fd = rustix::fs::open(tmp, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("make a file in", tmp, e))?;
    let mut file = File::from(fd);
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0u64;
    loop {
        let count = match inflated.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io("decompress", path, e)),
        };
        file.write_all(&buffer[..count])
            .map_err(|e| Error::io("write to", tmp, e))?;
        total += count as u64;
        let stat = rustix::fs::fstatvfs(&file).map_err(|e| Error::io("look at the disk of", tmp, e))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if total > limits.layer_bytes || free < limits.reserve_bytes {
            let reason = format!(
                "decompressed it is larger than the limit or the disk ({total} bytes so far, {free} free)"
            );
            return Err(Error::Archive {
                path: path.to_path_buf(),
                reason,
            });
        }
    }
}
