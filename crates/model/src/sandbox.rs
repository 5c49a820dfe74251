//! What a client asks of a pod.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{NamespaceMode, Resources, SandboxSecurity};

/// Together these four are the pod's name: two live pods never share them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxMetadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

impl fmt::Display for SandboxMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/{}",
            self.namespace, self.name, self.uid, self.attempt
        )
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Port numbers are as the client sent them; [`SandboxSpec::validate`] checks their range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: i32,
    /// 0: the port is named, not mapped.
    pub host_port: i32,
    /// Empty: every address of the host.
    pub host_ip: String,
}

/// CRI's `PodSandboxConfig` with its Linux part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub metadata: SandboxMetadata,
    /// Empty: the host's, where the pod has the host's network; else the pod's name.
    pub hostname: String,
    /// Absolute; empty: the containers have no logs.
    pub log_directory: String,
    /// `None`: the host's `resolv.conf`.
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// `/a/b` for cgroupfs, `x.slice` for systemd; empty: the runtime's default.
    pub cgroup_parent: String,
    pub security: SandboxSecurity,
    pub sysctls: BTreeMap<String, String>,
    /// What the pod costs beyond its containers (RuntimeClass).
    pub overhead: Option<Resources>,
    /// The sum of the containers' limits.
    pub resources: Option<Resources>,
}

impl SandboxSpec {
    pub fn host_network(&self) -> bool {
        self.security.namespaces.network == NamespaceMode::Node
    }

    pub fn host_ipc(&self) -> bool {
        self.security.namespaces.ipc == NamespaceMode::Node
    }

    pub fn host_pid(&self) -> bool {
        self.security.namespaces.pid == NamespaceMode::Node
    }

    /// The pod's containers share one PID namespace.
    pub fn shared_pid(&self) -> bool {
        self.security.namespaces.pid == NamespaceMode::Pod
    }
}
