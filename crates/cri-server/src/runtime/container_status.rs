//! RuntimeService.ContainerStatus

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::{ContainerRecord, SandboxRecord};
use serde_json::Value;
use tonic::Status;

use crate::translate::{container_config, container_status};
use crate::{Services, error, json};

pub fn call(
    services: &Services,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let record = services
        .engine
        .container(&request.container_id)
        .map_err(error::engine)?;
    Ok(v1::ContainerStatusResponse {
        status: Some(container_status(&record)),
        info: if request.verbose {
            let pod = services.engine.sandbox(record.sandbox.as_str()).ok();
            info(&record, pod.as_deref())
        } else {
            BTreeMap::new()
        },
    })
}

/// The names are those that crictl's users and debuggers look for.
fn info(record: &ContainerRecord, pod: Option<&SandboxRecord>) -> BTreeMap<String, String> {
    let (pause, handler) = (
        pod.and_then(|pod| pod.pause_pid),
        pod.map(|pod| pod.handler.as_str()),
    );
    let mut spec = serde_json::from_str(&record.oci_spec).unwrap_or(Value::Null);
    show_paths(&mut spec, pause);
    let info = serde_json::json!({
        "sandboxID": record.sandbox.as_str(),
        "pid": record.pid.unwrap_or_default(),
        "removing": record.state == holdfast_model::ContainerState::Removing,
        "snapshotKey": record.id.as_str(),
        "snapshotter": "overlayfs",
        "runtimeHandler": handler,
        "runtimeType": crate::node::runtime_type(record.runtime.as_ref()),
        "runtimeOptions": crate::node::runtime_options(record.runtime.as_ref()),
        "privileged": record.spec.security.privileged,
        "config": json::message("ContainerConfig", &container_config(&record.spec)),
        "runtimeSpec": spec,
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// The launcher's own words for what the pod holds become paths, which nsenter(1) and the like can use.
fn show_paths(spec: &mut Value, pause: Option<i32>) {
    let namespaces = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        let kind = match namespace["type"].as_str() {
            Some("network") => "net",
            Some("mount") => "mnt",
            Some(kind) => kind,
            None => continue,
        };
        let pid = match namespace["path"].as_str() {
            Some("pod:") => pause,
            Some(path) => path.strip_prefix("pid:").and_then(|pid| pid.parse().ok()),
            None => continue,
        };
        if let Some(pid) = pid {
            namespace["path"] = format!("/proc/{pid}/ns/{kind}").into();
        }
    }
    let mounts = spec.pointer_mut("/mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        if let (Some("pod:shm"), Some(pid)) = (mount["source"].as_str(), pause) {
            mount["source"] = format!("/proc/{pid}/root/shm").into();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_model::{ContainerId, SandboxId};

    #[test]
    fn what_debuggers_read() {
        let mut record =
            crate::testing::container(ContainerId::from_bytes([4; 32]), SandboxId::from_bytes([3; 32]));
        record.oci_spec = r#"{"ociVersion":"1.2.1","mounts":[{"source":"pod:shm"},{"source":"/x"}],
            "linux":{"namespaces":[{"type":"network","path":"pod:"},{"type":"pid","path":"pid:9"},{"type":"mount"}]}}"#
            .into();
        record.spec.metadata.name = "c".into();
        let pod = crate::testing::sandbox(SandboxId::from_bytes([3; 32]));
        let info: Value = serde_json::from_str(&info(&record, Some(&pod))["info"]).unwrap();
        assert_eq!(info["removing"], false);
        assert_eq!(info["snapshotKey"], record.id.as_str());
        assert_eq!(
            (&info["runtimeType"], &info["runtimeHandler"]),
            (&"holdfast".into(), &"".into())
        );
        assert_eq!(info["pid"], 8);
        assert_eq!(info["runtimeSpec"]["ociVersion"], "1.2.1");
        assert_eq!(info["config"]["metadata"]["name"], "c");
        let namespaces = &info["runtimeSpec"]["linux"]["namespaces"];
        assert_eq!(namespaces[0]["path"], "/proc/7/ns/net");
        assert_eq!(namespaces[1]["path"], "/proc/9/ns/pid");
        assert_eq!(namespaces[2].get("path"), None);
        assert_eq!(info["runtimeSpec"]["mounts"][0]["source"], "/proc/7/root/shm");
        assert_eq!(info["runtimeSpec"]["mounts"][1]["source"], "/x");
        assert_eq!(info["sandboxID"], record.sandbox.as_str());
    }
}
