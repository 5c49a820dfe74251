//! RuntimeService.PodSandboxStatus

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::{SandboxRecord, SandboxState};
use tonic::Status;

use crate::translate::{container_statuses, sandbox_config, sandbox_status};
use crate::{Services, call as calls, error, json, node};

pub fn call(
    services: &Services,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let timestamp = calls::now();
    let details = services
        .engine
        .pod_details(&request.pod_sandbox_id)
        .map_err(error::engine)?;
    let record = details.record;
    Ok(v1::PodSandboxStatusResponse {
        status: Some(sandbox_status(&record)),
        info: if request.verbose {
            info(&record)
        } else {
            BTreeMap::new()
        },
        // Both are for kubelets that listen to events (KEP-3386).
        containers_statuses: container_statuses(&details.containers),
        timestamp,
    })
}

/// The names are those that crictl's users and debuggers look for.
fn info(record: &SandboxRecord) -> BTreeMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": record.id.as_str(),
        "pid": record.pause_pid.unwrap_or_default(),
        "processStatus": process_status(record),
        "netNamespaceClosed": record.pause_pid.is_none() && !record.spec.host_network(),
        "hostname": record.hostname,
        // Built in: pause has neither an image nor a snapshot.
        "image": PAUSE,
        "snapshotKey": "",
        "snapshotter": "",
        "runtimeHandler": record.handler,
        "runtimeType": node::runtime_type(record.runtime.as_ref()),
        "runtimeOptions": node::runtime_options(record.runtime.as_ref()),
        "cniResult": record.network,
        "config": json::message("PodSandboxConfig", &sandbox_config(&record.spec)),
        "runtimeSpec": runtime_spec(record),
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

const PAUSE: &str = "holdfast-pause";

/// Of pause, in the words that the peers have from their shims.
fn process_status(record: &SandboxRecord) -> &'static str {
    match record.state {
        SandboxState::Creating => "created",
        SandboxState::Ready => "running",
        _ if record.pause_pid.is_some() => "running",
        _ => "stopped",
    }
}

/// Pause is not made from an OCI spec: this says where its namespaces are, by paths that nsenter(1) takes on the host.
fn runtime_spec(record: &SandboxRecord) -> serde_json::Value {
    let spec = &record.spec;
    let kinds = [
        ("network", "net", !spec.host_network()),
        ("uts", "uts", !spec.host_network()),
        ("ipc", "ipc", !spec.host_ipc()),
        ("pid", "pid", !spec.host_pid()),
        ("user", "user", spec.security.namespaces.user_maps().is_some()),
        ("mount", "mnt", true),
    ];
    let own = kinds.into_iter().filter(|(.., own)| *own);
    let namespaces: Vec<serde_json::Value> = own
        .filter_map(|(kind, file, _)| {
            let path = match record.pause_pid {
                Some(pid) => format!("/proc/{pid}/ns/{file}"),
                None if kind == "network" => record.netns_path.clone(),
                None => return None,
            };
            Some(serde_json::json!({ "type": kind, "path": path }))
        })
        .collect();
    serde_json::json!({
        "ociVersion": "1.2.1",
        "hostname": record.hostname,
        "process": { "args": [PAUSE], "cwd": "/" },
        "annotations": spec.annotations,
        "linux": {
            "cgroupsPath": format!("{}/{}", record.cgroup, record.id),
            "sysctl": spec.sysctls,
            "namespaces": namespaces,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_model::SandboxId;

    #[test]
    fn what_nsenter_needs() {
        let record = crate::testing::sandbox(SandboxId::from_bytes([3; 32]));
        let info: serde_json::Value = serde_json::from_str(&info(&record)["info"]).unwrap();
        assert_eq!(info["pid"], 7);
        assert_eq!(
            info["runtimeSpec"]["linux"]["namespaces"][0]["path"],
            "/proc/7/ns/net"
        );
        assert_eq!(info["processStatus"], "running");
        assert_eq!(info["netNamespaceClosed"], false);
        for key in [
            "image",
            "snapshotKey",
            "runtimeHandler",
            "runtimeType",
            "cniResult",
            "config",
        ] {
            assert!(info.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_pod_that_was_stopped() {
        let mut record = crate::testing::sandbox(SandboxId::from_bytes([3; 32]));
        (record.pause_pid, record.state) = (None, SandboxState::Stopped);
        let info: serde_json::Value = serde_json::from_str(&info(&record)["info"]).unwrap();
        assert_eq!(
            (&info["pid"], &info["processStatus"]),
            (&0.into(), &"stopped".into())
        );
        assert_eq!(info["netNamespaceClosed"], true);
        assert_eq!(info["runtimeSpec"]["linux"]["namespaces"][0]["path"], "");
    }
}
