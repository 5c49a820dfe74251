//! Netlink socket options that rustix has no safe wrapper for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks for error texts from the kernel, and for acknowledgements that do not repeat the request.
pub fn extended_acks(socket: BorrowedFd<'_>) -> io::Result<()> {
    for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is borrowed and open, and the pointer and length describe a live c_int, which is what
        // these options take.
        let status = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
