//! The terminal that a runtime makes and sends over a socket (`--console-socket`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use holdfast_sys::scm;
use rustix::fs::{Mode, OFlags};

use crate::error::Kind;
use crate::fault::{Context, Fault, Result};

/// A socket in the bundle, waiting for a terminal.
pub(super) struct Console {
    /// Its path by way of our own descriptor: a bundle's own may be longer than a socket address holds.
    pub path: String,
    file: std::path::PathBuf,
    listener: UnixListener,
    _directory: OwnedFd,
}

impl Console {
    pub fn listen(bundle: &Path, name: &str) -> Result<Self> {
        let what = || format!("listen for a terminal in {}", bundle.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(bundle, flags, Mode::empty()).at(what)?;
        let file = bundle.join(name);
        let _none = std::fs::remove_file(&file);
        let pid = rustix::process::getpid().as_raw_nonzero();
        let path = format!("/proc/{pid}/fd/{}/{name}", directory.as_raw_fd());
        let listener = UnixListener::bind(&path).at(what)?;
        listener.set_nonblocking(true).at(what)?;
        Ok(Self {
            path,
            file,
            listener,
            _directory: directory,
        })
    }

    /// The terminal's master, once the runtime is through: it sends it before it ends.
    pub fn take(self) -> Result<OwnedFd> {
        let what = || "take the terminal that the runtime has made";
        let (socket, _) = self.listener.accept().at(what)?;
        let mut name = [0; 4096];
        let received = scm::recv(socket.as_fd(), &mut name).at(what)?;
        let _gone = std::fs::remove_file(&self.file);
        received
            .fds
            .into_iter()
            .next()
            .ok_or_else(|| Fault::new(Kind::Internal, "the runtime has sent no terminal"))
    }
}
