//! A CRI client over a unix socket, on the types of the `k8s-cri` crate: a client that holdfast did not generate.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as cri};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// One gRPC message may hold this much: kubelet's limit.
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
    /// Runtime handler of the pods that it makes; empty: the default.
    pub handler: String,
    /// For calls that are newer than `k8s-cri`.
    pub channel: Channel,
}

impl Cri {
    /// `endpoint`: a path, with or without `unix://`.
    pub async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint).to_owned();
        let shown = path.clone();
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    tokio::net::UnixStream::connect(Path::new(&path))
                        .await
                        .map(TokioIo::new)
                }
            }))
            .await
            .with_context(|| format!("connect to {shown}"))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            handler: String::new(),
            channel,
        })
    }

    pub async fn pull(&self, reference: &str) -> Result<String, Status> {
        self.pull_as(reference, None).await
    }

    pub async fn pull_as(&self, reference: &str, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(reference)),
            auth,
            sandbox_config: None,
        };
        Ok(self
            .image
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    pub async fn image_status(&self, reference: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest {
            image: Some(image_spec(reference)),
            verbose: false,
        };
        Ok(self.image.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest {
            image: Some(image_spec(reference)),
        };
        self.image.clone().remove_image(request).await.map(drop)
    }

    pub async fn images(&self) -> Result<Vec<cri::Image>, Status> {
        Ok(self
            .image
            .clone()
            .list_images(cri::ListImagesRequest { filter: None })
            .await?
            .into_inner()
            .images)
    }

    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let reply = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        reply
            .status
            .ok_or_else(|| Status::internal("PodSandboxStatus without a status"))
    }

    /// A cgroup parent that is nobody else's, in the form of the runtime's cgroup driver. Who does not tell it has cgroupfs.
    pub async fn cgroup_parent(&self, name: &str) -> String {
        let request = cri::RuntimeConfigRequest {};
        let config = self.runtime.clone().runtime_config(request).await;
        let linux = config.ok().and_then(|config| config.into_inner().linux);
        let own = format!("{name}{}", std::process::id());
        match linux.is_some_and(|linux| linux.cgroup_driver() == cri::CgroupDriver::Systemd) {
            true => format!("{own}.slice"),
            false => format!("/{own}"),
        }
    }

    pub async fn pods(&self, filter: Option<cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter };
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    pub async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let reply = self.runtime.clone().container_status(request).await?.into_inner();
        reply
            .status
            .ok_or_else(|| Status::internal("ContainerStatus without a status"))
    }

    pub async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter };
        Ok(self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    pub async fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = command.iter().map(|&c| c.to_owned()).collect();
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// Exec of a shell script: its stdout, without the last newline; an error when it does not exit 0.
    pub async fn shell(&self, id: &str, script: &str) -> anyhow::Result<String> {
        let reply = self.exec(id, &["/bin/sh", "-c", script], 10).await?;
        let stdout = String::from_utf8_lossy(&reply.stdout).trim_end().to_owned();
        if reply.exit_code != 0 {
            let stderr = String::from_utf8_lossy(&reply.stderr);
            bail!(
                "`{script}` left with {}: {stdout} {}",
                reply.exit_code,
                stderr.trim_end()
            );
        }
        Ok(stdout)
    }

    /// Waits until the container has exited, for at most `limit`.
    pub async fn exited(&self, id: &str, limit: Duration) -> anyhow::Result<cri::ContainerStatus> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let status = self.status(id).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("container {id} is still {:?} after {limit:?}", status.state());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn image_spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.to_owned(),
        user_specified_image: reference.to_owned(),
        ..Default::default()
    }
}

/// A pod of its own name in namespace `conformance`; its logs go below `logs`.
pub fn pod_config(name: &str, logs: &Path) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "conformance".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.join(name).to_string_lossy().into_owned(),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Network and IPC as `network` says; each container in a PID namespace of its own.
pub fn namespaces(network: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A container of `image` that runs `command`, or the image's own where that is empty.
pub fn container_config(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(image_spec(image)),
        command: command.iter().map(|&c| c.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: None,
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Pod)),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// Whether the runtime is a peer: what its errors name is its own affair.
pub static PEER: AtomicBool = AtomicBool::new(false);

/// How a request that is wrong in itself is refused: by INVALID_ARGUMENT, or by a peer as it likes.
pub fn invalid() -> &'static [Code] {
    if PEER.load(Ordering::Relaxed) {
        &[
            Code::InvalidArgument,
            Code::Unknown,
            Code::Internal,
            Code::NotFound,
            Code::FailedPrecondition,
        ]
    } else {
        &[Code::InvalidArgument]
    }
}

/// The call must have failed with one of `codes`, and the message must name each of `words` (of holdfast's).
pub fn must_fail<T>(result: Result<T, Status>, codes: &[Code], words: &[&str]) -> anyhow::Result<Status> {
    let Err(status) = result else {
        bail!("the call succeeded; it must fail with one of {codes:?}")
    };
    if !codes.contains(&status.code()) {
        bail!(
            "failed with {:?} ({}), not with one of {codes:?}",
            status.code(),
            status.message()
        );
    }
    for word in words.iter().filter(|_| !PEER.load(Ordering::Relaxed)) {
        if !status.message().to_lowercase().contains(&word.to_lowercase()) {
            bail!("the error does not name `{word}`: {}", status.message());
        }
    }
    Ok(status)
}
