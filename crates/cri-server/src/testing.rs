//! Records for the tests of this crate, by way of JSON: fields that it does not care about may come and go.
#![allow(clippy::unwrap_used)]

use holdfast_model::{
    ContainerId, ContainerRecord, ContainerSpec, ContainerState, ContainerUser, ResolvedImage, SandboxId,
    SandboxRecord, SandboxSpec, SandboxState, Signal,
};
use serde_json::json;

pub fn sandbox(id: SandboxId) -> SandboxRecord {
    serde_json::from_value(json!({
        "id": id,
        "spec": SandboxSpec::default(),
        "state": SandboxState::Ready,
        "created_at": 1,
        "handler": "",
        "cgroup": "",
        "hostname": "",
        "pause_pid": 7,
        "boot_id": "",
    }))
    .unwrap()
}

pub fn container(id: ContainerId, sandbox: SandboxId) -> ContainerRecord {
    serde_json::from_value(json!({
        "id": id,
        "sandbox": sandbox,
        "spec": ContainerSpec::default(),
        "state": ContainerState::Running,
        "created_at": 1,
        "started_at": 2,
        "finished_at": 0,
        "pid": 8,
        "image": ResolvedImage::default(),
        "cgroup": "",
        "log_path": "",
        "user": ContainerUser::default(),
        "stop_signal": Signal::TERM,
        "oci_spec": "",
    }))
    .unwrap()
}
