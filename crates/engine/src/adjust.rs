//! The seam between the pure spec and its execution: what changes it before it is carried out and recorded. CDI devices
//! today; NRI and hooks come here.

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

/// The built-in launcher runs no hooks: one that is passed over in silence would leave a device half made.
fn runnable(subject: &Subject<'_>, spec: &Spec) -> Result<(), Error> {
    if subject.container.runtime.is_some() {
        return Ok(());
    }
    let Some(hook) = spec.hooks().as_ref().and_then(first) else {
        return Ok(());
    };
    Err(Error::Unsupported(format!(
        "container {} in pod {}: its devices {:?} want the hook {hook}, and the built-in launcher runs no hooks",
        subject.container.spec.metadata.name,
        subject.sandbox.spec.metadata.name,
        cdi::requested(&subject.container.spec)?
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    )))
}

#[allow(deprecated, reason = "what OCI deprecates, CDI still has")]
fn first(hooks: &Hooks) -> Option<String> {
    let points = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    points.into_iter().find_map(|(point, list)| {
        let hook = list.as_ref()?.first()?;
        Some(format!("{point} {}", hook.path().display()))
    })
}
