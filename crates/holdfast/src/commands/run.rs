//! `holdfast run`: image, pod, container, start; what fails half-way is taken back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use holdfast_cri_api::v1;

use super::{pull, run_spec};
use crate::args::{Format, PullWhen, Run};
use crate::client::{Client, told};
use crate::{find, output};

pub async fn run(mut client: Client, format: Format, options: Run) -> Result<()> {
    let mut timings = Timings::default();
    let (pod_config, existing) = match &options.pod {
        Some(text) => {
            let pod = find::pod(&mut client, text).await?;
            (config_of(&mut client, &pod).await?, Some(pod.id))
        }
        None => (run_spec::pod(&options)?, None),
    };
    let container_config = run_spec::container(&options, &pod_config)?;
    let image = container_config.image.clone().unwrap_or_default();
    ensure_image(&mut client, &image, &options, &mut timings).await?;

    let pod_id = match &existing {
        Some(id) => id.clone(),
        None => {
            std::fs::create_dir_all(&pod_config.log_directory)
                .with_context(|| format!("cannot make the log directory {}", pod_config.log_directory))?;
            let request = client.request(v1::RunPodSandboxRequest {
                config: Some(pod_config.clone()),
                runtime_handler: options.runtime.clone(),
            });
            let reply = timings.time("pod", client.runtime.run_pod_sandbox(request)).await;
            reply
                .map_err(told)
                .context("cannot start the pod")?
                .into_inner()
                .pod_sandbox_id
        }
    };
    let container = start(&mut client, &pod_id, container_config, pod_config, &mut timings).await;
    let container_id = match container {
        Ok(id) => id,
        Err(error) => {
            if existing.is_none() {
                take_back(&mut client, &pod_id).await;
            }
            return Err(error);
        }
    };
    report(format, &options, &pod_id, &container_id, &timings)
}

async fn start(
    client: &mut Client,
    pod: &str,
    config: v1::ContainerConfig,
    sandbox_config: v1::PodSandboxConfig,
    timings: &mut Timings,
) -> Result<String> {
    let request = client.request(v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    });
    let reply = timings
        .time("create", client.runtime.create_container(request))
        .await;
    let container_id = reply
        .map_err(told)
        .context("cannot create the container")?
        .into_inner()
        .container_id;
    let request = client.request(v1::StartContainerRequest {
        container_id: container_id.clone(),
    });
    let reply = timings
        .time("start", client.runtime.start_container(request))
        .await;
    if let Err(status) = reply {
        let request = client.request(v1::RemoveContainerRequest {
            container_id: container_id.clone(),
        });
        if let Err(left) = client.runtime.remove_container(request).await {
            eprintln!(
                "holdfast: container {container_id} is left behind: {}",
                told(left)
            );
        }
        return Err(told(status)).context("cannot start the container");
    }
    Ok(container_id)
}

async fn take_back(client: &mut Client, pod: &str) {
    let request = client.request(v1::StopPodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    });
    let stopped = client.runtime.stop_pod_sandbox(request).await.map(drop);
    let request = client.request(v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    });
    let removed = client.runtime.remove_pod_sandbox(request).await.map(drop);
    if let Err(status) = stopped.and(removed) {
        eprintln!("holdfast: pod {pod} is left behind: {}", told(status));
    }
}

async fn ensure_image(
    client: &mut Client,
    image: &v1::ImageSpec,
    options: &Run,
    timings: &mut Timings,
) -> Result<()> {
    if options.pull != PullWhen::Always {
        let request = client.request(v1::ImageStatusRequest {
            image: Some(image.clone()),
            verbose: false,
        });
        let reply = client.image.image_status(request).await.map_err(told)?;
        if reply.into_inner().image.is_some() {
            return Ok(());
        }
        if options.pull == PullWhen::Never {
            bail!("image {:?} is not here, and --pull is never", image.image);
        }
    }
    let request = v1::PullImageRequest {
        image: Some(image.clone()),
        ..Default::default()
    };
    timings
        .time("pull", pull::pull(client, request, false))
        .await
        .with_context(|| format!("cannot pull {:?}", image.image))?;
    Ok(())
}

/// What CreateContainer wants to be told again of a pod that is there: its metadata, logs and namespaces.
async fn config_of(client: &mut Client, pod: &v1::PodSandbox) -> Result<v1::PodSandboxConfig> {
    let request = client.request(v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    });
    let reply = client
        .runtime
        .pod_sandbox_status(request)
        .await
        .map_err(told)?
        .into_inner();
    let info = output::info(&reply.info);
    let logs = info
        .get("info")
        .and_then(|info| info.pointer("/config/log_directory"))
        .and_then(|text| text.as_str());
    let namespaces = reply
        .status
        .and_then(|s| s.linux)
        .and_then(|l| l.namespaces)
        .and_then(|n| n.options);
    Ok(v1::PodSandboxConfig {
        metadata: pod.metadata.clone(),
        log_directory: logs.unwrap_or_default().to_owned(),
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: namespaces,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn report(format: Format, options: &Run, pod: &str, container: &str, timings: &Timings) -> Result<()> {
    if format == Format::Json {
        let steps: serde_json::Map<_, _> = timings
            .steps
            .iter()
            .map(|(name, time)| ((*name).to_owned(), (time.as_secs_f64() * 1000.0).into()))
            .collect();
        return output::print(&serde_json::json!({
            "podSandboxId": pod, "containerId": container, "milliseconds": steps,
        }));
    }
    output::line(container)?;
    if options.timings {
        for (name, time) in &timings.steps {
            eprintln!("{name:<7} {}", output::duration(*time));
        }
    }
    Ok(())
}

/// How long each step took, in order.
#[derive(Debug, Default)]
struct Timings {
    steps: Vec<(&'static str, Duration)>,
}

impl Timings {
    async fn time<F: Future>(&mut self, name: &'static str, work: F) -> F::Output {
        let start = Instant::now();
        let output = work.await;
        self.steps.push((name, start.elapsed()));
        output
    }
}
