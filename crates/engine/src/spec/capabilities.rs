//! Which capabilities a container gets.

use std::collections::HashSet;

use holdfast_model::Invalid;
use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::Inputs;

/// What a container has that asks for nothing: the set that the field's runtimes agree on.
pub const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// Names in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub bounding: Vec<String>,
    pub ambient: Vec<String>,
}

/// `ALL` on either side is applied first, so that `drop: [ALL], add: [KILL]` leaves exactly KILL.
pub(crate) fn resolve(inputs: &Inputs<'_>) -> Result<Granted, Invalid> {
    let security = &inputs.container.security;
    let known = &inputs.host.capabilities;
    if security.privileged {
        return Ok(Granted {
            bounding: known.clone(),
            ambient: Vec::new(),
        });
    }
    let read = |list: &[String], field: &str| -> Result<(bool, HashSet<String>), Invalid> {
        let mut all = false;
        let mut names = HashSet::new();
        for (n, text) in list.iter().enumerate() {
            let upper = text.to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if short == "ALL" {
                all = true;
                continue;
            }
            let name = format!("CAP_{short}");
            if !known.contains(&name) {
                return Err(Invalid::new(
                    format!("linux.security_context.capabilities.{field}[{n}]"),
                    format!("this kernel knows no capability {text:?}"),
                ));
            }
            names.insert(name);
        }
        Ok((all, names))
    };
    let (add_all, add) = read(&security.capabilities.add, "add_capabilities")?;
    let (drop_all, drop) = read(&security.capabilities.drop, "drop_capabilities")?;
    let (ambient_all, ambient) = read(&security.capabilities.add_ambient, "add_ambient_capabilities")?;
    let ambient = |name: &String| ambient_all || ambient.contains(name);
    let start = |name: &String| {
        if add_all && !drop_all {
            true
        } else {
            !drop_all && DEFAULT.contains(&name.as_str())
        }
    };
    let granted =
        |name: &&String| (start(name) || add.contains(*name) || ambient(name)) && !drop.contains(*name);
    let bounding: Vec<String> = known.iter().filter(granted).cloned().collect();
    let ambient = bounding.iter().filter(|name| ambient(name)).cloned().collect();
    Ok(Granted { bounding, ambient })
}

impl Granted {
    /// Inheritable holds only what must be there for ambient: a full set would hand capabilities to
    /// programs with inheritable file capabilities (CVE-2022-24769).
    pub(crate) fn oci(&self) -> LinuxCapabilities {
        let set = |names: &[String]| -> std::collections::HashSet<Capability> {
            names
                .iter()
                .filter_map(|name| name.trim_start_matches("CAP_").parse().ok())
                .collect()
        };
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(set(&self.bounding)));
        capabilities.set_effective(Some(set(&self.bounding)));
        capabilities.set_permitted(Some(set(&self.bounding)));
        capabilities.set_inheritable(Some(set(&self.ambient)));
        capabilities.set_ambient(Some(set(&self.ambient)));
        capabilities
    }
}
