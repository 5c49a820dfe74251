//! Checks of a pod's spec.

use std::net::IpAddr;

use super::{
    Invalid, absolute_path, bounded_map, count, groups, id_mappings, limits, name, no_nul, profile,
    required_name, resources, seccomp_from_legacy_path, sysctl, user_id,
};
use crate::{DnsConfig, NamespaceMode, Namespaces, PortMapping, SandboxSpec, SecurityProfile};

const SECURITY: &str = "linux.security_context";

impl SandboxSpec {
    /// Checks everything that can be checked without looking at the machine.
    pub fn validate(&self) -> Result<(), Invalid> {
        required_name("metadata.name", &self.metadata.name)?;
        name("metadata.namespace", &self.metadata.namespace)?;
        name("metadata.uid", &self.metadata.uid)?;
        hostname("hostname", &self.hostname)?;
        if !self.log_directory.is_empty() {
            absolute_path("log_directory", &self.log_directory)?;
        }
        bounded_map("labels", &self.labels)?;
        bounded_map("annotations", &self.annotations)?;
        // On the host's network the annotations have no effect, so a wrong one does no harm.
        if !self.host_network() {
            self.bandwidth()?;
        }
        if let Some(dns) = &self.dns {
            dns_config(dns)?;
        }
        count("port_mappings", self.port_mappings.len(), limits::PORTS)?;
        for (n, mapping) in self.port_mappings.iter().enumerate() {
            port_mapping(&format!("port_mappings[{n}]"), mapping)?;
        }
        cgroup_parent(&self.cgroup_parent)?;
        self.security_context()?;
        sysctl::check(self)?;
        if let Some(overhead) = &self.overhead {
            resources("linux.overhead", overhead)?;
        }
        if let Some(limits) = &self.resources {
            resources("linux.resources", limits)?;
        }
        Ok(())
    }

    fn security_context(&self) -> Result<(), Invalid> {
        let security = &self.security;
        namespaces(&format!("{SECURITY}.namespace_options"), &security.namespaces)?;
        if let NamespaceMode::Target(_) = security.namespaces.pid {
            return Err(Invalid::new(
                format!("{SECURITY}.namespace_options.pid"),
                "a pod has no TARGET",
            ));
        }
        if let Some(id) = security.run_as_user {
            user_id(&format!("{SECURITY}.run_as_user"), id)?;
        }
        if let Some(id) = security.run_as_group {
            user_id(&format!("{SECURITY}.run_as_group"), id)?;
            if security.run_as_user.is_none() {
                return Err(Invalid::new(
                    format!("{SECURITY}.run_as_group"),
                    "is given without run_as_user",
                ));
            }
        }
        groups(
            &format!("{SECURITY}.supplemental_groups"),
            &security.supplemental_groups,
        )?;
        profile(&format!("{SECURITY}.seccomp"), security.seccomp.as_ref(), true)?;
        profile(&format!("{SECURITY}.apparmor"), security.apparmor.as_ref(), false)?;
        self.seccomp()?;
        Ok(())
    }

    /// The pod's seccomp profile, from the new or the deprecated field.
    pub fn seccomp(&self) -> Result<Option<SecurityProfile>, Invalid> {
        match &self.security.seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => seccomp_from_legacy_path(
                &format!("{SECURITY}.seccomp_profile_path"),
                &self.security.seccomp_profile_path,
            ),
        }
    }
}

