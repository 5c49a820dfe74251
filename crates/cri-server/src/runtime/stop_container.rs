//! RuntimeService.StopContainer. What is gone is a success.

use std::time::Duration;

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Status> {
    // Less than nothing is nothing, as with both Go runtimes.
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    error::gone_is_fine(services.engine.stop_container(&request.container_id, grace).await)?;
    Ok(v1::StopContainerResponse {})
}
