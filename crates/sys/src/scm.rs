//! Datagrams with descriptors over SEQPACKET unix sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors that one datagram carries (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Two connected sockets, both close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one datagram; the descriptors stay the sender's too. No SIGPIPE: a closed peer is EPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_flags(socket, bytes, fds, SendFlags::NOSIGNAL)
}

/// As [`send`], but fails with EAGAIN where the peer's queue is full.
pub fn try_send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_flags(socket, bytes, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_flags(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} descriptors are too many for one datagram", fds.len()),
        ));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// A datagram as it came.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes written to the buffer; 0 with no descriptors is end of file.
    pub length: usize,
    pub fds: Vec<OwnedFd>,
    /// The datagram or its descriptors did not fit: it must not be trusted.
    pub truncated: bool,
}

/// Receives one datagram, waiting for it.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    recv_flags(socket, buffer, RecvFlags::empty())
}

/// Receives one datagram if there is one; else EAGAIN.
pub fn try_recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    recv_flags(socket, buffer, RecvFlags::DONTWAIT)
}

fn recv_flags(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Received> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    let lost = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    Ok(Received {
        length: message.bytes,
        fds,
        truncated: message.flags.intersects(lost),
    })
}
