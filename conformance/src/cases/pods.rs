//! The life of a pod sandbox, and what its containers share.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{must_fail, namespaces, pod_config};
use crate::expect;

cases!["pods";
    life,
    stop_and_remove_are_idempotent => "a later release of the peer, as the specification, lets a pod that is gone be stopped",
    the_same_name_again,
    list_by_label_state_and_id,
    hostname_and_resolv_conf,
    sysctls,
    host_network,
    shared_pid_namespace => "the peer's pause has the sandbox image as its root, and /proc/1/root shows it",
    host_pid_and_ipc,
    shared_memory_is_the_pods,
    removal_takes_the_containers,
    no_container_in_a_stopped_pod,
];

async fn life(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "life").await?;
    let status = c.cri.pod_status(&pod.id).await?;
    expect!(status.state(), cri::PodSandboxState::SandboxReady, "state");
    expect!(status.metadata, pod.config.metadata, "metadata");
    expect!(status.labels, pod.config.labels, "labels");
    ensure!(
        status.created_at > 1_600_000_000_000_000_000,
        "created_at {} is not in nanoseconds",
        status.created_at
    );
    c.cri.stop_pod(&pod.id).await?;
    expect!(
        c.cri.pod_status(&pod.id).await?.state(),
        cri::PodSandboxState::SandboxNotready,
        "state when stopped"
    );
    c.cri.remove_pod(&pod.id).await?;
    must_fail(
        c.cri.pod_status(&pod.id).await,
        &[Code::NotFound],
        &[&pod.id[..12]],
    )?;
    Ok(())
}

async fn stop_and_remove_are_idempotent(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "twice").await?;
    let id = pod.id.clone();
    for _ in 0..2 {
        c.cri.stop_pod(&id).await?;
    }
    for _ in 0..2 {
        c.cri.remove_pod(&id).await?;
    }
    c.cri.stop_pod(&id).await?;
    Ok(())
}

async fn the_same_name_again(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "name").await?;
    let mut next = pod.config.clone();
    if let Some(metadata) = &mut next.metadata {
        metadata.attempt = 1;
    }
    let second = Pod::run_with(&c, next).await?;
    ensure!(second.id != pod.id, "another attempt is another pod");
    second.end().await?;
    let config = pod.config.clone();
    pod.end().await?;
    Pod::run_with(&c, config).await?.end().await
}

async fn list_by_label_state_and_id(c: Arc<Context>) -> anyhow::Result<()> {
    let (a, b) = (Pod::run(&c, "list-a").await?, Pod::run(&c, "list-b").await?);
    let by_label = cri::PodSandboxFilter {
        label_selector: HashMap::from([("app".to_owned(), "list-a".to_owned())]),
        ..Default::default()
    };
    let found: Vec<String> = c
        .cri
        .pods(Some(by_label))
        .await?
        .into_iter()
        .map(|p| p.id)
        .collect();
    expect!(found, vec![a.id.clone()], "by label");
    c.cri.stop_pod(&b.id).await?;
    let ready = cri::PodSandboxStateValue {
        state: cri::PodSandboxState::SandboxReady.into(),
    };
    let by_state = cri::PodSandboxFilter {
        state: Some(ready),
        ..Default::default()
    };
    let found: Vec<String> = c
        .cri
        .pods(Some(by_state))
        .await?
        .into_iter()
        .map(|p| p.id)
        .collect();
    expect!(found, vec![a.id.clone()], "by state");
    let by_id = cri::PodSandboxFilter {
        id: b.id.clone(),
        ..Default::default()
    };
    expect!(c.cri.pods(Some(by_id)).await?.len(), 1, "by id");
    a.end().await?;
    b.end().await
}

