//! RuntimeService.ContainerStats, ListContainerStats and StreamContainerStats

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_model::ContainerRecord;
use tonic::Status;

use crate::batches::{self, Batches};
use crate::translate::container_stats;
use crate::{Services, error, filter};

pub async fn call(
    services: &Services,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Status> {
    let found = services.engine.container_usage(&request.container_id).await;
    let found = found.map_err(error::engine)?;
    Ok(v1::ContainerStatsResponse {
        stats: Some(container_stats(&found, &layers_on(services))),
    })
}

pub async fn list(
    services: &Services,
    request: v1::ListContainerStatsRequest,
) -> v1::ListContainerStatsResponse {
    let records = find(services, request.filter.as_ref());
    let found = services.engine.container_usages(&records).await;
    let on = layers_on(services);
    v1::ListContainerStatsResponse {
        stats: found.iter().map(|one| container_stats(one, &on)).collect(),
    }
}

pub async fn stream(
    services: &Services,
    request: v1::StreamContainerStatsRequest,
) -> Batches<v1::StreamContainerStatsResponse> {
    let records = find(services, request.filter.as_ref());
    let found = services.engine.container_usages(&records).await;
    let on = layers_on(services);
    batches::stream(
        found,
        move |one| container_stats(one, &on),
        |container_stats| v1::StreamContainerStatsResponse { container_stats },
    )
}

fn find(services: &Services, wanted: Option<&v1::ContainerStatsFilter>) -> Vec<Arc<ContainerRecord>> {
    let mut all = services.engine.containers();
    all.retain(|record| filter::container_stats(wanted, record));
    all
}

/// The file system of writable layers, under the name that ImageFsInfo gives it.
pub fn layers_on(services: &Services) -> String {
    services.images.path().to_string_lossy().into_owned()
}
