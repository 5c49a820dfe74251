//! A container's configuration.

use holdfast_cri_api::v1;
use holdfast_model::{
    ContainerMetadata, ContainerSpec, Device, EnvVar, ImageSpec, Invalid, Mount, MountImage, Propagation,
    Signal,
};

use super::security::{container_security, container_security_context, id_mappings, wire_mappings};
use super::{enumeration, image_spec, linux_resources, required, resources};

/// The part for Windows is passed over, as it is for every Linux runtime.
pub fn container_spec(wire: v1::ContainerConfig) -> Result<ContainerSpec, Invalid> {
    let metadata = required("metadata", wire.metadata)?;
    let linux = wire.linux.unwrap_or_default();
    let mounts = wire
        .mounts
        .into_iter()
        .enumerate()
        .map(|(n, m)| mount(n, m))
        .collect::<Result<_, _>>()?;
    Ok(ContainerSpec {
        metadata: ContainerMetadata {
            name: metadata.name,
            attempt: metadata.attempt,
        },
        image: model_image(required("image", wire.image)?),
        command: wire.command,
        args: wire.args,
        working_dir: wire.working_dir,
        envs: wire
            .envs
            .into_iter()
            .map(|env| EnvVar {
                key: env.key,
                value: env.value,
            })
            .collect(),
        mounts,
        devices: wire
            .devices
            .into_iter()
            .map(|d| Device {
                container_path: d.container_path,
                host_path: d.host_path,
                permissions: d.permissions,
            })
            .collect(),
        cdi_devices: wire.cdi_devices.into_iter().map(|d| d.name).collect(),
        labels: wire.labels,
        annotations: wire.annotations,
        log_path: wire.log_path,
        stdin: wire.stdin,
        stdin_once: wire.stdin_once,
        tty: wire.tty,
        resources: resources(linux.resources.unwrap_or_default()),
        security: container_security(linux.security_context.unwrap_or_default())?,
        stop_signal: stop_signal(wire.stop_signal)?,
    })
}

pub fn container_config(model: &ContainerSpec) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(container_metadata(&model.metadata)),
        image: Some(image_spec(&model.image)),
        command: model.command.clone(),
        args: model.args.clone(),
        working_dir: model.working_dir.clone(),
        envs: model
            .envs
            .iter()
            .map(|env| v1::KeyValue {
                key: env.key.clone(),
                value: env.value.clone(),
            })
            .collect(),
        mounts: model.mounts.iter().map(wire_mount).collect(),
        devices: model
            .devices
            .iter()
            .map(|d| v1::Device {
                container_path: d.container_path.clone(),
                host_path: d.host_path.clone(),
                permissions: d.permissions.clone(),
            })
            .collect(),
        labels: model.labels.clone(),
        annotations: model.annotations.clone(),
        log_path: model.log_path.clone(),
        stdin: model.stdin,
        stdin_once: model.stdin_once,
        tty: model.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(linux_resources(&model.resources)),
            security_context: Some(container_security_context(&model.security)),
        }),
        windows: None,
        cdi_devices: model
            .cdi_devices
            .iter()
            .map(|name| v1::CdiDevice { name: name.clone() })
            .collect(),
        stop_signal: model.stop_signal.map_or(0, wire_signal),
    }
}

pub fn container_metadata(model: &ContainerMetadata) -> v1::ContainerMetadata {
    v1::ContainerMetadata {
        name: model.name.clone(),
        attempt: model.attempt,
    }
}

fn model_image(wire: v1::ImageSpec) -> ImageSpec {
    ImageSpec {
        image: wire.image,
        user_specified_image: wire.user_specified_image,
        runtime_handler: wire.runtime_handler,
        annotations: wire.annotations,
        image_ref: wire.image_ref,
    }
}

fn mount(n: usize, wire: v1::Mount) -> Result<Mount, Invalid> {
    let propagation = match enumeration(&format!("mounts[{n}].propagation"), wire.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    // Some clients send an empty message for "no image".
    let image = wire.image.filter(|image| !image.image.is_empty());
    if image.is_none() && !wire.image_sub_path.is_empty() {
        return Err(Invalid::new(
            format!("mounts[{n}].image_sub_path"),
            "is given without an image",
        ));
    }
    Ok(Mount {
        container_path: wire.container_path,
        host_path: wire.host_path,
        image: image.map(|image| MountImage {
            image: model_image(image),
            sub_path: wire.image_sub_path,
        }),
        readonly: wire.readonly,
        recursive_read_only: wire.recursive_read_only,
        selinux_relabel: wire.selinux_relabel,
        propagation,
        uid_mappings: id_mappings(&wire.uid_mappings),
        gid_mappings: id_mappings(&wire.gid_mappings),
        options: wire.mount_options,
    })
}

pub fn wire_mount(model: &Mount) -> v1::Mount {
    v1::Mount {
        container_path: model.container_path.clone(),
        host_path: model.host_path.clone(),
        readonly: model.readonly,
        selinux_relabel: model.selinux_relabel,
        propagation: match model.propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }
        .into(),
        uid_mappings: wire_mappings(&model.uid_mappings),
        gid_mappings: wire_mappings(&model.gid_mappings),
        recursive_read_only: model.recursive_read_only,
        image: model.image.as_ref().map(|m| image_spec(&m.image)),
        image_sub_path: model
            .image
            .as_ref()
            .map(|m| m.sub_path.clone())
            .unwrap_or_default(),
        mount_options: model.options.clone(),
    }
}

fn stop_signal(number: i32) -> Result<Option<Signal>, Invalid> {
    let signal: v1::Signal = enumeration("stop_signal", number)?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    Signal::parse(name)
        .map(Some)
        .map_err(|e| Invalid::new("stop_signal", e.to_string()))
}

/// The CRI's own number of a signal.
pub fn wire_signal(signal: Signal) -> i32 {
    v1::Signal::from_str_name(&format!("SIGNAL_{}", signal.cri_name()))
        .unwrap_or(v1::Signal::RuntimeDefault)
        .into()
}
