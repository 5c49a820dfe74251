//! One runtime: its socket, its daemon's process, and pods on it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use holdfast_conformance::cri::{Cri, container_config, namespaces, pod_config};
use k8s_cri::v1 as cri;

pub struct Target {
    pub name: String,
    pub cri: Cri,
    /// The daemon, as the socket names it.
    pub pid: i32,
    /// Where a CNI configuration may be put.
    pub cni_conf_dir: Option<PathBuf>,
}

/// A pod with one container that runs.
pub struct Pod {
    pub id: String,
    pub container: String,
    /// What RunPodSandbox, CreateContainer and StartContainer took, in milliseconds.
    pub took: [f64; 3],
}

/// What a pod shall be.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    pub name: &'a str,
    pub image: &'a str,
    pub network: cri::NamespaceMode,
    pub command: &'a [&'a str],
    pub logs: &'a Path,
}

impl Target {
    pub async fn connect(name: &str, socket: &str) -> anyhow::Result<Self> {
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        let stream =
            std::os::unix::net::UnixStream::connect(path).with_context(|| format!("connect to {path}"))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).context("ask who listens")?;
        Ok(Self {
            name: name.to_owned(),
            cri: Cri::connect(socket).await?,
            pid: peer.pid.as_raw_nonzero().get(),
            cni_conf_dir: None,
        })
    }

    /// The same runtime for another task.
    pub fn share(&self) -> Self {
        Self {
            name: self.name.clone(),
            cri: self.cri.clone(),
            pid: self.pid,
            cni_conf_dir: self.cni_conf_dir.clone(),
        }
    }

    /// A pod whose container is created and not started, and when it was.
    pub async fn create(&self, wish: &Wish<'_>) -> anyhow::Result<(Pod, Instant)> {
        let sandbox = sandbox_config(wish);
        std::fs::create_dir_all(&sandbox.log_directory)?;
        let container = worker_config(wish);
        let begin = Instant::now();
        let id = self.cri.run_pod(&sandbox).await.context("RunPodSandbox")?;
        let sandboxed = Instant::now();
        let container = self
            .cri
            .create(&id, &container, &sandbox)
            .await
            .context("CreateContainer")?;
        let created = Instant::now();
        let took = [ms(begin, sandboxed), ms(sandboxed, created), 0.0];
        Ok((Pod { id, container, took }, created))
    }

    pub async fn start(&self, wish: &Wish<'_>) -> anyhow::Result<Pod> {
        let (mut pod, created) = self.create(wish).await?;
        self.cri.start(&pod.container).await.context("StartContainer")?;
        pod.took[2] = ms(created, Instant::now());
        Ok(pod)
    }

    /// Milliseconds of StopPodSandbox and of RemovePodSandbox.
    pub async fn end(&self, pod: &Pod) -> anyhow::Result<[f64; 2]> {
        let begin = Instant::now();
        self.cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
        let stopped = Instant::now();
        self.cri.remove_pod(&pod.id).await.context("RemovePodSandbox")?;
        Ok([ms(begin, stopped), ms(stopped, Instant::now())])
    }

    /// Removes whatever pods of ours are left after a failure. What cannot be removed shows in the next section.
    pub async fn sweep(&self) {
        let Ok(pods) = self.cri.pods(None).await else {
            return;
        };
        let ours = pods
            .iter()
            .filter(|pod| pod.metadata.as_ref().is_some_and(|m| m.namespace == NAMESPACE));
        for pod in ours {
            let _ = self.cri.stop_pod(&pod.id).await;
            let _ = self.cri.remove_pod(&pod.id).await;
        }
    }
}

const NAMESPACE: &str = "bench";

fn sandbox_config(wish: &Wish<'_>) -> cri::PodSandboxConfig {
    let mut config = pod_config(wish.name, wish.logs);
    if let Some(metadata) = &mut config.metadata {
        metadata.namespace = NAMESPACE.to_owned();
    }
    if wish.network == cri::NamespaceMode::Node {
        // The host's network brings the host's name.
        config.hostname = String::new();
    }
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(context) = context {
        context.namespace_options = Some(namespaces(wish.network));
    }
    config
}

fn worker_config(wish: &Wish<'_>) -> cri::ContainerConfig {
    let mut config = container_config("main", wish.image, wish.command);
    if let Some(linux) = &mut config.linux {
        // A processor, so that a busy machine does not starve the pod between its own steps.
        linux.resources = Some(cri::LinuxContainerResources {
            cpu_shares: 1024,
            oom_score_adj: 1000,
            ..Default::default()
        });
        if let Some(context) = &mut linux.security_context {
            context.namespace_options = Some(namespaces(wish.network));
        }
    }
    config
}

pub fn ms(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}
