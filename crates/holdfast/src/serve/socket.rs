//! The socket's life: never two servers behind one path, never open to others, gone when we go.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::stat::{Mode, umask};

/// A listening socket and the path that leads to it.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    guard: Guard,
}

/// Removes the path when dropped, if it is still ours.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    inode: u64,
}

/// Must run while the process has one thread: the umask is the whole process's.
pub fn bind(path: &Path) -> Result<Bound> {
    let shown = path.display();
    clear_stale(path)?;
    // 0660 from the first moment on, with no chmod behind it that somebody could overtake.
    let before = umask(Mode::from_bits_truncate(0o117));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {shown}"))?;
    let inode = std::fs::symlink_metadata(path)
        .with_context(|| format!("cannot look at {shown}"))?
        .ino();
    Ok(Bound {
        listener,
        guard: Guard {
            path: path.to_owned(),
            inode,
        },
    })
}

/// What a predecessor left is removed; a predecessor that lives, or something else, is not.
fn clear_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {shown}")),
    };
    if !meta.file_type().is_socket() {
        bail!("{shown} is there and is no socket: name another with --listen");
    }
    if UnixStream::connect(path).is_ok() {
        bail!("another server listens on {shown}: stop it first, or name another socket with --listen");
    }
    std::fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))
}

impl Bound {
    pub fn into_tokio(self) -> Result<(tokio::net::UnixListener, Guard)> {
        self.listener
            .set_nonblocking(true)
            .context("cannot make the socket non-blocking")?;
        let listener =
            tokio::net::UnixListener::from_std(self.listener).context("cannot watch the socket")?;
        Ok((listener, self.guard))
    }
}

impl Guard {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A successor may have put its own there already.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn mode_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let bound = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        assert!(bind(&path).unwrap_err().to_string().contains("another server"));
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_stale_is_replaced_and_what_is_not_ours_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        std::fs::write(&path, "").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
    }
}
