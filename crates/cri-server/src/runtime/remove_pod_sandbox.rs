//! RuntimeService.RemovePodSandbox. What is gone is a success.

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse, Status> {
    error::gone_is_fine(services.engine.remove_pod_sandbox(&request.pod_sandbox_id).await)?;
    Ok(v1::RemovePodSandboxResponse {})
}
