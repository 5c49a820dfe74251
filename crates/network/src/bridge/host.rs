//! The host's side of the built-in network that all pods share: the bridge and the kernel's settings.

use std::io;
use std::path::PathBuf;

use tracing::{info, warn};

use crate::config::{BridgeConfig, Subnet};
use crate::netlink::{Batch, Socket, failed};
use crate::{Error, Result};

/// The bridge as it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub index: u32,
    pub mtu: u32,
}

/// Makes the bridge if it is missing, and brings one that is there to what is configured.
///
/// `earlier`: subnets that pods still have addresses in.
pub(crate) fn raise(socket: &mut Socket, config: &BridgeConfig, earlier: &[Subnet]) -> Result<Standing> {
    let name = config.name.as_str();
    let found = socket.link(name)?;
    let mtu = match (config.mtu, &found) {
        (Some(mtu), _) => mtu,
        (None, Some(link)) => link.mtu,
        (None, None) => uplink_mtu(socket)?.unwrap_or(1500),
    };
    if found.is_none() {
        let mut batch = Batch::default();
        batch.add_bridge(name, mac(config), mtu);
        socket.execute(batch)?;
        info!(bridge = name, mtu, "bridge created");
    }
    let link = socket.link(name)?.ok_or_else(|| {
        failed(
            format!("bridge {name} vanished while it was set up"),
            io::ErrorKind::NotFound.into(),
        )
    })?;
    if !link.bridge {
        return Err(Error::InvalidConfig {
            what: format!("interface {name} exists and is not a bridge"),
        });
    }
    sysctls(config)?;
    let subnets = super::ranges::subnets(config)
        .into_iter()
        .chain(earlier.iter().copied());
    let wanted: Vec<_> = subnets.map(|s| (s.gateway(), s.prefix())).collect();
    let mut batch = Batch::default();
    for (ip, prefix) in socket.addresses(link.index)? {
        let link_local = matches!(ip, std::net::IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
        if !link_local && !wanted.contains(&(ip, prefix)) {
            warn!(bridge = name, address = %ip, prefix, "address of an earlier configuration removed");
            batch.del_address(link.index, ip, prefix);
        }
    }
    batch.link_up(link.index, name);
    for (ip, prefix) in wanted {
        batch.add_address(link.index, ip, prefix);
    }
    socket.execute(batch)?;
    Ok(Standing {
        index: link.index,
        mtu: link.mtu,
    })
}

/// Stable for a configuration, so that a bridge made again is the neighbour that pods remember.
fn mac(config: &BridgeConfig) -> [u8; 6] {
    let low = match config.ipv4.or(config.ipv6).map(|s| s.gateway()) {
        Some(std::net::IpAddr::V4(ip)) => ip.octets(),
        Some(std::net::IpAddr::V6(ip)) => {
            let o = ip.octets();
            [o[0] ^ o[2], o[4] ^ o[5], o[6] ^ o[7], o[15]]
        }
        None => [0; 4],
    };
    [0x0a, 0x57, low[0], low[1], low[2], low[3]]
}

fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>> {
    let Some(index) = socket.default_links()?.first().copied() else {
        return Ok(None);
    };
    Ok(socket
        .links()?
        .into_iter()
        .find(|l| l.index == index)
        .map(|l| l.mtu))
}

/// The kernel's settings. `route_localnet`, which lets a connection from 127.0.0.1 leave towards a pod, is set on our
/// bridge alone, and the firewall drops what would abuse it.
fn sysctls(config: &BridgeConfig) -> Result<()> {
    let bridge = &config.name;
    if config.ipv4.is_some() {
        set_sysctl(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
        set_sysctl("ipv4/ip_forward", "1")?;
    }
    if config.ipv6.is_some() {
        set_sysctl(&format!("ipv6/conf/{bridge}/disable_ipv6"), "0")?;
        set_sysctl(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
        set_sysctl(&format!("ipv6/conf/{bridge}/accept_dad"), "0")?;
        keep_router_advertisements();
        set_sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A host that forwards ignores router advertisements unless `accept_ra` is 2: an uplink configured by them would lose
/// its default route the moment the first pod comes.
fn keep_router_advertisements() {
    let Ok(links) = std::fs::read_dir("/proc/sys/net/ipv6/conf") else {
        return;
    };
    for link in links.flatten() {
        let name = link.file_name();
        let name = name.to_string_lossy();
        if name == "all" || name == "default" || name == "lo" {
            continue;
        }
        let value = |key: &str| std::fs::read_to_string(link.path().join(key)).unwrap_or_default();
        if value("accept_ra").trim() == "1"
            && value("forwarding").trim() == "0"
            && let Err(error) = set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "2")
        {
            warn!(link = %name, error = error.chain(), "the interface may lose routes that it learned from its router");
        }
    }
}

/// Writes below `/proc/sys/net`, which shows the calling thread's namespace; not if the value is there already.
pub(crate) fn set_sysctl(key: &str, value: &str) -> Result<()> {
    let path = PathBuf::from("/proc/sys/net").join(key);
    if std::fs::read(&path).is_ok_and(|now| now.trim_ascii() == value.as_bytes()) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| Error::Io {
        what: "cannot set sysctl",
        path,
        source,
    })
}
