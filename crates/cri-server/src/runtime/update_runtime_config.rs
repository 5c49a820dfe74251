//! RuntimeService.UpdateRuntimeConfig: the kubelet hands down the node's pod addresses.

use holdfast_cri_api::v1;
use tonic::Status;

use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
    services.engine.set_pod_cidr(&cidr).await.map_err(error::engine)?;
    Ok(v1::UpdateRuntimeConfigResponse {})
}
