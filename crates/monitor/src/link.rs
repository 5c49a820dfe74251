//! The connection with the daemon, and the socket on which a restarted daemon finds the monitor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use holdfast_monitor_api::Error;
use holdfast_monitor_api::codec::{self, Datagram, MAX_INLINE};
use holdfast_monitor_api::message::{Envelope, Event, Reply, event, reply};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Datagrams that may wait for a daemon that does not read; then the connection is given up, and the daemon's next
/// one gets the inventory.
const QUEUE: usize = 1024;
/// Room for an inline envelope and what surrounds it.
const RECEIVE: usize = MAX_INLINE + 1024;
pub const SOCKET_NAME: &str = "monitor.sock";

/// One connection.
pub struct Link {
    socket: OwnedFd,
    /// Which of the monitor's connections it is: an answer goes only to the one that asked.
    pub generation: u32,
    queue: VecDeque<(Datagram, Vec<OwnedFd>)>,
    pub broken: bool,
    /// What the poller was last told.
    pub wants_output: bool,
}

impl Link {
    pub fn new(socket: OwnedFd, generation: u32) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Link {
            socket,
            generation,
            queue: VecDeque::new(),
            broken: false,
            wants_output: false,
        })
    }

    pub fn receive(&self) -> Result<(Envelope, Vec<OwnedFd>), Error> {
        // A mapping of its own that goes back to the kernel at once; only the pages that are written cost anything.
        let mut buffer = vec![0; RECEIVE];
        codec::receive(self.socket.as_fd(), &mut buffer)
    }

    pub fn reply(&mut self, id: u64, body: reply::Body, descriptors: &[BorrowedFd<'_>]) {
        let envelope = Envelope {
            id,
            reply: Some(Reply { body: Some(body) }),
            ..Envelope::default()
        };
        self.send(&envelope, descriptors);
    }

    pub fn event(&mut self, body: event::Body) {
        let envelope = Envelope {
            event: Some(Event { body: Some(body) }),
            ..Envelope::default()
        };
        self.send(&envelope, &[]);
    }

    fn send(&mut self, envelope: &Envelope, descriptors: &[BorrowedFd<'_>]) {
        if self.broken {
            return;
        }
        let sent = codec::encode(envelope).and_then(|datagram| {
            if self.queue.is_empty() {
                match codec::send(self.socket.as_fd(), &datagram, descriptors) {
                    Err(error) if codec::would_block(&error) => {}
                    other => return other,
                }
            }
            self.enqueue(datagram, descriptors)
        });
        if sent.is_err() {
            self.broken = true;
        }
    }

    fn enqueue(&mut self, datagram: Datagram, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.queue.len() >= QUEUE {
            return Err(Error::Gone);
        }
        let own: io::Result<Vec<_>> = descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect();
        self.queue.push_back((datagram, own.map_err(|_| Error::Gone)?));
        Ok(())
    }

    /// Whether something waits for room.
    pub fn waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    pub fn flush(&mut self) {
        while let Some((datagram, own)) = self.queue.front() {
            let fds: Vec<_> = own.iter().map(AsFd::as_fd).collect();
            match codec::send(self.socket.as_fd(), datagram, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) => {
                    self.broken = self.broken || !codec::would_block(&error);
                    return;
                }
            }
        }
        self.queue = VecDeque::new();
    }

    /// Before a re-exec, which keeps the socket but not the queue: lets what waits go out, for a while.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            self.flush();
            if !self.waiting() || self.broken {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.broken = true;
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where daemons connect.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Binds `<state_dir>/monitor.sock`, mode 0600, replacing one that a dead monitor left.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The socket file gets its mode at bind, so there is no moment at which others could connect.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = holdfast_monitor_api::socket_address(&path)
            .and_then(|(_dir, address)| rustix::net::bind(&socket, &address));
        rustix::process::umask(old);
        bound?;
        rustix::net::listen(&socket, 4)?;
        Ok(Listener { socket, path })
    }

    /// One that an older program of this process has bound.
    pub fn resume(socket: OwnedFd, state_dir: &Path) -> Self {
        Listener {
            socket,
            path: state_dir.join(SOCKET_NAME),
        }
    }

    /// The next connection, of root; others are closed.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let socket = match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        Ok((peer.uid == rustix::process::Uid::ROOT).then_some(socket))
    }

    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use holdfast_monitor_api::message::Empty;

    use super::*;

    #[test]
    fn a_daemon_that_does_not_read_is_queued_for_and_then_given_up() {
        let (ours, theirs) = holdfast_sys::scm::pair().unwrap();
        let mut link = Link::new(ours, 0).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        while !link.waiting() {
            link.reply(1, reply::Body::Done(Empty {}), &[null.as_fd()]);
        }
        let mut buffer = vec![0; RECEIVE];
        let (_, fds) = codec::receive(theirs.as_fd(), &mut buffer).unwrap();
        assert_eq!(fds.len(), 1);
        link.flush();
        assert!(!link.waiting() && !link.broken);
        for _ in 0..QUEUE + 10_000 {
            link.reply(1, reply::Body::Done(Empty {}), &[]);
        }
        assert!(link.broken);
    }

    #[test]
    fn the_socket_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let listener = Listener::bind(dir.path()).unwrap();
            let mode = std::fs::metadata(dir.path().join(SOCKET_NAME))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(listener.accept().unwrap().is_none());
        }
    }
}
