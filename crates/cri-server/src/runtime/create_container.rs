//! RuntimeService.CreateContainer

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::container_spec;
use crate::{Services, error};

/// The pod's configuration in the request is not looked at: the pod has its own on record.
pub async fn call(
    services: &Services,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| error::missing("config"))?;
    let spec = container_spec(config).map_err(error::invalid)?;
    let id = services
        .engine
        .create_container(&request.pod_sandbox_id, spec)
        .await
        .map_err(error::engine)?;
    Ok(v1::CreateContainerResponse {
        container_id: id.to_string(),
    })
}

pub fn subject(request: &v1::CreateContainerRequest) -> String {
    let metadata = request.config.as_ref().and_then(|c| c.metadata.as_ref());
    format!(
        "{} in {}",
        metadata.map_or("", |m| &m.name),
        request.pod_sandbox_id
    )
}
