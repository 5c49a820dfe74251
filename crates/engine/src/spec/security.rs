//! Seccomp, AppArmor and SELinux: what was asked for, or a clear no where the kernel has not got it.

use holdfast_model::{ContainerSpec, Invalid, SecurityProfile, SelinuxLabels};
use oci_spec::runtime::LinuxSeccomp;

use super::capabilities::Granted;
use super::{Inputs, Seccomp};
use crate::lsm::{AppArmor, apparmor};

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

const APPARMOR: &str = "linux.security_context.apparmor";

/// The name of the profile, of which the caller has seen that it is loaded; a clear no where it could not be enforced.
///
/// Who asks for nothing gets the default profile where there is one, as with the field's other runtimes (Kubernetes 51746);
/// a privileged container only what is asked for by name.
pub(crate) fn apparmor(inputs: &Inputs<'_>) -> Result<Option<String>, Invalid> {
    let privileged = inputs.container.security.privileged;
    let refused = |asked: String, why: &str| {
        Err(Invalid::new(
            APPARMOR,
            format!("{asked} cannot be enforced: {why}"),
        ))
    };
    match (inputs.container.apparmor()?, &inputs.host.apparmor) {
        (Some(SecurityProfile::Unconfined), _) => Ok(None),
        (Some(SecurityProfile::Localhost(name)), AppArmor::Absent(why)) => {
            refused(format!("profile {name:?}"), why)
        }
        (Some(SecurityProfile::Localhost(name)), _) => Ok(Some(name)),
        (Some(SecurityProfile::RuntimeDefault) | None, _) if privileged => Ok(None),
        (Some(SecurityProfile::RuntimeDefault), AppArmor::Absent(why)) => {
            refused("the default profile".into(), why)
        }
        (Some(SecurityProfile::RuntimeDefault), AppArmor::NoDefault(why)) => {
            refused("the default profile".into(), why)
        }
        (None, AppArmor::Absent(_) | AppArmor::NoDefault(_)) => Ok(None),
        (Some(SecurityProfile::RuntimeDefault) | None, AppArmor::Ready) => Ok(Some(apparmor::DEFAULT.into())),
    }
}

/// Whether [`apparmor`] will answer with the default profile.
pub(crate) fn needs_default_profile(container: &ContainerSpec, asked: Option<&SecurityProfile>) -> bool {
    matches!(asked, None | Some(SecurityProfile::RuntimeDefault)) && !container.security.privileged
}

fn labels(inputs: &Inputs<'_>) -> Result<SelinuxLabels, Invalid> {
    let asked = inputs.container.security.selinux.as_ref();
    inputs.host.selinux.for_container(&inputs.sandbox.selinux, asked)
}

/// Privileged containers keep the domain that the policy gives what the runtime starts.
pub(crate) fn process_label(inputs: &Inputs<'_>) -> Result<Option<String>, Invalid> {
    let label = labels(inputs)?.process;
    Ok((!label.is_empty() && !inputs.container.security.privileged).then_some(label))
}

pub(crate) fn mount_label(inputs: &Inputs<'_>) -> Result<Option<String>, Invalid> {
    let label = labels(inputs)?.mount;
    Ok((!label.is_empty()).then_some(label))
}
