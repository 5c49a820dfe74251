//! Non-blocking descriptors under tokio: pipes, sockets and terminals alike.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Read at a time.
const READ: usize = 32 << 10;

/// The descriptor is owned by what this returns, so that its number cannot be another's meanwhile: that is what the
/// deprecation, and the unsafe function in its place, are about.
#[expect(
    deprecated,
    reason = "the replacement is unsafe, and an OwnedFd fulfils its contract"
)]
fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// The near end that is read.
#[derive(Debug)]
pub struct Reader {
    fd: AsyncFd<OwnedFd>,
    buffer: BytesMut,
}

impl Reader {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: watch(fd, Interest::READABLE)?,
            buffer: BytesMut::new(),
        })
    }

    /// `None` at the end. A terminal's master tells the end by EIO.
    pub async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut ready = self.fd.readable().await?;
            // Taken only now, so that one who waits holds no buffer.
            if self.buffer.len() < READ {
                self.buffer.resize(READ, 0);
            }
            match rustix::io::read(ready.get_inner(), &mut self.buffer[..]) {
                Ok(0) | Err(Errno::IO) => return Ok(None),
                Ok(n) => {
                    let data = self.buffer.split_to(n).freeze();
                    // A few bytes do not pin what is left of a large buffer.
                    if n < READ / 8 {
                        let copy = Bytes::copy_from_slice(&data);
                        drop(data);
                        self.buffer = BytesMut::new();
                        return Ok(Some(copy));
                    }
                    return Ok(Some(data));
                }
                Err(Errno::AGAIN) => {
                    self.buffer = BytesMut::new();
                    ready.clear_ready();
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The near end that is written. Dropping it closes it.
#[derive(Debug)]
pub struct Writer(AsyncFd<OwnedFd>);

impl Writer {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(watch(fd, Interest::WRITABLE)?))
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::write(ready.get_inner(), bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
