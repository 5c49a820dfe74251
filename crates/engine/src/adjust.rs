//! The seam between the pure spec and its execution: what changes it before it is carried out and recorded. CDI devices
//! today; NRI comes here.

use std::sync::Arc;

use holdfast_model::{ContainerRecord, SandboxRecord};
use oci_spec::runtime::{Hooks, Spec};

use crate::cdi::{self, Cdi};
use crate::{Error, shared};

/// What an adjustment may look at.
pub(crate) struct Subject<'a> {
    pub sandbox: &'a SandboxRecord,
    pub container: &'a ContainerRecord,
    pub cdi: &'a Arc<Cdi>,
}

/// The spec that is carried out and recorded.
pub(crate) async fn adjust(subject: Subject<'_>, spec: Spec) -> Result<Spec, Error> {
    let devices = cdi::requested(&subject.container.spec)?;
    let spec = if devices.is_empty() {
        spec
    } else {
        let cdi = subject.cdi.clone();
        shared::blocking(move || cdi.inject(&devices, spec)).await?
    };
    runnable(&subject, &spec)?;
    Ok(spec)
}

/// What the built-in launcher cannot do rightly, it refuses: a hook that is passed over in silence would leave a device
/// half made.
fn runnable(subject: &Subject<'_>, spec: &Spec) -> Result<(), Error> {
    let by_us = subject.container.runtime.is_none();
    if !by_us || subject.sandbox.spec.security.namespaces.user_maps().is_none() || !has_hooks(spec) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "container {} in pod {}: its devices {:?} bring OCI hooks, and the pod has a user namespace (hostUsers: false): \
         hooks there are not supported",
        subject.container.spec.metadata.name,
        subject.sandbox.spec.metadata.name,
        cdi::requested(&subject.container.spec)?
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    )))
}

pub(crate) fn has_hooks(spec: &Spec) -> bool {
    spec.hooks()
        .as_ref()
        .is_some_and(|hooks| *hooks != Hooks::default())
}
