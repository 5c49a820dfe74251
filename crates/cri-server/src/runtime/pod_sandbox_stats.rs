//! RuntimeService.PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_model::SandboxRecord;
use tonic::Status;

use super::container_stats::layers_on;
use crate::batches::{self, Batches};
use crate::translate::sandbox_stats;
use crate::{Services, error, filter};

pub async fn call(
    services: &Services,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Status> {
    let found = services.engine.pod_usage(&request.pod_sandbox_id).await;
    let found = found.map_err(error::engine)?;
    Ok(v1::PodSandboxStatsResponse {
        stats: Some(sandbox_stats(&found, &layers_on(services))),
    })
}

pub async fn list(
    services: &Services,
    request: v1::ListPodSandboxStatsRequest,
) -> v1::ListPodSandboxStatsResponse {
    let records = find(services, request.filter.as_ref());
    let found = services.engine.pod_usages(&records).await;
    let on = layers_on(services);
    v1::ListPodSandboxStatsResponse {
        stats: found.iter().map(|one| sandbox_stats(one, &on)).collect(),
    }
}

pub async fn stream(
    services: &Services,
    request: v1::StreamPodSandboxStatsRequest,
) -> Batches<v1::StreamPodSandboxStatsResponse> {
    let records = find(services, request.filter.as_ref());
    let found = services.engine.pod_usages(&records).await;
    let on = layers_on(services);
    batches::stream(
        found,
        move |one| sandbox_stats(one, &on),
        |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats },
    )
}

fn find(services: &Services, wanted: Option<&v1::PodSandboxStatsFilter>) -> Vec<Arc<SandboxRecord>> {
    let mut all = services.engine.sandboxes();
    all.retain(|record| filter::sandbox_stats(wanted, record));
    all
}
