//! What clients leave out: accepted as the peers accept it, or refused with the field's name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use k8s_cri::v1 as cri;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail, pod_config};
use crate::expect;

/// The peer answers Unknown where it does not say which argument is wrong.
const REFUSED: &[Code] = &[Code::InvalidArgument, Code::Unknown];

cases!["left_out";
    an_image_without_what_the_user_said,
    a_log_path,
    a_log_directory,
    a_namespace_option,
    everything_of_linux,
    metadata => "the peer names it in other words",
    a_configuration,
    the_pods_configuration_at_create => "the peer does not look whether it is there, and its server ends the connection",
    checkpoints_by_the_runtime => "the peer makes checkpoints where CRIU is installed",
];

async fn an_image_without_what_the_user_said(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "no-user-image").await?;
    let mut config = container_config("c", &image, &["/bin/true"]);
    if let Some(image) = &mut config.image {
        image.user_specified_image = String::new();
    }
    let id = pod.start(&config).await?;
    let status = c.cri.exited(&id, Duration::from_secs(10)).await?;
    expect!(status.exit_code, 0, "its exit code");
    ensure!(
        status.image.is_some_and(|image| !image.image.is_empty()),
        "the status names no image"
    );
    pod.end().await
}

async fn a_log_path(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "no-log-path").await?;
    let mut config = container_config("c", &image, &["/bin/sh", "-c", "echo to nobody; exit 3"]);
    config.log_path = String::new();
    let id = pod.start(&config).await?;
    let status = c.cri.exited(&id, Duration::from_secs(10)).await?;
    expect!(
        (status.exit_code, status.log_path.as_str()),
        (3, ""),
        "exit code and log path"
    );
    let written = std::fs::read_dir(&pod.config.log_directory)?.count();
    expect!(written, 0, "files in the pod's log directory");
    pod.end().await
}

async fn a_log_directory(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("no-log-directory", &c.logs());
    config.log_directory = String::new();
    let id = c.cri.run_pod(&config).await?;
    let container = container_config("c", &image, &["/bin/sh", "-c", "echo to nobody; exit 4"]);
    let made = c.cri.create(&id, &container, &config).await?;
    c.cri.start(&made).await?;
    let status = c.cri.exited(&made, Duration::from_secs(10)).await?;
    expect!(status.exit_code, 4, "its exit code");
    c.cri.stop_pod(&id).await?;
    c.cri.remove_pod(&id).await?;
    Ok(())
}

/// The default of each is the enumeration's first: the pod's.
async fn a_namespace_option(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("no-namespaces", &c.logs());
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = None;
    }
    let pod = Pod::run_with(&c, config).await?;
    let mut container = container_config("c", &image, &["/bin/sleep", "3600"]);
    if let Some(security) = container
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = None;
    }
    let id = pod.start(&container).await?;
    expect!(
        c.cri.shell(&id, "hostname").await?,
        "no-namespaces",
        "the pod's own name"
    );
    pod.end().await
}

async fn everything_of_linux(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("no-linux", &c.logs());
    (config.linux, config.hostname) = (None, String::new());
    let pod = Pod::run_with(&c, config).await?;
    let mut container = container_config("c", &image, &["/bin/sleep", "3600"]);
    container.linux = None;
    let id = pod.start(&container).await?;
    expect!(c.cri.shell(&id, "id -u").await?, "0", "the image's user");
    pod.end().await
}

async fn metadata(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("no-metadata", &c.logs());
    config.metadata = None;
    must_fail(c.cri.run_pod(&config).await, REFUSED, &["metadata"])?;
    let pod = Pod::run(&c, "no-metadata").await?;
    let mut container = container_config("c", &image, &["/bin/true"]);
    container.metadata = None;
    must_fail(
        c.cri.create(&pod.id, &container, &pod.config).await,
        REFUSED,
        &["metadata"],
    )?;
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

async fn a_configuration(c: Arc<Context>) -> anyhow::Result<()> {
    let request = cri::RunPodSandboxRequest {
        config: None,
        runtime_handler: String::new(),
    };
    must_fail(
        c.cri.runtime.clone().run_pod_sandbox(request).await,
        REFUSED,
        &["config"],
    )?;
    let pod = Pod::run(&c, "no-config").await?;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: None,
        sandbox_config: Some(pod.config.clone()),
    };
    must_fail(
        c.cri.runtime.clone().create_container(request).await,
        REFUSED,
        &["config"],
    )?;
    let mut container = container_config("c", "", &["/bin/true"]);
    container.image = None;
    must_fail(
        c.cri.create(&pod.id, &container, &pod.config).await,
        REFUSED,
        &["image"],
    )?;
    pod.end().await
}

/// A reason comes with it. Two of the calls are newer than `k8s-cri`: an empty message is the same in each.
async fn checkpoints_by_the_runtime(c: Arc<Context>) -> anyhow::Result<()> {
    for call in ["CheckpointContainer", "CheckpointPod", "RestorePod"] {
        let mut grpc = Grpc::new(c.cri.channel.clone());
        grpc.ready().await?;
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{call}").parse()?;
        let codec = ProstCodec::<cri::VersionRequest, cri::VersionRequest>::default();
        let request = Request::new(cri::VersionRequest::default());
        let answer = grpc.unary(request, path, codec).await;
        must_fail(answer, &[Code::Unimplemented], &[call, "archives"])?;
    }
    Ok(())
}

/// It is on record: a client need not say it again.
async fn the_pods_configuration_at_create(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "no-pod-config").await?;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(container_config("c", &image, &["/bin/true"])),
        sandbox_config: None,
    };
    let id = c
        .cri
        .runtime
        .clone()
        .create_container(request)
        .await?
        .into_inner()
        .container_id;
    c.cri.start(&id).await?;
    expect!(
        c.cri.exited(&id, Duration::from_secs(10)).await?.exit_code,
        0,
        "its exit code"
    );
    pod.end().await
}
