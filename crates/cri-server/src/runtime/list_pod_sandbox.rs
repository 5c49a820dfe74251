//! RuntimeService.ListPodSandbox and StreamPodSandboxes

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_model::SandboxRecord;
use tonic::Status;

use crate::batches::{self, Batches};
use crate::translate::sandbox_item;
use crate::{Services, filter};

pub fn call(
    services: &Services,
    request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse, Status> {
    let found = find(services, request.filter.as_ref())?;
    Ok(v1::ListPodSandboxResponse {
        items: found.iter().map(|record| sandbox_item(record)).collect(),
    })
}

pub fn stream(
    services: &Services,
    request: v1::StreamPodSandboxesRequest,
) -> Result<Batches<v1::StreamPodSandboxesResponse>, Status> {
    Ok(batches::stream(
        find(services, request.filter.as_ref())?,
        |record| sandbox_item(record),
        |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes },
    ))
}

fn find(
    services: &Services,
    wanted: Option<&v1::PodSandboxFilter>,
) -> Result<Vec<Arc<SandboxRecord>>, Status> {
    filter::check_sandbox(wanted)?;
    let mut all = services.engine.sandboxes();
    all.retain(|record| filter::sandbox(wanted, record));
    Ok(all)
}
