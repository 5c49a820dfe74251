//! RuntimeService.ContainerStatus

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::ContainerRecord;
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
            info(&record)
        } else {
            BTreeMap::new()
        },
    })
}

/// The names are those that crictl's users and debuggers look for.
fn info(record: &ContainerRecord) -> BTreeMap<String, String> {
    let spec = serde_json::from_str(&record.oci_spec).unwrap_or(Value::Null);
    let info = serde_json::json!({
        "sandboxID": record.sandbox.as_str(),
        "pid": record.pid.unwrap_or_default(),
        "removing": record.state == holdfast_model::ContainerState::Removing,
        "snapshotKey": record.id.as_str(),
        "snapshotter": "overlayfs",
        "runtimeType": "holdfast",
        "privileged": record.spec.security.privileged,
        "config": json::message("ContainerConfig", &container_config(&record.spec)),
        "runtimeSpec": spec,
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
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
        record.oci_spec = r#"{"ociVersion":"1.2.1"}"#.into();
        record.spec.metadata.name = "c".into();
        let info: Value = serde_json::from_str(&info(&record)["info"]).unwrap();
        assert_eq!(info["pid"], 8);
        assert_eq!(info["runtimeSpec"]["ociVersion"], "1.2.1");
        assert_eq!(info["config"]["metadata"]["name"], "c");
        assert_eq!(info["sandboxID"], record.sandbox.as_str());
    }
}
