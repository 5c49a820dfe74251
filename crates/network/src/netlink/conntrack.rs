//! Removal of UDP connection-tracking entries.
//!
//! UDP has no end of connection: an entry made before a host port existed, or for the pod that had it before, would
//! carry packets past the new rule for as long as they keep coming.

use std::net::IpAddr;

use super::nfnl::{attr, attr_u32, head, nest};
use super::{Attributes, Batch, NLM_F_ACK, NLM_F_DUMP, Socket, u16_at};
use crate::Result;

use rustix::io::Errno;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const FILTER: u16 = 25;
const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Requests in one batch: the answers have to fit the socket's receive buffer.
const ANSWERS: usize = 100;

/// An entry to be removed: its original direction, as the kernel wrote it.
struct Entry {
    family: u8,
    original: Vec<u8>,
}

impl Socket {
    /// Removes UDP entries whose original destination is one of the host ports. With `pod`, only those that lead to
    /// one of its addresses; else all of them. Returns how many.
    pub(crate) fn flush_udp(&mut self, host_ports: &[u16], pod: Option<&[IpAddr]>) -> Result<usize> {
        let mut batch = Batch::default();
        let mut removed = 0;
        for &port in host_ports {
            for family in [AF_INET, AF_INET6] {
                let entries = self.dump(
                    || {
                        let mut batch = Batch::default();
                        batch.push(GET, NLM_F_DUMP, "cannot list conntrack entries", |out| {
                            filter(out, family, port);
                        });
                        batch
                    },
                    |payload| select(payload, family, port, pod),
                )?;
                for entry in entries {
                    batch.push(DELETE, NLM_F_ACK, "cannot delete a conntrack entry", |out| {
                        head(out, entry.family, 0);
                        nest(out, TUPLE_ORIGINAL, |out| out.extend_from_slice(&entry.original));
                    });
                    batch.tolerate(&[Errno::NOENT]);
                    removed += 1;
                    if batch.len() >= ANSWERS {
                        self.execute(std::mem::take(&mut batch))?;
                    }
                }
            }
        }
        self.execute(batch)?;
        Ok(removed)
    }
}

/// A dump request that lets only UDP entries to that port through (the kernel filters since 5.8).
fn filter(out: &mut Vec<u8>, family: u8, port: u16) {
    const BY_PROTOCOL: u32 = 1 << 3;
    const BY_DESTINATION_PORT: u32 = 1 << 5;
    head(out, family, 0);
    nest(out, TUPLE_ORIGINAL, |out| {
        nest(out, 2, |out| {
            attr(out, 1, &[UDP]);
            attr(out, 3, &port.to_be_bytes());
        });
    });
    nest(out, FILTER, |out| {
        // These flags are in the byte order of the machine, unlike everything else here.
        attr_u32(out, 1, (BY_PROTOCOL | BY_DESTINATION_PORT).to_be());
        attr_u32(out, 2, 0);
    });
}

fn select(payload: &[u8], family: u8, port: u16, pod: Option<&[IpAddr]>) -> Option<Entry> {
    let find = |kind| {
        Attributes(payload.get(4..)?)
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value)
    };
    let original = find(TUPLE_ORIGINAL)?;
    let (_, protocol, to_port) = tuple(original)?;
    if protocol != UDP || to_port != port {
        return None;
    }
    if let Some(pod) = pod {
        let (source, _, _) = tuple(find(TUPLE_REPLY)?)?;
        if !pod.contains(&source) {
            return None;
        }
    }
    Some(Entry {
        family,
        original: original.to_vec(),
    })
}

/// Source address, protocol and destination port of a tuple.
fn tuple(bytes: &[u8]) -> Option<(IpAddr, u8, u16)> {
    let part = |kind| {
        Attributes(bytes)
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value)
    };
    let (ip, protocol) = (part(1)?, part(2)?);
    let source = Attributes(ip).find_map(|(kind, value)| match kind {
        1 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        3 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    })?;
    let number = Attributes(protocol).find(|(k, _)| *k == 1)?.1.first().copied()?;
    let port = Attributes(protocol)
        .find(|(k, _)| *k == 3)
        .and_then(|(_, v)| u16_at(v, 0))
        .map_or(0, u16::from_be);
    Some((source, number, port))
}