async fn hostname_and_resolv_conf(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("names", &c.logs());
    config.hostname = "chosen-name".to_owned();
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["192.0.2.53".to_owned(), "2001:db8::53".to_owned()],
        searches: vec!["a.example".to_owned(), "b.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = Pod::run_with(&c, config).await?;
    let id = pod.sleeper(&c).await?;
    expect!(
        c.cri.shell(&id, "hostname; cat /etc/hostname").await?,
        "chosen-name\nchosen-name",
        "hostname"
    );
    let resolv = c.cri.shell(&id, "cat /etc/resolv.conf").await?;
    for line in [
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "search a.example b.example",
        "options ndots:5",
    ] {
        ensure!(resolv.lines().any(|l| l == line), "no `{line}` in {resolv:?}");
    }
    pod.end().await
}

async fn sysctls(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("sysctls", &c.logs());
    if let Some(linux) = &mut config.linux {
        linux.sysctls = HashMap::from([
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ]);
    }
    let pod = Pod::run_with(&c, config).await?;
    let id = pod.sleeper(&c).await?;
    let seen = c
        .cri
        .shell(
            &id,
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
        )
        .await?;
    expect!(seen, "80\n1", "sysctls");
    pod.end().await
}

async fn host_network(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run_with(&c, host_network_config(&c, "host-network")).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = crate::cri::container_config("sleep", &image, &["/bin/sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(namespaces(cri::NamespaceMode::Node));
    }
    let id = pod.start(&config).await?;
    let inside = c.cri.shell(&id, "readlink /proc/self/ns/net").await?;
    let host = std::fs::read_link("/proc/self/ns/net")?
        .to_string_lossy()
        .into_owned();
    expect!(inside, host, "network namespace");
    pod.end().await
}

pub fn host_network_config(c: &Context, name: &str) -> cri::PodSandboxConfig {
    let mut config = pod_config(name, &c.logs());
    config.hostname = String::new();
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(namespaces(cri::NamespaceMode::Node));
    }
    config
}

async fn shared_pid_namespace(c: Arc<Context>) -> anyhow::Result<()> {
    let mut options = namespaces(cri::NamespaceMode::Pod);
    options.pid = cri::NamespaceMode::Pod.into();
    let mut config = pod_config("shared-pid", &c.logs());
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(options.clone());
    }
    let pod = Pod::run_with(&c, config).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut config = crate::cri::container_config(name, &image, &["/bin/sleep", "3600"]);
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.namespace_options = Some(options.clone());
        }
        ids.push(pod.start(&config).await?);
    }
    let sleeps = c.cri.shell(&ids[0], "ps | grep -c '[s]leep 3600'").await?;
    expect!(sleeps, "2", "processes of both containers");
    // Process 1 is the sandbox's: nothing of the host may be reached through it.
    let root = c
        .cri
        .exec(&ids[0], &["/bin/sh", "-c", "ls -A /proc/1/root/ | head -n 1"], 10)
        .await?;
    ensure!(
        root.stdout.is_empty(),
        "/proc/1/root shows {:?}",
        String::from_utf8_lossy(&root.stdout)
    );
    pod.end().await
}

async fn host_pid_and_ipc(c: Arc<Context>) -> anyhow::Result<()> {
    let options = cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Node.into(),
        ipc: cri::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut config = pod_config("host-pid", &c.logs());
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(options.clone());
    }
    let pod = Pod::run_with(&c, config).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = crate::cri::container_config("sleep", &image, &["/bin/sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(options);
    }
    let id = pod.start(&config).await?;
    for kind in ["pid", "ipc"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}"))?
            .to_string_lossy()
            .into_owned();
        expect!(
            c.cri
                .shell(&id, &format!("readlink /proc/self/ns/{kind}"))
                .await?,
            host,
            "{kind} namespace"
        );
    }
    pod.end().await
}

async fn shared_memory_is_the_pods(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "shm").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let one = pod
        .start(&crate::cri::container_config(
            "one",
            &image,
            &["/bin/sleep", "3600"],
        ))
        .await?;
    let two = pod
        .start(&crate::cri::container_config(
            "two",
            &image,
            &["/bin/sleep", "3600"],
        ))
        .await?;
    c.cri.shell(&one, "echo shared >/dev/shm/file").await?;
    expect!(
        c.cri.shell(&two, "cat /dev/shm/file").await?,
        "shared",
        "/dev/shm of the second container"
    );
    pod.end().await
}

async fn removal_takes_the_containers(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "cascade").await?;
    let id = pod.sleeper(&c).await?;
    pod.end().await?;
    must_fail(c.cri.status(&id).await, &[Code::NotFound], &[&id[..12]])?;
    Ok(())
}

async fn no_container_in_a_stopped_pod(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "stopped").await?;
    c.cri.stop_pod(&pod.id).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let config = crate::cri::container_config("late", &image, &["/bin/true"]);
    let late = c.cri.create(&pod.id, &config, &pod.config).await;
    must_fail(
        late,
        &[Code::FailedPrecondition, Code::Unknown, Code::NotFound],
        &[],
    )?;
    pod.end().await
}
