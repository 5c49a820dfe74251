//! Addresses of sockets whose paths are longer than a unix socket's address can be.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

/// The address of the socket at `path`, to be used while the returned descriptor of its directory lives.
///
/// A path in `sockaddr_un` ends at 108 bytes (unix(7)), and a state directory may lie deep; through
/// `/proc/self/fd` only the socket's own name counts.
pub fn socket_address(path: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let dir = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let address = SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))?;
    Ok((dir, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket};

    #[test]
    fn a_socket_in_a_deep_directory_can_be_bound_and_reached() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("monitor.sock");
        let server = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let (_dir, address) = socket_address(&path).unwrap();
        bind(&server, &address).unwrap();
        listen(&server, 1).unwrap();
        let client = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let (_dir, address) = socket_address(&path).unwrap();
        connect(&client, &address).unwrap();
    }
}
