//! Requests that no runtime may take: each gets an error that names what is wrong, and leaves nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail, pod_config};

const REFUSED: &[Code] = &[
    Code::InvalidArgument,
    Code::NotFound,
    Code::Unknown,
    Code::Internal,
    Code::FailedPrecondition,
];

cases!["bad_input";
    unknown_handler,
    names_with_slash_nul_or_newline => "the specification leaves names to kubelet; the peer takes them",
    a_user_that_is_too_large,
    a_user_that_is_not_there,
    newline_in_an_environment_name => "the peer passes it on",
    missing_mount_source => "the peer makes a directory on the host where the source is missing",
    relative_paths => "the peer leaves them to runc",
    commands_that_do_not_exist,
    unknown_ids => "the specification: stopping or removing what is gone must not fail; in this release of the peer it does",
    missing_parts,
    bad_references,
    host_sysctls,
    unknown_capability => "the peer ignores what it does not know",
    log_path_that_leaves => "the peer joins the log path as it is",
    ten_thousand_filters,
];

/// A container with this configuration must be refused at Create or at Start, and leave nothing.
async fn refused(
    c: &Arc<Context>,
    name: &str,
    words: &[&str],
    edit: impl FnOnce(&mut cri::ContainerConfig),
) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(c, name).await?;
    let mut config = container_config("bad", &image, &["/bin/sleep", "3600"]);
    edit(&mut config);
    match c.cri.create(&pod.id, &config, &pod.config).await {
        Ok(id) => {
            must_fail(c.cri.start(&id).await, REFUSED, words)?;
            c.cri.remove(&id).await?;
        }
        created => drop(must_fail(created, REFUSED, words)?),
    }
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is still listed"
    );
    // The pod goes on serving.
    pod.sleeper(c).await?;
    pod.end().await
}

async fn unknown_handler(c: Arc<Context>) -> anyhow::Result<()> {
    let request = cri::RunPodSandboxRequest {
        config: Some(pod_config("handler", &c.logs())),
        runtime_handler: "no-such-handler".into(),
    };
    must_fail(
        c.cri.runtime.clone().run_pod_sandbox(request).await,
        REFUSED,
        &["no-such-handler"],
    )?;
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    Ok(())
}

async fn names_with_slash_nul_or_newline(c: Arc<Context>) -> anyhow::Result<()> {
    for bad in ["a/b", "a\0b", "a\nb", "", ".."] {
        let mut config = pod_config("names", &c.logs());
        if let Some(metadata) = &mut config.metadata {
            metadata.name = bad.to_owned();
        }
        must_fail(c.cri.run_pod(&config).await, &[Code::InvalidArgument], &["name"])?;
    }
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    Ok(())
}

async fn a_user_that_is_too_large(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "large-user", &["user"], |config| {
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.run_as_user = Some(cri::Int64Value { value: 1 << 31 });
        }
    })
    .await
}

async fn a_user_that_is_not_there(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "no-user", &["nobody-knows"], |config| {
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.run_as_username = "nobody-knows".into();
        }
    })
    .await
}

async fn newline_in_an_environment_name(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "env", &["env"], |config| {
        config.envs = vec![cri::KeyValue {
            key: "A\0B".into(),
            value: "x".into(),
        }];
    })
    .await?;
    refused(&c, "home", &["HOME"], |config| {
        config.envs = vec![cri::KeyValue {
            key: "HOME".into(),
            value: "/root\nx:0:0".into(),
        }];
    })
    .await
}

async fn missing_mount_source(c: Arc<Context>) -> anyhow::Result<()> {
    let missing = c.scratch.join("never-made");
    let shown = missing.to_string_lossy().into_owned();
    refused(&c, "source", &[&shown], |config| {
        config.mounts = vec![cri::Mount {
            host_path: shown.clone(),
            container_path: "/mnt".into(),
            ..Default::default()
        }];
    })
    .await?;
    ensure!(!missing.exists(), "the missing source was made on the host");
    Ok(())
}

async fn relative_paths(c: Arc<Context>) -> anyhow::Result<()> {
    let host = c.scratch.to_string_lossy().into_owned();
    refused(&c, "relative", &["container_path"], |config| {
        config.mounts = vec![cri::Mount {
            host_path: host,
            container_path: "".into(),
            ..Default::default()
        }];
    })
    .await?;
    refused(&c, "relative-cwd", &["working"], |config| {
        config.working_dir = "not/absolute".into();
    })
    .await
}

async fn commands_that_do_not_exist(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "command", &["/no/such/program"], |config| {
        config.command = vec!["/no/such/program".into()];
    })
    .await?;
    refused(&c, "directory", &["/etc"], |config| {
        config.command = vec!["/etc".into()];
    })
    .await
}

