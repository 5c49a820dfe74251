//! The floor's network: a bridge, and for each pod a veth pair with addresses and routes, by raw netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, bail};
use holdfast_sys::{clone, namespace, net};
use rustix::net::{RecvFlags, SendFlags, recv, send};

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const REQUEST_ACK: u16 = 0x5;
const CREATE_EXCL: u16 = 0x600;
const IFF_UP: u32 = 1;
/// Index that a pod's interface gets in its own namespace.
const INSIDE: u32 = 77;
/// Indices of the other ends begin here.
const OUTSIDE: u32 = 1000;

pub struct Bridge {
    socket: OwnedFd,
    index: u32,
    home: std::fs::File,
}

impl Bridge {
    pub fn new() -> anyhow::Result<Self> {
        const NAME: &str = "floor0";
        let home = std::fs::File::open("/proc/self/ns/net")?;
        let socket = net::route_socket()?;
        net::loopback_up()?;
        let mut message = Message::new(NEWLINK, CREATE_EXCL, &link(0, true));
        message.text(3, NAME);
        message.nest(18, |info| info.text(1, "bridge"));
        message.ask(&socket)?;
        let index = rustix::net::netdevice::name_to_index(
            rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::DGRAM,
                None,
            )?,
            NAME,
        )?;
        let bridge = Self { socket, index, home };
        address(index, IpAddr::V4(Ipv4Addr::new(10, 90, 0, 1)), 16).ask(&bridge.socket)?;
        address(index, v6(1), 64).ask(&bridge.socket)?;
        Ok(bridge)
    }

    /// A veth pair from the bridge into the namespace, with addresses and default routes.
    pub fn attach(&self, netns: &OwnedFd, number: u32) -> anyhow::Result<()> {
        namespace::join(std::os::fd::AsFd::as_fd(netns), clone::NEWNET)?;
        let inside = net::route_socket();
        namespace::join(std::os::fd::AsFd::as_fd(&self.home), clone::NEWNET)?;
        let inside = inside?;

        // The kernel honours the index of the inner end only where the outer one has one too.
        let mut message = Message::new(NEWLINK, CREATE_EXCL, &link(OUTSIDE + number, true));
        message.text(3, &format!("f{number}"));
        message.number(10, self.index);
        message.nest(18, |info| {
            info.text(1, "veth");
            info.nest(2, |data| {
                data.nest(1, |peer| {
                    peer.bytes.extend_from_slice(&link(INSIDE, false));
                    peer.text(3, "eth0");
                    peer.number(28, netns.as_raw_fd() as u32);
                });
            });
        });
        message.ask(&self.socket).context("veth")?;

        // Network and gateway are .0.0 and .0.1.
        let host = (number + 1) % 0xffff;
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 90, 0, 0)) + host);
        address(INSIDE, v4.into(), 16).ask(&inside).context("address")?;
        address(INSIDE, v6(u128::from(host)), 64)
            .ask(&inside)
            .context("IPv6 address")?;
        Message::new(NEWLINK, 0, &link(INSIDE, true))
            .ask(&inside)
            .context("eth0 up")?;
        route(Ipv4Addr::new(10, 90, 0, 1).into())
            .ask(&inside)
            .context("route")?;
        route(v6(1)).ask(&inside).context("IPv6 route")
    }
}

fn v6(host: u128) -> IpAddr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, 0)) + host).into()
}

/// `struct ifinfomsg`.
fn link(index: u32, up: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        bytes[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    bytes
}

fn address(index: u32, address: IpAddr, prefix: u8) -> Message {
    // IFA_F_NODAD: nobody else has it.
    const NODAD: u8 = 0x02;
    let (family, flags) = if address.is_ipv4() { (2, 0) } else { (10, NODAD) };
    let mut header = [family, prefix, flags, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEWADDR, CREATE_EXCL, &header);
    message.ip(2, address);
    message.ip(1, address);
    message
}

fn route(gateway: IpAddr) -> Message {
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    let family = if gateway.is_ipv4() { 2 } else { 10 };
    let header = [family, 0, 0, 0, MAIN, STATIC, 0, UNICAST, 0, 0, 0, 0];
    let mut message = Message::new(NEWROUTE, CREATE_EXCL, &header);
    message.ip(5, gateway);
    message.number(4, INSIDE);
    message
}

/// A netlink request in the making, or a nested attribute of one.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, format!("{value}\0").as_bytes());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self { bytes: Vec::new() };
        fill(&mut inner);
        self.attribute(kind, &inner.bytes);
    }

    /// Sends it and reads the answer, which the kernel has ready when the send returns.
    fn ask(mut self, socket: &OwnedFd) -> anyhow::Result<()> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        send(socket, &self.bytes, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        let (n, _) = recv(socket, &mut answer, RecvFlags::empty())?;
        let code = answer.get(16..20).filter(|_| n >= 20);
        match code
            .and_then(|code| <[u8; 4]>::try_from(code).ok())
            .map(i32::from_ne_bytes)
        {
            Some(0) => Ok(()),
            Some(code) => Err(std::io::Error::from_raw_os_error(-code).into()),
            None => bail!("netlink answers {n} bytes"),
        }
    }
}