/// Which modes make sense where.
pub(super) fn namespaces(field: &str, namespaces: &Namespaces) -> Result<(), Invalid> {
    for (kind, mode) in [("network", namespaces.network), ("ipc", namespaces.ipc)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(Invalid::new(
                format!("{field}.{kind}"),
                "only POD and NODE are possible",
            ));
        }
    }
    let Some(user) = &namespaces.user else {
        return Ok(());
    };
    let field = format!("{field}.userns_options");
    match user.mode {
        NamespaceMode::Node if !user.uids.is_empty() || !user.gids.is_empty() => Err(Invalid::new(
            field,
            "has id mappings, which mode NODE cannot have",
        )),
        NamespaceMode::Node => Ok(()),
        NamespaceMode::Pod if user.uids.is_empty() || user.gids.is_empty() => Err(Invalid::new(
            field,
            "mode POD needs id mappings for users and for groups",
        )),
        // As the API server has it: what belongs to the host could not be used from inside.
        NamespaceMode::Pod if [namespaces.pid, namespaces.ipc].contains(&NamespaceMode::Node) => {
            Err(Invalid::new(
                field,
                "mode POD is not possible with the host's PID or IPC namespace",
            ))
        }
        NamespaceMode::Pod => {
            id_mappings(&format!("{field}.uids"), &user.uids)?;
            id_mappings(&format!("{field}.gids"), &user.gids)
        }
        NamespaceMode::Container | NamespaceMode::Target(_) => Err(Invalid::new(
            format!("{field}.mode"),
            "only POD and NODE are possible",
        )),
    }
}

/// The hostname of a pod that names none: what of its name a hostname can have (hostname(7)).
pub fn hostname_of(name: &str) -> String {
    let kept = name.chars().filter(|c| of_a_hostname(*c));
    kept.take(limits::HOSTNAME_BYTES - 1).collect()
}

fn of_a_hostname(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

fn hostname(field: &str, text: &str) -> Result<(), Invalid> {
    if text.len() > limits::HOSTNAME_BYTES {
        return Err(Invalid::new(
            field,
            format!("is longer than {} bytes", limits::HOSTNAME_BYTES),
        ));
    }
    if let Some(c) = text.chars().find(|c| !of_a_hostname(*c)) {
        return Err(Invalid::new(field, format!("contains the character {c:?}")));
    }
    Ok(())
}

fn dns_config(dns: &DnsConfig) -> Result<(), Invalid> {
    for (field, list) in [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ] {
        let field = format!("dns_config.{field}");
        count(&field, list.len(), limits::DNS_ENTRIES)?;
        for entry in list {
            // Each becomes a word of resolv.conf: white space would make a second word or line of it.
            if entry.is_empty()
                || entry.len() > 1024
                || entry.chars().any(|c| c.is_whitespace() || c.is_control())
            {
                return Err(Invalid::new(
                    field,
                    "has an entry that is empty, too long or contains white space",
                ));
            }
        }
    }
    for server in &dns.servers {
        // A scope may follow: fe80::1%eth0.
        let address = server
            .split_once('%')
            .map_or(server.as_str(), |(address, _)| address);
        if address.parse::<IpAddr>().is_err() {
            return Err(Invalid::new(
                "dns_config.servers",
                format!("{server:?} is not an IP address"),
            ));
        }
    }
    Ok(())
}

fn port_mapping(field: &str, mapping: &PortMapping) -> Result<(), Invalid> {
    // Without a host port nothing is mapped, and the peers look at neither.
    let least = i32::from(mapping.host_port != 0);
    if !(least..=65_535).contains(&mapping.container_port) {
        return Err(Invalid::new(
            format!("{field}.container_port"),
            format!("{} is not a port from {least} to 65535", mapping.container_port),
        ));
    }
    if !(0..=65_535).contains(&mapping.host_port) {
        return Err(Invalid::new(
            format!("{field}.host_port"),
            format!("{} is not a port from 0 to 65535", mapping.host_port),
        ));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(Invalid::new(
            format!("{field}.host_ip"),
            format!("{:?} is not an IP address", mapping.host_ip),
        ));
    }
    Ok(())
}

fn cgroup_parent(path: &str) -> Result<(), Invalid> {
    const FIELD: &str = "linux.cgroup_parent";
    no_nul(FIELD, path)?;
    if path.len() > limits::PATH_BYTES {
        return Err(Invalid::new(
            FIELD,
            format!("is longer than {} bytes", limits::PATH_BYTES),
        ));
    }
    if path.split('/').any(|part| part == ".." || part == ".") || path.contains('\n') {
        return Err(Invalid::new(
            FIELD,
            format!("{path:?} is not the path of a cgroup"),
        ));
    }
    Ok(())
}
