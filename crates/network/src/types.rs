//! What goes into and comes out of [`crate::Network`]: plain data.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The name of a pod's interface, which the kubelet and CNI's convention expect.
pub const POD_INTERFACE: &str = "eth0";

/// A pod that is to have a network.
#[derive(Debug)]
pub struct PodNetwork {
    /// 64 lower-case hex digits.
    pub sandbox_id: String,
    /// Pod name, for messages and `K8S_POD_NAME`.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// The pod's network namespace.
    pub netns: OwnedFd,
    /// A path that resolves to the namespace while the pod lives; external plugins need one
    /// (see [`crate::Network::needs_netns_path`]).
    pub netns_path: Option<PathBuf>,
    /// A `NETLINK_ROUTE` socket that was opened inside the namespace. It is used in place of entering the
    /// namespace, and closed when `setup` returns.
    pub netlink: Option<OwnedFd>,
    /// Host ports; an entry with host port 0 is ignored.
    pub port_mappings: Vec<PortMapping>,
    /// For plugins with the `dns` capability.
    pub dns: Dns,
    /// For plugins with the `bandwidth` capability.
    pub bandwidth: Option<Bandwidth>,
    /// For plugins with the `ips` capability: addresses asked for, in CIDR notation or plain.
    pub ips: Vec<String>,
    /// For plugins with the `mac` capability.
    pub mac: Option<String>,
    /// For plugins with the `cgroupPath` capability.
    pub cgroup_path: Option<String>,
    /// For plugins with the `io.kubernetes.cri.pod-annotations` capability.
    pub annotations: BTreeMap<String, String>,
}

/// One host port that leads to a pod's port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Only this address of the host; absent: all of both families. `0.0.0.0` is all of IPv4, `::` all of IPv6.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocols that host ports exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Name as CNI writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Number of the IP protocol.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Resolver settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.searches.is_empty() && self.options.is_empty()
    }
}

/// Limits of a pod's traffic in bits a second, seen from the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

/// What a pod got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetResult {
    /// Addresses of the pod's interface; the first is its primary one.
    pub ips: Vec<IpAddr>,
    /// Every interface made, those of the host too.
    pub interfaces: Vec<Interface>,
    /// Resolver settings that a plugin gave back.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Which network made it: `bridge` or the name in the CNI configuration.
    pub network: String,
    /// The last plugin's result as it was printed; absent for the built-in network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<serde_json::Value>,
}

/// One interface of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Hardware address, empty if none.
    pub mac: String,
    /// Path of the namespace it is in, empty from the built-in network; absent: the host's.
    pub sandbox: Option<String>,
}

/// Answer to "is the network ready".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// CRI's `NetworkReady`.
    pub ready: bool,
    /// One CamelCase word; empty when ready.
    pub reason: String,
    /// A sentence for people; says which network is in use when ready.
    pub message: String,
    /// The CNI configuration in use, as JSON, for verbose status.
    pub config: Option<serde_json::Value>,
}

/// What [`crate::Network::reconcile`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Sandboxes whose attachments stand.
    pub kept: Vec<String>,
    /// Sandboxes whose attachments are being taken down.
    pub removed: Vec<String>,
    /// Links of ours that no record named.
    pub stray_links: Vec<String>,
}

impl PodNetwork {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let bad = |what: &str| {
            Err(Error::InvalidPod {
                id: self.sandbox_id.clone(),
                what: what.into(),
            })
        };
        if self.sandbox_id.len() != 64
            || !self
                .sandbox_id
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return bad("the sandbox id is not 64 lower-case hex digits");
        }
        // These go into CNI_ARGS, where ';' and '=' separate: a pod name must not smuggle in an argument.
        for value in [&self.name, &self.namespace, &self.uid] {
            if value.bytes().any(|b| b == b';' || b == b'=' || b < 0x20) {
                return bad("name, namespace or uid has ';', '=' or a control character");
            }
        }
        if self
            .port_mappings
            .iter()
            .any(|p| p.host_port != 0 && p.container_port == 0)
        {
            return bad("a port mapping has container port 0");
        }
        if self.port_mappings.len() > MAX_PORTS {
            return bad("more than 4096 port mappings");
        }
        Ok(())
    }
}

/// Bound of one pod's host ports: its elements go to the kernel in one batch.
const MAX_PORTS: usize = 4096;
