//! RuntimeService.ListContainers

use holdfast_cri_api::v1;
use tonic::Status;

use crate::translate::container_item;
use crate::{Services, filter};

pub fn call(
    services: &Services,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, Status> {
    let wanted = request.filter.as_ref();
    Ok(v1::ListContainersResponse {
        containers: services
            .engine
            .containers()
            .iter()
            .filter(|record| filter::container(wanted, record))
            .map(|record| container_item(record))
            .collect(),
    })
}
