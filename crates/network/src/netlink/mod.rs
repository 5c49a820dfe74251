//! Synchronous netlink: one socket, several requests in one `send`, one answer each.
//!
//! The kernel works a request off inside `send`, so nothing here waits for anything but the kernel's locks; that is why
//! it is not asynchronous. Messages of rtnetlink are `netlink-packet-route`'s; those of nftables and conntrack are
//! encoded in [`nfnl`], for which there is no complete crate.

pub(crate) mod conntrack;
pub(crate) mod nfnl;
pub(crate) mod route;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::{Error, Result};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// Longest message of the kernel: dumps are cut to the reader's buffer, up to 32 KiB.
const RECEIVE: usize = 64 << 10;
/// A request that the kernel does not answer in this time means a stuck rtnl lock; the caller gets an error.
const ANSWER: Duration = Duration::from_secs(20);
/// A dump that keeps being interrupted by changes is taken as it is after this many tries.
const DUMP_TRIES: u32 = 5;

/// Which part of the kernel a socket speaks to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    Route,
    Netfilter,
}

impl Family {
    /// `NETLINK_ROUTE` is 0, which rustix spells as none.
    fn protocol(self) -> Option<net::Protocol> {
        match self {
            Self::Route => None,
            Self::Netfilter => Some(net::netlink::NETFILTER),
        }
    }
}

/// Requests that go to the kernel in one `send`.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    requests: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    at: usize,
    what: String,
    tolerated: &'static [Errno],
    acked: bool,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Adds a request; `what` says in an error what was being done, `emit` appends the payload.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        what: impl Into<String>,
        emit: impl FnOnce(&mut Vec<u8>),
    ) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        emit(&mut self.bytes);
        let len = self.bytes.len() - at;
        self.bytes.resize(at + len.next_multiple_of(4), 0);
        let flags = flags | NLM_F_REQUEST;
        self.bytes[at..at + 4].copy_from_slice(&u32_len(len).to_ne_bytes());
        self.bytes[at + 4..at + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        let acked = flags & NLM_F_ACK != 0;
        self.requests.push(Request {
            at,
            what: what.into(),
            tolerated: &[],
            acked,
        });
    }

    /// These answers to the request added last are as good as success.
    pub(crate) fn tolerate(&mut self, errors: &'static [Errno]) {
        if let Some(last) = self.requests.last_mut() {
            last.tolerated = errors;
        }
    }

    /// Asks for an answer to the request added last.
    pub(crate) fn ask_ack(&mut self) {
        if let Some(last) = self.requests.last_mut() {
            last.acked = true;
            self.bytes[last.at + 6] |= NLM_F_ACK.to_ne_bytes()[0];
            self.bytes[last.at + 7] |= NLM_F_ACK.to_ne_bytes()[1];
        }
    }

    fn number(&mut self, first: u32) {
        for (n, request) in self.requests.iter().enumerate() {
            let seq = first.wrapping_add(u32_len(n));
            self.bytes[request.at + 8..request.at + 12].copy_from_slice(&seq.to_ne_bytes());
        }
    }
}

