//! RuntimeService.RunPodSandbox

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::sandbox_spec;
use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| error::missing("config"))?;
    let spec = sandbox_spec(config).map_err(error::invalid)?;
    let id = services
        .engine
        .run_pod_sandbox(spec, &request.runtime_handler)
        .await
        .map_err(error::engine)?;
    Ok(v1::RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    })
}

pub fn subject(request: &v1::RunPodSandboxRequest) -> String {
    let metadata = request.config.as_ref().and_then(|c| c.metadata.as_ref());
    metadata
        .map(|m| format!("{}/{}", m.namespace, m.name))
        .unwrap_or_default()
}
