//! RuntimeService.ReopenContainerLog

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, Status> {
    let reopened = services.engine.reopen_container_log(&request.container_id).await;
    reopened.map_err(error::engine)?;
    Ok(v1::ReopenContainerLogResponse {})
}
