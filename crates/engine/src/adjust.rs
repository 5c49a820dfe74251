//! The seam between the pure spec and its execution, where NRI, CDI and hooks will change it.

use holdfast_model::{ContainerRecord, SandboxRecord};
use oci_spec::runtime::Spec;

use crate::Error;

/// What an adjustment may look at.
pub(crate) struct Subject<'a> {
    pub sandbox: &'a SandboxRecord,
    pub container: &'a ContainerRecord,
}

/// The spec that is carried out and recorded. CDI devices are refused here until they can be injected.
pub(crate) async fn adjust(subject: Subject<'_>, spec: Spec) -> Result<Spec, Error> {
    if let Some(device) = subject.container.spec.cdi_devices.first() {
        return Err(Error::Unsupported(format!(
            "CDI device {device:?} of {} in pod {}: this release injects no CDI devices",
            subject.container.spec.metadata.name, subject.sandbox.spec.metadata.name
        )));
    }
    Ok(spec)
}
