//! Envelopes in and out of SEQPACKET datagrams, with descriptors and sealed memfds. Synchronous; works on blocking and
//! non-blocking sockets alike (`WouldBlock` comes back as such). Used by both sides.
//!
//! Nothing the peer sends is trusted: sizes and counts are bounded before anything is allocated, and a memfd is read
//! only once its seals prove that it cannot change underneath.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_sys::{memfd, scm};
use prost::Message;

use crate::Error;
use crate::message::Envelope;

/// The largest envelope that goes into a datagram; anything above goes into a memfd.
pub const MAX_INLINE: usize = 64 * 1024;
/// The largest envelope at all: an ExecSync answer of 16 MiB with room for the rest.
pub const MAX_BULK: usize = 20 * 1024 * 1024;
/// Descriptors in one datagram: the kernel's SCM_MAX_FD.
pub const MAX_DESCRIPTORS: usize = scm::MAX_FDS;

/// An envelope ready to be sent, possibly more than once (after `WouldBlock`).
#[derive(Debug)]
pub struct Datagram {
    bytes: Vec<u8>,
    bulk: Option<OwnedFd>,
}

/// Encodes `envelope`; moves its body into a sealed memfd if it is too large for a datagram.
pub fn encode(envelope: &Envelope) -> Result<Datagram, Error> {
    let size = envelope.encoded_len();
    if size <= MAX_INLINE {
        return Ok(Datagram {
            bytes: envelope.encode_to_vec(),
            bulk: None,
        });
    }
    if size > MAX_BULK {
        return Err(Error::TooLarge {
            size: size as u64,
            limit: MAX_BULK as u64,
        });
    }
    let memfd =
        memfd::sealed("holdfast-message", &envelope.encode_to_vec()).map_err(|source| Error::Bulk {
            action: "write",
            source,
        })?;
    let outer = Envelope {
        id: envelope.id,
        bulk: true,
        ..Envelope::default()
    };
    Ok(Datagram {
        bytes: outer.encode_to_vec(),
        bulk: Some(memfd),
    })
}

/// Sends one datagram with `descriptors` after the memfd, if there is one.
pub fn send(
    socket: BorrowedFd<'_>,
    datagram: &Datagram,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let mut all = Vec::with_capacity(descriptors.len() + 1);
    all.extend(datagram.bulk.as_ref().map(AsFd::as_fd));
    all.extend_from_slice(descriptors);
    if all.len() > MAX_DESCRIPTORS {
        return Err(Error::Descriptors {
            expected: MAX_DESCRIPTORS,
            got: all.len(),
        });
    }
    scm::send(socket, &datagram.bytes, &all).map_err(|source| match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone,
        _ => Error::Socket {
            action: "write to",
            source,
        },
    })
}

/// Receives one datagram into `buffer` (at least [`MAX_INLINE`] bytes). End of file is [`Error::Gone`].
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(Envelope, Vec<OwnedFd>), Error> {
    let received = scm::recv(socket, buffer).map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionReset => Error::Gone,
        _ => Error::Socket {
            action: "read from",
            source,
        },
    })?;
    if received.truncated {
        return Err(Error::protocol("a datagram that does not fit"));
    }
    if received.length == 0 {
        return Err(Error::Gone);
    }
    decode(&buffer[..received.length], received.fds)
}

/// Whether `error` only says that a non-blocking socket has nothing now.
pub fn would_block(error: &Error) -> bool {
    matches!(error, Error::Socket { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}

/// Decodes one datagram; takes the body out of the first descriptor where the datagram says so.
pub fn decode(bytes: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<(Envelope, Vec<OwnedFd>), Error> {
    let mut envelope = parse(bytes)?;
    if envelope.bulk {
        if descriptors.is_empty() {
            return Err(Error::Descriptors { expected: 1, got: 0 });
        }
        let id = envelope.id;
        let body = read_sealed(descriptors.remove(0))?;
        envelope = parse(&body)?;
        if envelope.bulk || envelope.id != id {
            return Err(Error::protocol("a bulk body that is not its datagram's"));
        }
    }
    let bodies = [
        envelope.request.is_some(),
        envelope.reply.is_some(),
        envelope.event.is_some(),
    ];
    if bodies.iter().filter(|present| **present).count() != 1 {
        return Err(Error::protocol("not exactly one of request, reply, event"));
    }
    Ok((envelope, descriptors))
}

fn parse(bytes: &[u8]) -> Result<Envelope, Error> {
    Envelope::decode(bytes).map_err(|error| Error::protocol(error.to_string()))
}

/// The content of a memfd from the peer, at most [`MAX_BULK`] bytes and proven to be sealed.
pub fn read_sealed(memfd: OwnedFd) -> Result<Vec<u8>, Error> {
    memfd::read_sealed(memfd, MAX_BULK).map_err(|source| Error::Bulk {
        action: "read",
        source,
    })
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
