//! Settings of the network: where CNI's files are and how the built-in bridge looks. Parsing only, no I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Where everything is; one value for the life of a [`crate::Network`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of `*.conf`, `*.conflist` and `*.json`; the first by name is used. `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// Directories searched for plugins, in order. `/opt/cni/bin`, `/usr/lib/cni`.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// A Go template of a CNI configuration: filled in with the node's pod ranges when the kubelet hands them down, and
    /// written into `cni_conf_dir`. Until then there is no network.
    pub cni_conf_template: Option<PathBuf>,
    /// Deadline of one plugin call; the plugin's process group is killed when it passes.
    pub cni_timeout: Duration,
    /// The built-in network, used while there is no CNI configuration.
    pub bridge: BridgeConfig,
    /// The network's own directory (`<root>/network`): records of addresses and cached CNI results, which outlive the
    /// daemon and a reboot.
    pub root: PathBuf,
    /// The runtime's state directory (tmpfs), where namespaces are bound for external plugins.
    pub state: PathBuf,
}

impl Config {
    /// Standard places, with the network's own directory and the daemon's state directory.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self {
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cni_conf_template: None,
            cni_timeout: Duration::from_secs(60),
            bridge: BridgeConfig::default(),
            root: root.into(),
            state: state.into(),
        }
    }
}

/// The built-in bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BridgeConfig {
    /// Name of the bridge, at most 15 bytes.
    pub name: String,
    /// Pod subnet for IPv4; the first address is the gateway. Absent: no IPv4.
    pub ipv4: Option<Subnet>,
    /// Pod subnet for IPv6; the first address is the gateway. Absent: no IPv6.
    pub ipv6: Option<Subnet>,
    /// Absent: that of the interface with the default route, else 1500.
    pub mtu: Option<u32>,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            name: "holdfast0".into(),
            ipv4: Some(Subnet::new(IpAddr::V4(Ipv4Addr::new(10, 87, 0, 0)), 16)),
            ipv6: Some(Subnet::new(
                IpAddr::V6(Ipv6Addr::new(0xfd87, 0x686f, 0x6c64, 0, 0, 0, 0, 0)),
                64,
            )),
            mtu: None,
        }
    }
}

impl BridgeConfig {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let bad = |what: String| Err(Error::InvalidConfig { what });
        let name_ok = !self.name.is_empty()
            && self.name.len() <= 15
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.')
            && self.name != "."
            && self.name != "..";
        if !name_ok {
            return bad(format!("bridge name {:?} is not an interface name", self.name));
        }
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return bad("the bridge has neither an IPv4 nor an IPv6 subnet".into());
        }
        if let Some(subnet) = self.ipv4
            && (!subnet.addr.is_ipv4() || !(8..=29).contains(&subnet.prefix))
        {
            return bad(format!("{subnet} is not an IPv4 subnet between /8 and /29"));
        }
        if let Some(subnet) = self.ipv6
            && (!subnet.addr.is_ipv6() || !(48..=125).contains(&subnet.prefix))
        {
            return bad(format!("{subnet} is not an IPv6 subnet between /48 and /125"));
        }
        if let Some(mtu) = self.mtu
            && !(1280..=65535).contains(&mtu)
        {
            return bad(format!("bridge mtu {mtu} is not between 1280 and 65535"));
        }
        Ok(())
    }

    /// How many pods can have an address: slots are numbered 0.. and slot 0 is the address after the gateway.
    pub(crate) fn slots(&self) -> u32 {
        // Network, gateway and (IPv4) broadcast address are not for pods.
        let v4 = self.ipv4.map_or(MAX_SLOTS, |s| s.hosts().saturating_sub(3));
        let v6 = self.ipv6.map_or(MAX_SLOTS, |s| s.hosts().saturating_sub(2));
        v4.min(v6).min(MAX_SLOTS)
    }
}

/// One node never has more pods than this; it bounds the free list (256 KiB).
const MAX_SLOTS: u32 = 65_536;

/// A subnet in CIDR notation, kept with its host bits cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    addr: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// Clears the host bits; a prefix longer than the address is cut to it.
    #[must_use]
    pub fn new(addr: IpAddr, prefix: u8) -> Self {
        match addr {
            IpAddr::V4(a) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self {
                    addr: IpAddr::V4((u32::from(a) & mask).into()),
                    prefix,
                }
            }
            IpAddr::V6(a) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self {
                    addr: IpAddr::V6((u128::from(a) & mask).into()),
                    prefix,
                }
            }
        }
    }

    /// The network address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The first address after the network's: the bridge itself.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    /// The `n`th address of the subnet.
    #[must_use]
    pub fn nth(&self, n: u32) -> IpAddr {
        match self.addr {
            IpAddr::V4(a) => IpAddr::V4(u32::from(a).wrapping_add(n).into()),
            IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add(u128::from(n)).into()),
        }
    }

    /// Whether the address lies in the subnet.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && Self::new(addr, self.prefix).addr == self.addr
    }

    fn hosts(&self) -> u32 {
        let bits = if self.addr.is_ipv4() { 32 } else { 128 } - u32::from(self.prefix);
        1u32.checked_shl(bits).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::InvalidConfig {
            what: format!("{text:?} is not a subnet such as 10.87.0.0/16"),
        };
        let (addr, prefix) = text.split_once('/').ok_or_else(bad)?;
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > if addr.is_ipv4() { 32 } else { 128 } {
            return Err(bad());
        }
        Ok(Self::new(addr, prefix))
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn subnets_parse_and_count() {
        let s: Subnet = "10.1.2.3/24".parse().unwrap();
        assert_eq!(s.to_string(), "10.1.2.0/24");
        assert_eq!(s.gateway().to_string(), "10.1.2.1");
        assert!(s.contains("10.1.2.255".parse().unwrap()));
        assert!(!s.contains("10.1.3.0".parse().unwrap()));
        assert!(!s.contains("::1".parse().unwrap()));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let mut config = BridgeConfig {
            ipv4: Some(s),
            ..BridgeConfig::default()
        };
        assert_eq!(config.slots(), 253);
        config.ipv4 = None;
        assert_eq!(config.slots(), MAX_SLOTS);
        config.validate().unwrap();
        config.ipv6 = None;
        assert!(config.validate().is_err());
    }
}
