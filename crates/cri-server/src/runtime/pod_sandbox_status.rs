//! RuntimeService.PodSandboxStatus

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::SandboxRecord;
use tonic::Status;

use crate::translate::{container_statuses, sandbox_config, sandbox_status};
use crate::{Services, call as calls, error, json};

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
    let mut namespaces = Vec::new();
    if !record.spec.host_network() {
        let path = match record.pause_pid {
            Some(pid) => format!("/proc/{pid}/ns/net"),
            None => record.netns_path.clone(),
        };
        namespaces.push(serde_json::json!({ "type": "network", "path": path }));
    }
    let info = serde_json::json!({
        "sandboxID": record.id.as_str(),
        "pid": record.pause_pid.unwrap_or_default(),
        "processStatus": record.state.name(),
        "hostname": record.hostname,
        "runtimeHandler": record.handler,
        "runtimeType": "holdfast",
        "cniResult": record.network,
        "config": json::message("PodSandboxConfig", &sandbox_config(&record.spec)),
        "runtimeSpec": {
            "ociVersion": "1.2.1",
            "hostname": record.hostname,
            "linux": { "cgroupsPath": record.cgroup, "namespaces": namespaces },
        },
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
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
    }
}
