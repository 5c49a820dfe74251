//! RuntimeService.ContainerStatus

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_cri_api::v1;
use holdfast_model::{ContainerRecord, ContainerState, SandboxRecord};
use serde_json::Value;
use tonic::Status;

use crate::translate::{container_config, container_status};
use crate::{Services, call, error, json};

/// A program that only prints something, or cannot go on, ends in its first milliseconds. Who asks for the status right after
/// StartContainer is told so, and need not ask again in some seconds: a container that is younger than this is given the rest
/// of it. However many are asked for one after the other, the last start was this long ago when the wait is over.
const SETTLED: Duration = Duration::from_millis(25);
const LOOK: Duration = Duration::from_millis(2);

pub async fn call(
    services: &Services,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let record = settled(services, &request.container_id).await?;
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

async fn settled(services: &Services, id: &str) -> Result<Arc<ContainerRecord>, Status> {
    loop {
        let record = services.engine.container(id).map_err(error::engine)?;
        if record.state != ContainerState::Running || !is_young(call::now(), record.started_at) {
            return Ok(record);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Both in nanoseconds since 1970. A clock that was set back makes nobody wait.
fn is_young(now: i64, started_at: i64) -> bool {
    u128::try_from(now.saturating_sub(started_at)).is_ok_and(|age| age < SETTLED.as_nanos())
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
        "removing": record.state == ContainerState::Removing,
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
    fn only_the_first_milliseconds_are_waited_for() {
        let start = 1_000_000_000_000;
        let settled = i64::try_from(SETTLED.as_nanos()).unwrap();
        for (now, young) in [
            (start, true),
            (start + settled - 1, true),
            (start + settled, false),
            (i64::MAX, false),
            (start - 1, false),
            (0, false),
        ] {
            assert_eq!(is_young(now, start), young, "asked at {now}");
        }
    }

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
