//! RuntimeService.ListPodSandbox

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::sandbox_item;
use crate::{Services, filter};

pub fn call(
    services: &Services,
    request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse, Status> {
    let wanted = request.filter.as_ref();
    Ok(v1::ListPodSandboxResponse {
        items: services
            .engine
            .sandboxes()
            .iter()
            .filter(|record| filter::sandbox(wanted, record))
            .map(|record| sandbox_item(record))
            .collect(),
    })
}
