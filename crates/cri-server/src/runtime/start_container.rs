//! RuntimeService.StartContainer

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, Status> {
    let started = services.engine.start_container(&request.container_id).await;
    started.map_err(error::engine)?;
    Ok(v1::StartContainerResponse {})
}
