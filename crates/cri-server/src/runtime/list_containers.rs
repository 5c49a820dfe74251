//! RuntimeService.ListContainers and StreamContainers

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_model::ContainerRecord;
use tonic::Status;

use crate::batches::{self, Batches};
use crate::translate::container_item;
use crate::{Services, filter};

pub fn call(
    services: &Services,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, Status> {
    let found = find(services, request.filter.as_ref())?;
    Ok(v1::ListContainersResponse {
        containers: found.iter().map(|record| container_item(record)).collect(),
    })
}

pub fn stream(
    services: &Services,
    request: v1::StreamContainersRequest,
) -> Result<Batches<v1::StreamContainersResponse>, Status> {
    Ok(batches::stream(
        find(services, request.filter.as_ref())?,
        |record| container_item(record),
        |containers| v1::StreamContainersResponse { containers },
    ))
}

fn find(
    services: &Services,
    wanted: Option<&v1::ContainerFilter>,
) -> Result<Vec<Arc<ContainerRecord>>, Status> {
    filter::check_container(wanted)?;
    let mut all = services.engine.containers();
    all.retain(|record| filter::container(wanted, record));
    Ok(all)
}
