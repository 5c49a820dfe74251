//! RuntimeService.Version

use holdfast_cri_api::v1;
use tonic::Status;

use crate::Services;

/// kubelet's name for the version of this answer's own format; every runtime says so.
const KUBELET_API: &str = "0.1.0";

pub fn call(services: &Services, _: v1::VersionRequest) -> Result<v1::VersionResponse, Status> {
    Ok(v1::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "holdfast".to_owned(),
        runtime_version: services.node.version.clone(),
        runtime_api_version: "v1".to_owned(),
    })
}
