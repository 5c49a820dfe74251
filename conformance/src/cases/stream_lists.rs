//! The Stream calls of Kubernetes 1.37, against the List calls of the same name. `k8s-cri` does not know them yet: their
//! messages are written down here.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use k8s_cri::v1 as cri;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail};
use crate::expect;

cases!["stream_lists";
    containers => "the peer's release is older than the call",
    pods => "the peer's release is older than the call",
    images => "the peer's release is older than the call",
    filters => "the peer's release is older than the call",
    what_they_use => "the peer's release is older than the call",
    odd_filters => "the peer's release is older than the call, and it takes any state",
];

/// `Stream…Request`: the List request of the same name, field for field. `Stream…Response`: one repeated field.
#[derive(Clone, PartialEq, prost::Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::Container>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::PodSandbox>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Images {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::Image>,
}

/// Every message of a server's stream.
pub async fn collect<Q, A>(c: &Context, path: &'static str, request: Q) -> Result<Vec<A>, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(c.cri.channel.clone());
    let unready = |e: tonic::transport::Error| Status::unavailable(e.to_string());
    grpc.ready().await.map_err(unready)?;
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    let reply = grpc.server_streaming(tonic::Request::new(request), path, codec);
    let mut stream = reply.await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.push(message);
    }
    Ok(all)
}

async fn stream_containers(
    c: &Context,
    filter: Option<cri::ContainerFilter>,
) -> Result<Vec<cri::Container>, Status> {
    let path = "/runtime.v1.RuntimeService/StreamContainers";
    let all: Vec<Containers> = collect(c, path, cri::ListContainersRequest { filter }).await?;
    Ok(all.into_iter().flat_map(|batch| batch.items).collect())
}

async fn containers(c: Arc<Context>) -> anyhow::Result<()> {
    expect!(
        stream_containers(&c, None).await?.len(),
        0,
        "containers of an empty node"
    );
    let pod = Pod::run(&c, "streamed").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    for n in 0..5 {
        let config = container_config(&format!("c{n}"), &image, &["/bin/sleep", "3600"]);
        c.cri.create(&pod.id, &config, &pod.config).await?;
    }
    expect!(
        stream_containers(&c, None).await?,
        c.cri.containers(None).await?,
        "the stream"
    );
    pod.end().await
}

async fn pods(c: Arc<Context>) -> anyhow::Result<()> {
    let one = Pod::run(&c, "one").await?;
    let two = Pod::run(&c, "two").await?;
    let path = "/runtime.v1.RuntimeService/StreamPodSandboxes";
    let request = cri::ListPodSandboxRequest { filter: None };
    let batches: Vec<Pods> = collect(&c, path, request).await?;
    let streamed: Vec<_> = batches.into_iter().flat_map(|batch| batch.items).collect();
    expect!(streamed, c.cri.pods(None).await?, "the stream");
    expect!(streamed.len(), 2, "pods");
    one.end().await?;
    two.end().await
}

async fn images(c: Arc<Context>) -> anyhow::Result<()> {
    c.cri.pull(c.image("busybox")).await?;
    let path = "/runtime.v1.ImageService/StreamImages";
    let request = cri::ListImagesRequest { filter: None };
    let batches: Vec<Images> = collect(&c, path, request).await?;
    let streamed: Vec<_> = batches.into_iter().flat_map(|batch| batch.items).collect();
    ensure!(!streamed.is_empty(), "no image was streamed");
    expect!(streamed, c.cri.images().await?, "the stream");
    Ok(())
}