async fn unknown_ids(c: Arc<Context>) -> anyhow::Result<()> {
    let id = "0".repeat(64);
    must_fail(c.cri.status(&id).await, &[Code::NotFound], &[&id])?;
    must_fail(c.cri.start(&id).await, &[Code::NotFound], &[&id])?;
    must_fail(c.cri.pod_status(&id).await, &[Code::NotFound], &[&id])?;
    must_fail(
        c.cri.exec(&id, &["/bin/true"], 1).await,
        &[Code::NotFound],
        &[&id],
    )?;
    // What is gone is stopped and removed: these must not fail.
    c.cri.stop_pod(&id).await?;
    c.cri.remove_pod(&id).await?;
    c.cri.remove(&id).await?;
    Ok(())
}

async fn missing_parts(c: Arc<Context>) -> anyhow::Result<()> {
    let request = cri::RunPodSandboxRequest {
        config: None,
        runtime_handler: String::new(),
    };
    ensure!(
        c.cri.runtime.clone().run_pod_sandbox(request).await.is_err(),
        "a pod without a configuration"
    );
    let mut config = pod_config("parts", &c.logs());
    config.metadata = None;
    ensure!(c.cri.run_pod(&config).await.is_err(), "a pod without metadata");
    let pod = Pod::run(&c, "parts").await?;
    let mut container = container_config("parts", "", &[]);
    container.image = None;
    ensure!(
        c.cri.create(&pod.id, &container, &pod.config).await.is_err(),
        "a container without an image"
    );
    pod.end().await
}

async fn bad_references(c: Arc<Context>) -> anyhow::Result<()> {
    for bad in ["", "UPPER/case:1", "a b", "host/name@sha256:short", "../escape"] {
        let result = c.cri.pull(bad).await;
        ensure!(result.is_err(), "the reference {bad:?} was pulled");
    }
    Ok(())
}

async fn host_sysctls(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("sysctl", &c.logs());
    if let Some(linux) = &mut config.linux {
        linux.sysctls = [("vm.swappiness".to_owned(), "1".to_owned())].into();
    }
    std::fs::create_dir_all(&config.log_directory)?;
    must_fail(c.cri.run_pod(&config).await, REFUSED, &["vm.swappiness"])?;
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    Ok(())
}

async fn unknown_capability(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "capability", &["FLY"], |config| {
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.capabilities = Some(cri::Capability {
                add_capabilities: vec!["FLY".into()],
                ..Default::default()
            });
        }
    })
    .await
}

async fn log_path_that_leaves(c: Arc<Context>) -> anyhow::Result<()> {
    refused(&c, "log-path", &["log_path"], |config| {
        config.log_path = "../../escaped.log".into();
    })
    .await
}

async fn ten_thousand_filters(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "filters").await?;
    let id = pod.sleeper(&c).await?;
    let many: HashMap<String, String> = (0..10_000)
        .map(|n| (format!("label-{n}"), "x".repeat(50)))
        .collect();
    let begin = Instant::now();
    let filter = cri::ContainerFilter {
        label_selector: many.clone(),
        ..Default::default()
    };
    ensure!(
        c.cri.containers(Some(filter)).await?.is_empty(),
        "a container has ten thousand labels"
    );
    let filter = cri::PodSandboxFilter {
        label_selector: many,
        ..Default::default()
    };
    ensure!(
        c.cri.pods(Some(filter)).await?.is_empty(),
        "a pod has ten thousand labels"
    );
    ensure!(
        begin.elapsed() < Duration::from_secs(5),
        "two lists took {:?}",
        begin.elapsed()
    );
    // Ten thousand lists, each with a filter of its own; one in a hundred finds the container.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (cri, id) = (c.cri.clone(), id.clone());
        tasks.spawn(async move {
            let mut found = 0;
            for round in 0..500 {
                let filter = cri::ContainerFilter {
                    id: if round % 100 == 0 {
                        id.clone()
                    } else {
                        format!("{n:032x}{round:032x}")
                    },
                    ..Default::default()
                };
                found += cri.containers(Some(filter)).await?.len();
            }
            anyhow::Ok(found)
        });
    }
    let mut found = 0;
    while let Some(done) = tasks.join_next().await {
        found += done??;
    }
    ensure!(found == 100, "{found} of 100 filters found the container");
    // More than a message may hold is refused, and the server goes on.
    let filter = cri::ContainerFilter {
        label_selector: (0..400_000)
            .map(|n| (format!("label-{n}"), "x".repeat(50)))
            .collect(),
        ..Default::default()
    };
    ensure!(
        c.cri.containers(Some(filter)).await.is_err(),
        "a request of 28 MB was read"
    );
    pod.end().await
}
