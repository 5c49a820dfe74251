//! What the built-in network needs of the kernel, tried.

use std::fs::File;
use std::os::fd::AsFd;

use crate::bridge::firewall::Firewall;
use crate::netlink::route::Veth;
use crate::netlink::{Batch, Family, Socket, failed};
use crate::{BridgeConfig, Result};

const MTU: u32 = 1500;
const BRIDGE_MAC: [u8; 6] = [0x0a, 0x57, 0, 0, 0, 1];
const POD_MAC: [u8; 6] = [0x0a, 0x57, 0, 0, 0, 2];

/// How each attempt went.
#[derive(Debug)]
pub struct Probe {
    pub bridge: Result<()>,
    pub veth: Result<()>,
    /// The whole nftables table, with address translation and maps.
    pub firewall: Result<()>,
}

/// Makes a bridge, a veth pair and the table in the calling thread's network namespace, and leaves them there: call it in
/// a namespace that is thrown away.
pub fn probe(config: &BridgeConfig) -> Probe {
    let made = links();
    let (bridge, veth) = match made {
        Ok(veth) => (Ok(()), veth),
        Err(error) => {
            let reason = "there is no bridge to put it on";
            (
                Err(error),
                Err(failed(reason, std::io::ErrorKind::NotFound.into())),
            )
        }
    };
    Probe {
        bridge,
        veth,
        firewall: Firewall::open(config, config.ipv4.into_iter().chain(config.ipv6).collect())
            .and_then(|mut firewall| firewall.rebuild(&[])),
    }
}

fn links() -> Result<Result<()>> {
    let mut socket = Socket::open(Family::Route)?;
    let mut batch = Batch::default();
    batch.add_bridge("probe0", BRIDGE_MAC, MTU);
    socket.execute(batch)?;
    let bridge = socket.link("probe0")?.map(|link| link.index).unwrap_or_default();
    Ok(veth(&mut socket, bridge))
}

fn veth(socket: &mut Socket, bridge: u32) -> Result<()> {
    let here = File::open("/proc/thread-self/ns/net")
        .map_err(|source| failed("cannot open /proc/thread-self/ns/net", source))?;
    let mut batch = Batch::default();
    batch.add_veth(&Veth {
        name: "probe1",
        bridge,
        mtu: MTU,
        peer: "probe2",
        peer_mac: POD_MAC,
        netns: here.as_fd(),
    });
    socket.execute(batch)
}
