//! RuntimeService.UpdateContainerResources

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::resources;
use crate::{Services, error};

/// The part for Windows is passed over, as it is for every Linux runtime, and so are annotations: none is known.
pub async fn call(
    services: &Services,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Status> {
    let linux = request.linux.ok_or_else(|| error::missing("linux"))?;
    services
        .engine
        .update_container(&request.container_id, resources(linux))
        .await
        .map_err(error::engine)?;
    Ok(v1::UpdateContainerResourcesResponse {})
}
