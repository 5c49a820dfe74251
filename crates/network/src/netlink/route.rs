//! The few rtnetlink requests that a pod's network is made of, and what is read back.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::{Batch, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Socket};
use crate::Result;

/// Multicast group of link changes, as a bit mask.
pub(crate) const LINK_GROUP: u32 = 1;
/// Type of "a link is gone" notifications.
pub(crate) const RTM_DELLINK: u16 = 17;
/// The index of `lo`, which is the first interface of every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// A link, as far as anybody here cares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub controller: u32,
    pub bridge: bool,
    pub veth: bool,
    pub mac: Vec<u8>,
}

/// A veth pair whose one end is a port of the bridge and whose other end is born in the pod's namespace.
pub(crate) struct Veth<'a> {
    pub name: &'a str,
    pub bridge: u32,
    pub mtu: u32,
    pub peer: &'a str,
    pub peer_mac: [u8; 6],
    pub netns: BorrowedFd<'a>,
}

fn push(batch: &mut Batch, flags: u16, what: impl Into<String>, message: &RouteNetlinkMessage) {
    batch.push(message.message_type(), flags, what, |out| {
        let at = out.len();
        out.resize(at + message.buffer_len(), 0);
        message.emit(&mut out[at..]);
    });
}

fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

impl Batch {
    /// The bridge, down: its sysctls are written before its addresses appear.
    pub(crate) fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) {
        let message = link(vec![
            LinkAttribute::IfName(name.into()),
            // Fixed, or it would follow the lowest of the ports' and break every pod's neighbour entry.
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::ForwardDelay(0),
                    // Snooping without a querier loses neighbour solicitations, which are multicast.
                    InfoBridge::MulticastSnooping(false),
                ])),
            ]),
        ]);
        let what = format!("cannot create bridge {name}");
        push(
            self,
            NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
            what,
            &RouteNetlinkMessage::NewLink(message),
        );
        self.tolerate(&[Errno::EXIST]);
    }

    /// The pair, and the settings of its host end. The host end goes up in the second request, after "no link-local
    /// address" is set, and gets hairpin mode for hosts that pass bridged packets through iptables.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>) {
        // Down: the kernel cannot bring up an end whose other end is not there yet.
        let peer = link(vec![
            LinkAttribute::IfName(veth.peer.into()),
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsFd(veth.netns.as_raw_fd()),
        ]);
        let pair = link(vec![
            LinkAttribute::IfName(veth.name.into()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        let what = format!("cannot create veth pair {} for a pod", veth.name);
        push(
            self,
            NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
            what,
            &RouteNetlinkMessage::NewLink(pair),
        );

        let mut port = link(vec![
            LinkAttribute::IfName(veth.name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]),
        ]);
        up(&mut port);
        let what = format!("cannot configure bridge port {}", veth.name);
        push(self, NLM_F_ACK, what, &RouteNetlinkMessage::NewLink(port));
        // A kernel booted with ipv6.disable=1 does all the rest and then says this.
        self.tolerate(&[Errno::AFNOSUPPORT]);
    }

    pub(crate) fn link_up(&mut self, index: u32, what: &str) {
        let mut message = link(Vec::new());
        message.header.index = index;
        up(&mut message);
        push(
            self,
            NLM_F_ACK,
            format!("cannot bring {what} up"),
            &RouteNetlinkMessage::SetLink(message),
        );
    }

    /// Adds an address that is usable at once: IPv6 without duplicate address detection.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let what = format!("cannot add address {address}/{prefix}");
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address, prefix));
        push(self, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK, what, &message);
    }

    pub(crate) fn del_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let what = format!("cannot remove address {address}/{prefix}");
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address, prefix));
        push(self, NLM_F_ACK, what, &message);
        self.tolerate(&[Errno::ADDRNOTAVAIL]);
    }

    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::from(gateway)),
            RouteAttribute::Oif(index),
        ];
        let what = format!("cannot add a default route via {gateway}");
        push(
            self,
            NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK,
            what,
            &RouteNetlinkMessage::NewRoute(message),
        );
    }

    pub(crate) fn del_link(&mut self, name: &str) {
        let message = link(vec![LinkAttribute::IfName(name.into())]);
        push(
            self,
            NLM_F_ACK,
            format!("cannot delete interface {name}"),
            &RouteNetlinkMessage::DelLink(message),
        );
        self.tolerate(&[Errno::NODEV]);
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    match address {
        IpAddr::V4(v4) => {
            let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            message
                .attributes
                .push(AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(v4) | hosts)));
        }
        IpAddr::V6(_) => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

/// Reads the payload of a link message.
pub(crate) fn parse_link(payload: &[u8]) -> Option<Link> {
    let message = LinkMessage::parse(payload).ok()?;
    let mut found = Link {
        index: message.header.index,
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::Controller(index) => found.controller = index,
            LinkAttribute::Address(mac) => found.mac = mac,
            LinkAttribute::LinkInfo(infos) => {
                found.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                found.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    Some(found)
}

impl Socket {
    /// The link of that name in the socket's namespace.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut batch = Batch::default();
        let message = RouteNetlinkMessage::GetLink(link(vec![LinkAttribute::IfName(name.into())]));
        push(
            &mut batch,
            0,
            format!("cannot look interface {name} up"),
            &message,
        );
        match self.get(batch, |_, payload| parse_link(payload)) {
            Ok(found) => Ok(found),
            Err(error) if error.netlink_errno() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let make = || {
            let mut batch = Batch::default();
            let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
            push(&mut batch, NLM_F_DUMP, "cannot list interfaces", &message);
            batch
        };
        self.dump(make, parse_link)
    }

    /// Addresses of one link, with their prefix lengths.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<(IpAddr, u8)>> {
        let make = || {
            let mut batch = Batch::default();
            let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
            push(&mut batch, NLM_F_DUMP, "cannot list addresses", &message);
            batch
        };
        self.dump(make, |payload| {
            let message = AddressMessage::parse(payload)
                .ok()
                .filter(|m| m.header.index == index)?;
            let pick = |local: bool| {
                message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            Some((pick(true).or_else(|| pick(false))?, message.header.prefix_len))
        })
    }

    /// Indexes of the links that default routes of the main table use, IPv4 first.
    pub(crate) fn default_links(&mut self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let make = || {
                let mut message = RouteMessage::default();
                message.header.address_family = family;
                let mut batch = Batch::default();
                push(
                    &mut batch,
                    NLM_F_DUMP,
                    "cannot list routes",
                    &RouteNetlinkMessage::GetRoute(message),
                );
                batch
            };
            found.extend(self.dump(make, |payload| {
                let message = RouteMessage::parse(payload).ok()?;
                let header = &message.header;
                let default = header.destination_prefix_length == 0
                    && header.table == RouteHeader::RT_TABLE_MAIN
                    && header.kind == RouteType::Unicast;
                message
                    .attributes
                    .iter()
                    .filter(|_| default)
                    .find_map(|a| match a {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    })
            })?);
        }
        Ok(found)
    }
}
