//! A pod's configuration.

use holdfast_cri_api::v1;
use holdfast_model::{DnsConfig, Invalid, PortMapping, Protocol, SandboxMetadata, SandboxSpec};

use super::security::{sandbox_security, sandbox_security_context};
use super::{enumeration, linux_resources, required, resources};

/// The part for Windows is passed over, as it is for every Linux runtime.
pub fn sandbox_spec(wire: v1::PodSandboxConfig) -> Result<SandboxSpec, Invalid> {
    let metadata = required("metadata", wire.metadata)?;
    let linux = wire.linux.unwrap_or_default();
    let port_mappings = wire
        .port_mappings
        .into_iter()
        .enumerate()
        .map(|(n, mapping)| port_mapping(n, mapping))
        .collect::<Result<_, _>>()?;
    Ok(SandboxSpec {
        metadata: SandboxMetadata {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        hostname: wire.hostname,
        log_directory: wire.log_directory,
        dns: wire.dns_config.and_then(dns),
        port_mappings,
        labels: wire.labels,
        annotations: wire.annotations,
        cgroup_parent: linux.cgroup_parent,
        security: sandbox_security(linux.security_context.unwrap_or_default())?,
        sysctls: linux.sysctls,
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
    })
}

pub fn sandbox_config(model: &SandboxSpec) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(sandbox_metadata(&model.metadata)),
        hostname: model.hostname.clone(),
        log_directory: model.log_directory.clone(),
        dns_config: model.dns.as_ref().map(|d| v1::DnsConfig {
            servers: d.servers.clone(),
            searches: d.searches.clone(),
            options: d.options.clone(),
        }),
        port_mappings: model.port_mappings.iter().map(wire_port_mapping).collect(),
        labels: model.labels.clone(),
        annotations: model.annotations.clone(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: model.cgroup_parent.clone(),
            security_context: Some(sandbox_security_context(&model.security)),
            sysctls: model.sysctls.clone(),
            overhead: model.overhead.as_ref().map(linux_resources),
            resources: model.resources.as_ref().map(linux_resources),
        }),
        windows: None,
    }
}

pub fn sandbox_metadata(model: &SandboxMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: model.name.clone(),
        namespace: model.namespace.clone(),
        uid: model.uid.clone(),
        attempt: model.attempt,
    }
}

/// A configuration that says nothing is none: the pod then gets the host's, as with both Go runtimes.
fn dns(wire: v1::DnsConfig) -> Option<DnsConfig> {
    let empty = wire.servers.is_empty() && wire.searches.is_empty() && wire.options.is_empty();
    (!empty).then_some(DnsConfig {
        servers: wire.servers,
        searches: wire.searches,
        options: wire.options,
    })
}

fn port_mapping(n: usize, wire: v1::PortMapping) -> Result<PortMapping, Invalid> {
    Ok(PortMapping {
        protocol: match enumeration(&format!("port_mappings[{n}].protocol"), wire.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: wire.container_port,
        host_port: wire.host_port,
        host_ip: wire.host_ip,
    })
}

fn wire_port_mapping(model: &PortMapping) -> v1::PortMapping {
    v1::PortMapping {
        protocol: match model.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
            Protocol::Sctp => v1::Protocol::Sctp,
        }
        .into(),
        container_port: model.container_port,
        host_port: model.host_port,
        host_ip: model.host_ip.clone(),
    }
}
