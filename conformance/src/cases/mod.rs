//! The cases. Each gets a running socket and leaves no pod behind; what it leaves is swept and counts as a failure.

mod bad_images;
mod bad_input;
mod bad_network;
mod bad_streams;
mod confinement;
mod containers;
mod events;
mod exec;
mod handlers;
mod hooks;
mod image_semantics;
mod images;
mod kubectl;
mod left_out;
mod logs;
mod mounts;
mod network;
mod pods;
mod resources;
mod runtime_config;
mod security;
mod security_context;
mod stats;
mod stream_lists;
mod streaming;
mod survival;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use k8s_cri::v1 as cri;

use crate::Context;
use crate::cri::{Cri, container_config, pod_config};

type Run = fn(Arc<Context>) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

pub struct Case {
    pub name: &'static str,
    pub run: Run,
    /// Why a peer is known to fail this case, with the text of the specification that it differs from.
    pub differs: Option<&'static str>,
    /// Seconds, where the suite's limit is too long.
    pub limit: Option<u64>,
    /// Runtime handler whose pods it is about; none: the default.
    pub handler: Option<&'static str>,
}

/// `cases![module; function, other => "why a peer differs", third within 20 => "why", …]`; `within` is in seconds.
macro_rules! cases {
    ($module:literal; $($function:ident $(within $limit:literal)? $(=> $why:literal)?),* $(,)?) => {
        pub fn all() -> Vec<$crate::cases::Case> {
            vec![$($crate::cases::Case {
                name: concat!($module, "::", stringify!($function)),
                run: |context| Box::pin($function(context)),
                differs: $crate::cases::given!($($why)?),
                limit: $crate::cases::given!($($limit)?),
                handler: None,
            }),*]
        }
    };
}
macro_rules! given {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}
pub(crate) use {cases, given};

pub use handlers::with_handler;

pub fn all() -> Vec<Case> {
    [
        images::all(),
        pods::all(),
        containers::all(),
        logs::all(),
        exec::all(),
        handlers::all(),
        hooks::all(),
        left_out::all(),
        network::all(),
        security::all(),
        confinement::all(),
        security_context::all(),
        mounts::all(),
        image_semantics::all(),
        streaming::all(),
        bad_input::all(),
        events::all(),
        stats::all(),
        stream_lists::all(),
        kubectl::all(),
        bad_images::all(),
        bad_network::all(),
        bad_streams::all(),
        resources::all(),
        runtime_config::all(),
        survival::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One pod, whose life shows that the runtime works at all.
pub async fn warm_up(context: &Context) -> anyhow::Result<()> {
    let pod = Pod::run(context, "warm-up").await?;
    pod.sleeper(context).await?;
    pod.end().await
}

/// Removes every pod; an error names those that a case left behind.
pub async fn sweep(cri: &Cri) -> anyhow::Result<()> {
    let left = sweep_all(cri).await?;
    let containers = cri.containers(None).await?;
    if let Some(orphan) = containers.first() {
        bail!("container {} outlived its pod", orphan.id);
    }
    if let Some(pod) = left.first() {
        bail!("the case left pod {} behind", pod.id);
    }
    Ok(())
}

/// Stops and removes what is there; what it was.
pub async fn sweep_all(cri: &Cri) -> anyhow::Result<Vec<cri::PodSandbox>> {
    let left = cri.pods(None).await?;
    for pod in &left {
        cri.stop_pod(&pod.id).await?;
        cri.remove_pod(&pod.id).await?;
    }
    Ok(left)
}

/// A pod that is removed by `end`, with the configuration that made it.
pub struct Pod {
    cri: Cri,
    pub id: String,
    pub config: cri::PodSandboxConfig,
}

impl Pod {
    pub async fn run(context: &Context, name: &str) -> anyhow::Result<Self> {
        Self::run_with(context, pod_config(name, &context.logs())).await
    }

    pub async fn run_with(context: &Context, config: cri::PodSandboxConfig) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.log_directory)?;
        let id = context.cri.run_pod(&config).await?;
        Ok(Self {
            cri: context.cri.clone(),
            id,
            config,
        })
    }

    /// Creates and starts; the id.
    pub async fn start(&self, config: &cri::ContainerConfig) -> anyhow::Result<String> {
        let id = self.cri.create(&self.id, config, &self.config).await?;
        self.cri.start(&id).await?;
        Ok(id)
    }

    /// A busybox that sleeps, for execs.
    pub async fn sleeper(&self, context: &Context) -> anyhow::Result<String> {
        let image = context.cri.pull(context.image("busybox")).await?;
        self.start(&container_config("sleeper", &image, &["/bin/sleep", "3600"]))
            .await
    }

    /// Runs `command` in a busybox to its end; its status and its log's text.
    pub async fn once(&self, context: &Context, config: &cri::ContainerConfig) -> anyhow::Result<Ended> {
        let id = self.start(config).await?;
        let limit = Duration::from_secs(if context.emulated { 100 } else { 20 });
        let status = context.cri.exited(&id, limit).await?;
        let path = std::path::Path::new(&self.config.log_directory).join(&config.log_path);
        let mut log = std::fs::read_to_string(&path)?;
        // An exit waits half a second for the log to be whole, which is little there.
        let mut whole = !context.emulated;
        while !whole {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let before = log.len();
            log = std::fs::read_to_string(&path)?;
            whole = log.len() == before;
        }
        let text = log
            .lines()
            .filter_map(|l| l.splitn(4, ' ').nth(3))
            .fold(String::new(), |t, l| t + l + "\n");
        context.cri.remove(&id).await?;
        Ok(Ended { status, log, text })
    }

    pub async fn end(self) -> anyhow::Result<()> {
        self.cri.stop_pod(&self.id).await?;
        self.cri.remove_pod(&self.id).await?;
        Ok(())
    }
}

pub struct Ended {
    pub status: cri::ContainerStatus,
    /// The log file as it is.
    pub log: String,
    /// What the container wrote, both streams, without the prefixes.
    pub text: String,
}

/// `assert_eq!` that gives an error instead of a panic, so that the case's pods are still swept.
#[macro_export]
macro_rules! expect {
    ($left:expr, $right:expr, $($what:tt)+) => {
        match (&$left, &$right) {
            (left, right) if left == right => {}
            (left, right) => anyhow::bail!("{}: {left:?}, expected {right:?}", format_args!($($what)+)),
        }
    };
}