/// Lengths here are far below 4 GiB.
fn u32_len(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A netlink socket. It acts in the namespace that it was opened in, whoever holds it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: Box<[u8]>,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open(family: Family) -> Result<Self> {
        let fd = net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            family.protocol(),
        )
        .map_err(|e| failed("cannot open a netlink socket", e.into()))?;
        Self::adopt(fd)
    }

    /// Takes a socket that somebody else opened.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self> {
        // Both are niceties (texts in errors, shorter answers), and a bound on waiting; the work is the same without.
        let _ = holdfast_sys::netlink::extended_acks(fd.as_fd());
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER))
            .map_err(|e| failed("cannot set a time-out on a netlink socket", e.into()))?;
        Ok(Self {
            fd,
            seq: 1,
            buffer: vec![0; RECEIVE].into_boxed_slice(),
        })
    }

    /// Takes a socket that has been used with numbers below `seq`, until it is let go of again.
    pub(crate) fn resume(fd: OwnedFd, seq: u32) -> Self {
        Self {
            fd,
            seq,
            buffer: vec![0; RECEIVE].into_boxed_slice(),
        }
    }

    /// The number of the next request.
    pub(crate) fn next_seq(&self) -> u32 {
        self.seq
    }

    /// Has multicast groups (bit mask) delivered to a new non-blocking socket.
    pub(crate) fn listen(family: Family, groups: u32) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, family.protocol())
            .map_err(|e| failed("cannot open a netlink socket", e.into()))?;
        // Bursts of a hundred dying pods must fit; where they do not, the listener looks again by itself.
        let _ = sockopt::set_socket_recv_buffer_size(&fd, 1 << 20);
        net::bind(&fd, &SocketAddrNetlink::new(0, groups))
            .map_err(|e| failed("cannot listen to netlink notifications", e.into()))?;
        Ok(fd)
    }

    fn send(&mut self, batch: &mut Batch) -> Result<u32> {
        let first = self.seq;
        batch.number(first);
        self.seq = self.seq.wrapping_add(u32_len(batch.len())).max(1);
        let what = batch
            .requests
            .first()
            .map_or("netlink request", |r| r.what.as_str());
        match net::send(&self.fd, &batch.bytes, SendFlags::empty()) {
            Ok(n) if n == batch.bytes.len() => Ok(first),
            Ok(_) => Err(failed(what, io::ErrorKind::WriteZero.into())),
            Err(e) => Err(failed(what, e.into())),
        }
    }

    fn receive(&mut self, what: &str) -> Result<&[u8]> {
        let len = loop {
            match net::recv(&self.fd, &mut *self.buffer, RecvFlags::empty()) {
                Ok((_, len)) => break len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(failed(what, io::ErrorKind::TimedOut.into())),
                Err(e) => return Err(failed(what, e.into())),
            }
        };
        Ok(&self.buffer[..len.min(RECEIVE)])
    }

    /// Carries every request out; the first answer that is an error and not tolerated is the result. Requests after a
    /// failed one have been tried too (rtnetlink) or undone with it (nftables, whose batches are atomic).
    pub(crate) fn execute(&mut self, mut batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.send(&mut batch)?;
        let mut waiting = batch.requests.iter().filter(|r| r.acked).count();
        let last_acked = batch.requests.iter().rposition(|r| r.acked);
        let mut outcome = Ok(());
        while waiting > 0 {
            let mut at_end = false;
            let answers = self.receive(&batch.requests[0].what)?;
            for message in Messages(answers) {
                let nth = message.seq.wrapping_sub(first) as usize;
                let Some(request) = batch.requests.get(nth).filter(|_| message.kind == NLMSG_ERROR) else {
                    continue;
                };
                waiting = waiting.saturating_sub(usize::from(request.acked));
                at_end |= Some(nth) == last_acked;
                if let Err(error) = message.outcome(&request.what) {
                    let tolerated = request
                        .tolerated
                        .iter()
                        .any(|e| error.netlink_errno() == Some(e.raw_os_error()));
                    if !tolerated && outcome.is_ok() {
                        outcome = Err(error);
                    }
                }
            }
            // nftables stops answering after an error that ends the batch early.
            if at_end || (outcome.is_err() && last_acked.is_some_and(|l| l + 1 < batch.requests.len())) {
                break;
            }
        }
        outcome
    }

    /// One request with one answer: its type and payload.
    pub(crate) fn get<T>(&mut self, mut batch: Batch, parse: impl FnOnce(u16, &[u8]) -> T) -> Result<T> {
        let first = self.send(&mut batch)?;
        let what = std::mem::take(&mut batch.requests[0].what);
        loop {
            let answer = self.receive(&what)?;
            for message in Messages(answer).filter(|m| m.seq == first) {
                if message.kind == NLMSG_ERROR {
                    message.outcome(&what)?;
                } else {
                    return Ok(parse(message.kind, message.payload));
                }
            }
        }
    }

    /// A dump: `each` is given every payload. Repeated if the kernel says that it changed meanwhile.
    pub(crate) fn dump<T>(
        &mut self,
        make: impl Fn() -> Batch,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        for _ in 0..DUMP_TRIES {
            found.clear();
            let mut batch = make();
            let first = self.send(&mut batch)?;
            let mut interrupted = false;
            'read: loop {
                let answer = self.receive(&batch.requests[0].what)?;
                for message in Messages(answer).filter(|m| m.seq == first) {
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_DONE => break 'read,
                        NLMSG_ERROR => {
                            message.outcome(&batch.requests[0].what)?;
                            break 'read;
                        }
                        _ => found.extend(parse(message.payload)),
                    }
                }
            }
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn failed(what: impl Into<String>, source: io::Error) -> Error {
    Error::Netlink {
        what: what.into(),
        detail: None,
        source,
    }
}

/// Lets tokio wait for a descriptor.
pub(crate) fn readable(fd: OwnedFd, what: &str) -> Result<AsyncFd<OwnedFd>> {
    // Deprecated for types whose descriptor may change behind its back; an OwnedFd's does not, and the successor is unsafe.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd, Interest::READABLE).map_err(|e| failed(what, e))
}

/// One message of an answer.
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub payload: &'a [u8],
}

/// Walks the messages of one datagram; anything malformed ends the walk.
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let message = self.0.get(..len).filter(|_| len >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            seq: u32_at(message, 8)?,
            payload: &message[HEADER..],
        })
    }
}

impl Message<'_> {
    /// Reads an `NLMSG_ERROR`: zero is success.
    fn outcome(&self, what: &str) -> Result<()> {
        let code = u32_at(self.payload, 0).map_or(0, |code| code as i32);
        if code == 0 {
            return Ok(());
        }
        let request = u32_at(self.payload, 4).unwrap_or(0) as usize;
        let skip = 4 + if self.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            request.next_multiple_of(4)
        };
        let detail = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| self.payload.get(skip..))
            .flatten()
            .and_then(|rest| Attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        Err(Error::Netlink {
            what: what.to_owned(),
            detail,
            source: io::Error::from_raw_os_error(-code),
        })
    }
}

/// Walks attributes: type (without its flag bits) and value.
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
