//! RuntimeService.UpdatePodSandboxResources

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::resources;
use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
    services
        .engine
        .update_pod(
            &request.pod_sandbox_id,
            request.overhead.map(resources),
            request.resources.map(resources),
        )
        .await
        .map_err(error::engine)?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
