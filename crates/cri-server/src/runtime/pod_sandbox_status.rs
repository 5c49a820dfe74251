//! RuntimeService.PodSandboxStatus

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use holdfast_cri_api::v1;
use holdfast_model::{SandboxRecord, SandboxState};
use tonic::Status;

use super::cni_result;
use crate::translate::{container_statuses, linux_resources, sandbox_config, sandbox_status};
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
    let mut info = serde_json::json!({
        "sandboxID": record.id.as_str(),
        "pid": record.pause_pid.unwrap_or_default(),
        "processStatus": process_status(record),
        "netNamespaceClosed": network_closed(record),
        "hostname": record.hostname,
        // Built in: pause has neither an image nor a snapshot.
        "image": PAUSE,
        "snapshotKey": "",
        "snapshotter": "",
        "runtimeHandler": record.handler,
        "runtimeType": node::runtime_type(record.runtime.as_ref()),
        "runtimeOptions": node::runtime_options(record.runtime.as_ref()),
        "cniResult": record.network.as_ref().map(cni_result::view),
        "config": json::message("PodSandboxConfig", &sandbox_config(&record.spec)),
        "runtimeSpec": runtime_spec(record),
    });
    // Only what was given.
    for (key, resources) in [
        ("overhead", &record.spec.overhead),
        ("resources", &record.spec.resources),
    ] {
        if let Some(resources) = resources {
            let linux = json::message("LinuxContainerResources", &linux_resources(resources));
            info[key] = serde_json::json!({ "linux": linux });
        }
    }
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// Whether the pod's own network namespace is gone. Where plugins made the network it is held by a mount, and lives on
/// without pause until the pod is stopped.
fn network_closed(record: &SandboxRecord) -> bool {
    record.state != SandboxState::Creating
        && record.pause_pid.is_none()
        && !record.spec.host_network()
        && !is_namespace(&record.netns_path)
}

/// A file that a mount was taken off again is on another file system.
fn is_namespace(path: &str) -> bool {
    let device = |path: &str| std::fs::metadata(path).ok().map(|meta| meta.dev());
    !path.is_empty() && device(path).is_some_and(|dev| Some(dev) == device("/proc/self/ns/net"))
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
                // This one outlives pause.
                _ if kind == "network" && is_namespace(&record.netns_path) => record.netns_path.clone(),
                Some(pid) => format!("/proc/{pid}/ns/{file}"),
                None => return None,
            };
            Some(serde_json::json!({ "type": kind, "path": path }))
        })
        .collect();
    serde_json::json!({
        "ociVersion": holdfast_engine::spec::OCI_VERSION,
        "hostname": record.hostname,
        "process": { "args": [PAUSE], "cwd": "/" },
        "annotations": spec.annotations,
        "linux": {
            "cgroupsPath": record.oci_cgroup_of(record.id.as_str()),
            "sysctl": spec.sysctls,
            "namespaces": namespaces,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_model::{CgroupDriver, Resources, SandboxId};

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
        let namespaces = &info["runtimeSpec"]["linux"]["namespaces"];
        assert!(namespaces.as_array().unwrap().is_empty(), "{namespaces}");
    }

    #[test]
    fn a_network_namespace_that_a_mount_holds() {
        let mut record = crate::testing::sandbox(SandboxId::from_bytes([3; 32]));
        (record.pause_pid, record.state) = (None, SandboxState::Dead);
        for (path, closed) in [("/proc/self/ns/net", false), ("/proc/self/cmdline", true)] {
            path.clone_into(&mut record.netns_path);
            let info: serde_json::Value = serde_json::from_str(&info(&record)["info"]).unwrap();
            assert_eq!(info["netNamespaceClosed"], closed, "{path}");
            let found = info["runtimeSpec"]["linux"]["namespaces"]
                .as_array()
                .unwrap()
                .first();
            let expected = (!closed).then(|| serde_json::json!({ "type": "network", "path": path }));
            assert_eq!(found, expected.as_ref());
        }
    }

    #[test]
    fn cgroups_and_limits() {
        let mut record = crate::testing::sandbox(SandboxId::from_bytes([3; 32]));
        record.cgroup_driver = CgroupDriver::Systemd;
        record.cgroup = "/kubepods.slice/kubepods-pod1.slice".to_owned();
        record.spec.overhead = Some(Resources {
            memory_limit: Some(64 << 20),
            ..Resources::default()
        });
        let info: serde_json::Value = serde_json::from_str(&info(&record)["info"]).unwrap();
        assert_eq!(
            info["runtimeSpec"]["linux"]["cgroupsPath"],
            format!("kubepods-pod1.slice:holdfast:{}", record.id)
        );
        assert_eq!(info["overhead"]["linux"]["memory_limit_in_bytes"], 64 << 20);
        assert!(info.get("resources").is_none());
    }
}
