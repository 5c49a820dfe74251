//! Seccomp, AppArmor and SELinux: what was asked for, or a clear no where the kernel has not got it.

use holdfast_model::{Invalid, SecurityProfile};
use oci_spec::runtime::LinuxSeccomp;

use super::capabilities::Granted;
use super::{Inputs, Seccomp};

/// Privileged containers have no filter, whatever they ask for.
pub(crate) fn seccomp(inputs: &Inputs<'_>, capabilities: &Granted) -> Option<LinuxSeccomp> {
    if inputs.container.security.privileged {
        return None;
    }
    match &inputs.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Profile(profile) => Some((**profile).clone()),
        Seccomp::RuntimeDefault(make) => {
            let names: Vec<&str> = capabilities.bounding.iter().map(String::as_str).collect();
            Some(make(&names))
        }
    }
}

/// A profile by name is refused where it could not be enforced; the runtime's default is best effort, as in the peers.
pub(crate) fn apparmor(inputs: &Inputs<'_>) -> Result<Option<String>, Invalid> {
    if inputs.container.security.privileged {
        return Ok(None);
    }
    match inputs.container.apparmor()? {
        Some(SecurityProfile::Localhost(name)) if inputs.host.apparmor => Ok(Some(name)),
        Some(SecurityProfile::Localhost(name)) => Err(Invalid::new(
            "linux.security_context.apparmor",
            format!("profile {name:?} cannot be enforced: this kernel has no AppArmor"),
        )),
        Some(SecurityProfile::RuntimeDefault | SecurityProfile::Unconfined) | None => Ok(None),
    }
}

pub(crate) fn selinux_label(inputs: &Inputs<'_>) -> Result<Option<String>, Invalid> {
    let Some(options) = inputs
        .container
        .security
        .selinux
        .as_ref()
        .filter(|options| !options.is_empty())
    else {
        return Ok(None);
    };
    if !inputs.host.selinux {
        return Err(Invalid::new(
            "linux.security_context.selinux_options",
            "cannot be enforced: this kernel has no SELinux",
        ));
    }
    let or = |text: &str, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    Ok(Some(format!(
        "{}:{}:{}:{}",
        or(&options.user, "system_u"),
        or(&options.role, "system_r"),
        or(&options.kind, "container_t"),
        or(&options.level, "s0")
    )))
}
