//! RuntimeService.ListMetricDescriptors, ListPodSandboxMetrics and StreamPodSandboxMetrics (KEP-2371)

use holdfast_cri_api::v1;
use tonic::Status;

use crate::batches::{self, Batches};
use crate::{Services, error, metrics};

pub fn descriptors() -> v1::ListMetricDescriptorsResponse {
    v1::ListMetricDescriptorsResponse {
        descriptors: metrics::descriptors(),
    }
}

pub async fn call(services: &Services) -> Result<v1::ListPodSandboxMetricsResponse, Status> {
    let found = services.engine.metrics().await.map_err(error::engine)?;
    Ok(v1::ListPodSandboxMetricsResponse {
        pod_metrics: found.iter().map(metrics::of_pod).collect(),
    })
}

pub async fn stream(services: &Services) -> Result<Batches<v1::StreamPodSandboxMetricsResponse>, Status> {
    let found = services.engine.metrics().await.map_err(error::engine)?;
    Ok(batches::stream(found, metrics::of_pod, |pod_sandbox_metrics| {
        v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
    }))
}
