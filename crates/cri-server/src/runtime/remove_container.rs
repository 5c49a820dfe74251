//! RuntimeService.RemoveContainer. What is gone is a success; what runs is killed.

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, Status> {
    error::gone_is_fine(services.engine.remove_container(&request.container_id).await)?;
    Ok(v1::RemoveContainerResponse {})
}
