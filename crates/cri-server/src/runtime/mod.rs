//! RuntimeService, one file per call.

mod attach;
mod cni_result;
mod container_stats;
mod container_status;
mod create_container;
mod exec;
mod exec_sync;
mod get_container_events;
mod list_containers;
mod list_metrics;
mod list_pod_sandbox;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod remove_container;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_config;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_cri_api::v1::runtime_service_server::RuntimeService;
use holdfast_engine::Error;
use holdfast_model::{ContainerRecord, ContainerState};
use tonic::{Request, Response, Status};

use crate::batches::Batches;
use crate::{Services, call, error, unbuilt};

pub use get_container_events::Subscribers;

pub struct RuntimeCalls(pub Services, pub Subscribers);

type Reply<T> = Result<Response<T>, Status>;

/// A container that streams can be asked for; whoever comes with the URL finds out whether it still runs.
fn running_container(services: &Services, id: &str) -> Result<Arc<ContainerRecord>, Status> {
    let container = services.engine.container(id).map_err(error::engine)?;
    if container.state == ContainerState::Running {
        return Ok(container);
    }
    Err(error::engine(Error::State {
        what: "container",
        id: container.id.to_string(),
        state: container.state.name(),
        wanted: "it must be running",
    }))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeCalls {
    type StreamPodSandboxesStream = Batches<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Batches<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Batches<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Batches<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Batches<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = get_container_events::Events;

    async fn version(&self, request: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        let work = async { version::call(&self.0, request.into_inner()) };
        call::run("Version", "", Some(call::READ), work).await
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let work = async { status::call(&self.0, request.into_inner()) };
        call::run("Status", "", Some(call::READ), work).await
    }

    async fn runtime_config(
        &self,
        request: Request<v1::RuntimeConfigRequest>,
    ) -> Reply<v1::RuntimeConfigResponse> {
        let work = async { runtime_config::call(&self.0, request.into_inner()) };
        call::run("RuntimeConfig", "", Some(call::READ), work).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        let work = update_runtime_config::call(&self.0, request.into_inner());
        call::run("UpdateRuntimeConfig", "", Some(call::CHANGE), work).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let subject = run_pod_sandbox::subject(&request);
        call::run(
            "RunPodSandbox",
            &subject,
            Some(call::CHANGE),
            run_pod_sandbox::call(&self.0, request),
        )
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        call::run(
            "StopPodSandbox",
            &subject,
            Some(call::CHANGE),
            stop_pod_sandbox::call(&self.0, request),
        )
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        call::run(
            "RemovePodSandbox",
            &subject,
            Some(call::CHANGE),
            remove_pod_sandbox::call(&self.0, request),
        )
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        call::run("PodSandboxStatus", &subject, Some(call::READ), async {
            pod_sandbox_status::call(&self.0, request)
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        let work = async { list_pod_sandbox::call(&self.0, request.into_inner()) };
        call::run("ListPodSandbox", "", Some(call::READ), work).await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let subject = create_container::subject(&request);
        call::run(
            "CreateContainer",
            &subject,
            Some(call::CHANGE),
            create_container::call(&self.0, request),
        )
        .await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run(
            "StartContainer",
            &subject,
            Some(call::CHANGE),
            start_container::call(&self.0, request),
        )
        .await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run(
            "StopContainer",
            &subject,
            None,
            stop_container::call(&self.0, request),
        )
        .await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run(
            "RemoveContainer",
            &subject,
            Some(call::CHANGE),
            remove_container::call(&self.0, request),
        )
        .await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run("ContainerStatus", &subject, Some(call::READ), async {
            container_status::call(&self.0, request).await
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        let work = async { list_containers::call(&self.0, request.into_inner()) };
        call::run("ListContainers", "", Some(call::READ), work).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run(
            "ReopenContainerLog",
            &subject,
            Some(call::READ),
            reopen_container_log::call(&self.0, request),
        )
        .await
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Reply<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        call::run("ExecSync", &subject, None, exec_sync::call(&self.0, request)).await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let work = async { list_pod_sandbox::stream(&self.0, request.into_inner()) };
        call::run("StreamPodSandboxes", "", Some(call::READ), work).await
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let work = async { list_containers::stream(&self.0, request.into_inner()) };
        call::run("StreamContainers", "", Some(call::READ), work).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        let work = update_pod_sandbox_resources::call(&self.0, request);
        call::run("UpdatePodSandboxResources", &subject, Some(call::CHANGE), work).await
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        let work = update_container_resources::call(&self.0, request);
        call::run("UpdateContainerResources", &subject, Some(call::CHANGE), work).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        let work = async { exec::call(&self.0, request) };
        call::run("Exec", &subject, Some(call::READ), work).await
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        let work = async { attach::call(&self.0, request) };
        call::run("Attach", &subject, Some(call::READ), work).await
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Reply<v1::PortForwardResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        let work = async { port_forward::call(&self.0, request) };
        call::run("PortForward", &subject, Some(call::READ), work).await
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Reply<v1::ContainerStatsResponse> {
        let request = request.into_inner();
        let subject = request.container_id.clone();
        let work = container_stats::call(&self.0, request);
        call::run("ContainerStats", &subject, Some(call::READ), work).await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        let work = async { Ok(container_stats::list(&self.0, request.into_inner()).await) };
        call::run("ListContainerStats", "", Some(call::READ), work).await
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let work = async { Ok(container_stats::stream(&self.0, request.into_inner()).await) };
        call::run("StreamContainerStats", "", Some(call::READ), work).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Reply<v1::PodSandboxStatsResponse> {
        let request = request.into_inner();
        let subject = request.pod_sandbox_id.clone();
        let work = pod_sandbox_stats::call(&self.0, request);
        call::run("PodSandboxStats", &subject, Some(call::READ), work).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        let work = async { Ok(pod_sandbox_stats::list(&self.0, request.into_inner()).await) };
        call::run("ListPodSandboxStats", "", Some(call::READ), work).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let work = async { Ok(pod_sandbox_stats::stream(&self.0, request.into_inner()).await) };
        call::run("StreamPodSandboxStats", "", Some(call::READ), work).await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        let work = async { Ok(list_metrics::descriptors()) };
        call::run("ListMetricDescriptors", "", Some(call::READ), work).await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        let work = list_metrics::call(&self.0);
        call::run("ListPodSandboxMetrics", "", Some(call::READ), work).await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let work = list_metrics::stream(&self.0);
        call::run("StreamPodSandboxMetrics", "", Some(call::READ), work).await
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let work = async { get_container_events::call(&self.0, &self.1) };
        call::run("GetContainerEvents", "", Some(call::READ), work).await
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Reply<v1::CheckpointContainerResponse> {
        Err(unbuilt::checkpoint("CheckpointContainer"))
    }

    async fn checkpoint_pod(&self, _: Request<v1::CheckpointPodRequest>) -> Reply<v1::CheckpointPodResponse> {
        Err(unbuilt::checkpoint("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Reply<v1::RestorePodResponse> {
        Err(unbuilt::checkpoint("RestorePod"))
    }
}
