//! Records, as lists and statuses show them.

use std::cmp::Reverse;
use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_model::{ContainerRecord, ContainerState, ImageSpec, SandboxRecord, SandboxState};

use super::container::{container_metadata, wire_mount, wire_signal};
use super::sandbox::sandbox_metadata;
use super::{linux_resources, namespace_options};

pub fn sandbox_item(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.to_string(),
        metadata: Some(sandbox_metadata(&record.spec.metadata)),
        state: wire_sandbox_state(record.state).into(),
        created_at: record.created_at,
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let mut ips = record.ips.iter().cloned();
    // A pod in the host's network reports no address: kubelet puts the node's in.
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    v1::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: Some(sandbox_metadata(&record.spec.metadata)),
        state: wire_sandbox_state(record.state).into(),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(namespace_options(&record.spec.security.namespaces)),
            }),
        }),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub fn wire_sandbox_state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::Creating
        | SandboxState::Dead
        | SandboxState::Stopping
        | SandboxState::Stopped
        | SandboxState::Removing => v1::PodSandboxState::SandboxNotready,
    }
}

pub fn container_item(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        metadata: Some(container_metadata(&record.spec.metadata)),
        image: Some(image_spec(&record.spec.image)),
        image_ref: record.image.id.clone(),
        state: wire_container_state(record.state).into(),
        created_at: record.created_at,
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

/// A pod's containers, the newest first: with its gate EventedPLEG, kubelet takes what PodSandboxStatus says as it comes, and the
/// first of a name for the latest attempt. Another order makes it start an attempt a second time.
pub fn container_statuses(records: &[Arc<ContainerRecord>]) -> Vec<v1::ContainerStatus> {
    let mut newest: Vec<&ContainerRecord> = records.iter().map(AsRef::as_ref).collect();
    newest.sort_by_key(|record| Reverse((record.created_at, record.spec.metadata.attempt)));
    newest.into_iter().map(container_status).collect()
}

pub fn container_status(record: &ContainerRecord) -> v1::ContainerStatus {
    let exit = record.exit.as_ref();
    v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(container_metadata(&record.spec.metadata)),
        state: wire_container_state(record.state).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: exit.map_or(0, |e| e.code),
        image: Some(image_spec(&record.spec.image)),
        image_ref: record.image.reference.clone(),
        reason: exit.map(|e| e.reason().as_str().to_owned()).unwrap_or_default(),
        message: exit.map(|e| e.message.clone()).unwrap_or_default(),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources {
            linux: Some(linux_resources(&record.spec.resources)),
            windows: None,
        }),
        image_id: record.image.id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: record.user.uid.into(),
                gid: record.user.gid.into(),
                supplemental_groups: record.user.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: wire_signal(record.stop_signal),
    }
}

/// With what each image among them came to (KEP-5365).
fn mounts(record: &ContainerRecord) -> Vec<v1::Mount> {
    let mut mounts: Vec<v1::Mount> = record.spec.mounts.iter().map(wire_mount).collect();
    for (mount, id) in mounts.iter_mut().zip(&record.mount_images) {
        if let Some(image) = &mut mount.image {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

pub fn wire_container_state(state: ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Creating | ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited | ContainerState::Removing => v1::ContainerState::ContainerExited,
    }
}

pub fn image_spec(model: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: model.image.clone(),
        annotations: model.annotations.clone(),
        user_specified_image: model.user_specified_image.clone(),
        runtime_handler: model.runtime_handler.clone(),
        image_ref: model.image_ref.clone(),
    }
}
