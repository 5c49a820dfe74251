//! Counters of a pod's interfaces, through a route socket that lives in the pod's namespace: nobody has to enter it.

use std::os::fd::{AsFd, OwnedFd};

use crate::Result;
use crate::netlink::{Attributes, Batch, NLM_F_DUMP, Socket, failed};

const RTM_GETLINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const IFINFO: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
/// Interfaces of one pod that are told of.
const MAX_LINKS: usize = 64;
/// Those who set the namespace up counted from 1 on the same socket.
const FIRST: u32 = 1 << 30;

/// What an interface has received and sent since it was made (`rtnl_link_stats64`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads the counters of one namespace's interfaces. It keeps the namespace alive: drop it when the pod stops.
#[derive(Debug)]
pub struct PodLinks {
    fd: OwnedFd,
    seq: u32,
}

impl PodLinks {
    /// `socket`: a route netlink socket that was opened in the namespace.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            fd: socket,
            seq: FIRST,
        }
    }

    /// Counters of every interface but loopback, in the order of their indexes. May wait for the kernel's lock of network
    /// configuration.
    ///
    /// # Errors
    /// [`crate::Error::Netlink`].
    pub fn read(&mut self) -> Result<Vec<LinkCounters>> {
        let what = "cannot read the counters of a pod's interfaces";
        let fd = self.fd.as_fd().try_clone_to_owned();
        let mut socket = Socket::resume(fd.map_err(|e| failed(what, e))?, self.seq);
        let make = || {
            let mut batch = Batch::default();
            batch.push(RTM_GETLINK, NLM_F_DUMP, what, |out| {
                out.resize(out.len() + IFINFO, 0);
            });
            batch
        };
        let found = socket.dump(make, parse);
        self.seq = socket.next_seq();
        let mut found = found?;
        found.retain(|link| link.name != "lo");
        found.truncate(MAX_LINKS);
        Ok(found)
    }
}

fn parse(payload: &[u8]) -> Option<LinkCounters> {
    let mut out = LinkCounters::default();
    for (kind, value) in Attributes(payload.get(IFINFO..)?) {
        match kind {
            IFLA_IFNAME => {
                out.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            IFLA_STATS64 => {
                let field = |n: usize| {
                    let bytes = value.get(n * 8..n * 8 + 8)?;
                    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
                };
                let get = |n| field(n).unwrap_or(0);
                (out.rx_packets, out.tx_packets) = (get(0), get(1));
                (out.rx_bytes, out.tx_bytes) = (get(2), get(3));
                (out.rx_errors, out.tx_errors) = (get(4), get(5));
                (out.rx_dropped, out.tx_dropped) = (get(6), get(7));
            }
            _ => {}
        }
    }
    (!out.name.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        out.extend(len.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    #[test]
    fn a_link_message() {
        let mut payload = vec![0; IFINFO];
        attribute(&mut payload, IFLA_IFNAME, b"eth0\0");
        let numbers: Vec<u8> = (1u64..=24).flat_map(u64::to_ne_bytes).collect();
        attribute(&mut payload, IFLA_STATS64, &numbers);
        let wanted = LinkCounters {
            name: "eth0".into(),
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 3,
            tx_bytes: 4,
            rx_errors: 5,
            tx_errors: 6,
            rx_dropped: 7,
            tx_dropped: 8,
        };
        assert_eq!(parse(&payload), Some(wanted));
        for cut in 0..payload.len() {
            // Whatever is missing, nothing is read beyond the end.
            let _ = parse(&payload[..cut]);
        }
        assert_eq!(parse(&[0; IFINFO]), None);
    }
}