async fn filters(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "filters").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut labelled = container_config("labelled", &image, &["/bin/sleep", "3600"]);
    labelled.labels = HashMap::from([("tier".to_owned(), String::new())]);
    let id = c.cri.create(&pod.id, &labelled, &pod.config).await?;
    let plain = container_config("plain", &image, &["/bin/sleep", "3600"]);
    c.cri.create(&pod.id, &plain, &pod.config).await?;
    let filters = [
        cri::ContainerFilter {
            id: id[..13].to_owned(),
            ..Default::default()
        },
        // A label that is there and empty is not one that is missing.
        cri::ContainerFilter {
            label_selector: HashMap::from([("tier".to_owned(), String::new())]),
            ..Default::default()
        },
    ];
    for filter in filters {
        let streamed = stream_containers(&c, Some(filter.clone())).await?;
        let ids: Vec<&str> = streamed.iter().map(|one| one.id.as_str()).collect();
        expect!(ids, [id.as_str()], "with {filter:?}");
        expect!(streamed, c.cri.containers(Some(filter)).await?, "the list");
    }
    pod.end().await
}

#[derive(Clone, PartialEq, prost::Message)]
struct Stats {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::ContainerStats>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct PodStats {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::PodSandboxStats>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct PodMetrics {
    #[prost(message, repeated, tag = "1")]
    items: Vec<cri::PodSandboxMetrics>,
}

async fn what_they_use(c: Arc<Context>) -> anyhow::Result<()> {
    let one = Pod::run(&c, "one").await?;
    let two = Pod::run(&c, "two").await?;
    let container = one.sleeper(&c).await?;
    two.sleeper(&c).await?;
    let request = cri::ListContainerStatsRequest {
        filter: Some(cri::ContainerStatsFilter {
            pod_sandbox_id: one.id.clone(),
            ..Default::default()
        }),
    };
    let path = "/runtime.v1.RuntimeService/StreamContainerStats";
    let batches: Vec<Stats> = collect(&c, path, request).await?;
    let told: Vec<_> = batches.into_iter().flat_map(|batch| batch.items).collect();
    let ids: Vec<_> = told
        .iter()
        .filter_map(|s| s.attributes.as_ref())
        .map(|a| a.id.as_str())
        .collect();
    expect!(ids, [container.as_str()], "containers of one pod");
    ensure!(told[0].cpu.is_some() && told[0].memory.is_some(), "{told:?}");

    let mut both = [one.id.clone(), two.id.clone()];
    both.sort();
    let path = "/runtime.v1.RuntimeService/StreamPodSandboxStats";
    let request = cri::ListPodSandboxStatsRequest { filter: None };
    let batches: Vec<PodStats> = collect(&c, path, request).await?;
    let told = batches.into_iter().flat_map(|batch| batch.items);
    let ids: Vec<_> = told.filter_map(|s| s.attributes).map(|a| a.id).collect();
    expect!(ids, both, "stats of the pods");

    let path = "/runtime.v1.RuntimeService/StreamPodSandboxMetrics";
    let batches: Vec<PodMetrics> = collect(&c, path, cri::ListPodSandboxMetricsRequest {}).await?;
    let told = batches.into_iter().flat_map(|batch| batch.items);
    let ids: Vec<_> = told.map(|one| one.pod_sandbox_id).collect();
    expect!(ids, both, "metrics of the pods");
    one.end().await?;
    two.end().await
}

async fn odd_filters(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "odd").await?;
    pod.sleeper(&c).await?;
    let many = (0..10_000).map(|n| (format!("key-{n}"), "value".to_owned()));
    let nothing = [
        cri::ContainerFilter {
            id: "no such id".into(),
            ..Default::default()
        },
        cri::ContainerFilter {
            pod_sandbox_id: "ab".repeat(40),
            ..Default::default()
        },
        cri::ContainerFilter {
            label_selector: many.collect(),
            ..Default::default()
        },
    ];
    for filter in nothing {
        expect!(
            c.cri.containers(Some(filter.clone())).await?.len(),
            0,
            "containers found"
        );
        expect!(
            stream_containers(&c, Some(filter)).await?.len(),
            0,
            "containers streamed"
        );
    }
    let unknown = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: 77 }),
        ..Default::default()
    };
    let wrong = [Code::InvalidArgument];
    must_fail(
        c.cri.containers(Some(unknown.clone())).await,
        &wrong,
        &["filter.state"],
    )?;
    must_fail(
        stream_containers(&c, Some(unknown)).await,
        &wrong,
        &["filter.state"],
    )?;
    pod.end().await
}
