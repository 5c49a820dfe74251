//! The life of a container, and how image and pod configuration make its process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_cri::v1 as cri;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail};
use crate::expect;

cases!["containers";
    life,
    image_configuration_is_merged,
    users_and_groups,
    supplemental_groups_policy => "Debian's release of the peer is older than this field",
    working_directory_is_made,
    exit_codes,
    out_of_memory,
    stop_signal_and_grace,
    stop_and_remove_are_idempotent,
    mounts,
    mount_propagation,
    read_only_root,
    limits,
    list_filters,
    start_twice,
    sixty_four_at_once,
];

async fn life(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "container-life").await?;
    let mut config = container_config("life", &image, &["/bin/sleep", "3600"]);
    config.labels = HashMap::from([("l".to_owned(), "1".to_owned())]);
    config.annotations = HashMap::from([("a".to_owned(), "2".to_owned())]);
    let id = c.cri.create(&pod.id, &config, &pod.config).await?;
    let created = c.cri.status(&id).await?;
    expect!(
        created.state(),
        cri::ContainerState::ContainerCreated,
        "state when created"
    );
    expect!(
        (&created.labels, &created.annotations),
        (&config.labels, &config.annotations),
        "labels and annotations"
    );
    expect!(created.started_at, 0, "started_at before the start");
    c.cri.start(&id).await?;
    let running = c.cri.status(&id).await?;
    expect!(
        running.state(),
        cri::ContainerState::ContainerRunning,
        "state when running"
    );
    ensure!(
        running.started_at >= running.created_at && running.finished_at == 0,
        "{running:?}"
    );
    ensure!(
        running.log_path.ends_with("life.log"),
        "log path {}",
        running.log_path
    );
    c.cri.stop(&id, 0).await?;
    let stopped = c.cri.status(&id).await?;
    expect!(
        stopped.state(),
        cri::ContainerState::ContainerExited,
        "state when stopped"
    );
    expect!(stopped.exit_code, 137, "exit code of a kill");
    ensure!(stopped.finished_at >= stopped.started_at, "{stopped:?}");
    c.cri.remove(&id).await?;
    must_fail(c.cri.status(&id).await, &[Code::NotFound], &[&id[..12]])?;
    pod.end().await
}

async fn image_configuration_is_merged(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("configured")).await?;
    let pod = Pod::run(&c, "merge").await?;
    let plain = pod.once(&c, &container_config("plain", &image, &[])).await?;
    expect!(plain.text, "entry cmd\n", "entrypoint and cmd of the image");
    let mut args = container_config("args", &image, &[]);
    args.args = vec!["mine".to_owned()];
    expect!(
        pod.once(&c, &args).await?.text,
        "entry mine\n",
        "args replace cmd"
    );
    let command = container_config("command", &image, &["/bin/echo", "alone"]);
    expect!(
        pod.once(&c, &command).await?.text,
        "alone\n",
        "command replaces entrypoint and cmd"
    );
    let mut env = container_config(
        "env",
        &image,
        &[
            "/bin/sh",
            "-c",
            "echo $FROM_IMAGE $OVER $NEW; pwd; id -u; echo $HOME",
        ],
    );
    env.envs = vec![
        cri::KeyValue {
            key: "OVER".to_owned(),
            value: "pod".to_owned(),
        },
        cri::KeyValue {
            key: "NEW".to_owned(),
            value: "1".to_owned(),
        },
    ];
    expect!(
        pod.once(&c, &env).await?.text,
        "yes pod 1\n/home/work\n1000\n/home\n",
        "environment, directory, user, HOME"
    );
    pod.end().await
}

async fn users_and_groups(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "users").await?;
    let script = "id -u; id -g; id -G";
    let run = async |name: &str, edit: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| {
        let mut config = container_config(name, &image, &["/bin/sh", "-c", script]);
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            edit(security);
        }
        anyhow::Ok(pod.once(&c, &config).await?.text)
    };
    let by_id = run("by-id", &|s| {
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
    })
    .await?;
    expect!(
        by_id,
        "1000\n1000\n1000 2000\n",
        "a number takes its groups from the image"
    );
    let by_name = run("by-name", &|s| s.run_as_username = "www-data".to_owned()).await?;
    expect!(by_name, "33\n33\n33\n", "a name is looked up");
    let merged = run("merged", &|s| {
        s.run_as_user = Some(cri::Int64Value { value: 1000 });
        s.run_as_group = Some(cri::Int64Value { value: 5 });
        s.supplemental_groups = vec![7];
    })
    .await?;
    let groups: Vec<&str> = merged.lines().nth(2).unwrap_or_default().split(' ').collect();
    ensure!(
        merged.starts_with("1000\n5\n") && ["5", "7", "2000"].iter().all(|g| groups.contains(g)),
        "{merged}"
    );
    pod.end().await
}

async fn supplemental_groups_policy(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "groups").await?;
    let mut config = container_config("strict", &image, &["/bin/sh", "-c", "id -u; id -g; id -G"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.run_as_group = Some(cri::Int64Value { value: 5 });
        security.supplemental_groups = vec![7];
        security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
    }
    expect!(
        pod.once(&c, &config).await?.text,
        "1000\n5\n5 7\n",
        "Strict takes no group of the image"
    );
    pod.end().await
}

async fn working_directory_is_made(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "cwd").await?;
    let mut config = container_config("cwd", &image, &["/bin/pwd"]);
    config.working_dir = "/not/yet/there".to_owned();
    expect!(
        pod.once(&c, &config).await?.text,
        "/not/yet/there\n",
        "working directory"
    );
    pod.end().await
}

async fn exit_codes(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "exits").await?;
    for (name, script, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("aborted", "sh -c 'kill -6 $$'; exit $?", 134, "Error"),
    ] {
        let ended = pod
            .once(&c, &container_config(name, &image, &["/bin/sh", "-c", script]))
            .await?;
        expect!(
            (ended.status.exit_code, ended.status.reason.as_str()),
            (code, reason),
            "the end of {name}"
        );
    }
    pod.end().await
}

async fn out_of_memory(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "oom").await?;
    let mut config = container_config(
        "oom",
        &image,
        &["/bin/sh", "-c", "x=$(yes x | head -c 300000000); echo $x | wc -c"],
    );
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            ..Default::default()
        });
    }
    // The shell itself grows, and process 1 is what the kernel kills.
    let ended = pod.once(&c, &config).await?;
    expect!(
        (ended.status.exit_code, ended.status.reason.as_str()),
        (137, "OOMKilled"),
        "the end of a container over its limit"
    );
    pod.end().await
}

async fn stop_signal_and_grace(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "stops").await?;
    let image = c.cri.pull(c.image("configured")).await?;
    let script = "trap 'exit 42' USR1; while :; do sleep 0.05; done";
    let id = pod
        .start(&container_config("usr1", &image, &["/bin/sh", "-c", script]))
        .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    c.cri.stop(&id, 10).await?;
    expect!(c.cri.status(&id).await?.exit_code, 42, "the image's stop signal");
    let image = c.cri.pull(c.image("busybox")).await?;
    let deaf = pod
        .start(&container_config(
            "deaf",
            &image,
            &["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
        ))
        .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    c.cri.stop(&deaf, 1).await?;
    ensure!(
        (1..5).contains(&start.elapsed().as_secs()),
        "a grace of one second took {:?}",
        start.elapsed()
    );
    expect!(
        c.cri.status(&deaf).await?.exit_code,
        137,
        "killed after the grace"
    );
    pod.end().await
}

async fn stop_and_remove_are_idempotent(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "container-twice").await?;
    let id = pod.sleeper(&c).await?;
    for _ in 0..2 {
        c.cri.stop(&id, 0).await?;
    }
    for _ in 0..2 {
        c.cri.remove(&id).await?;
    }
    let id = pod.sleeper(&c).await?;
    c.cri.remove(&id).await?;
    pod.end().await
}

fn mount(host: &std::path::Path, inside: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.to_owned(),
        readonly,
        ..Default::default()
    }
}

async fn mounts(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let dir = c.scratch.join("mounts");
    std::fs::create_dir_all(dir.join("deep"))?;
    std::fs::write(dir.join("file"), "from the host\n")?;
    let pod = Pod::run(&c, "mounts").await?;
    let mut config = container_config("mounts", &image, &["/bin/sleep", "3600"]);
    config.mounts = vec![
        mount(&dir, "/new/dir", false),
        mount(&dir.join("file"), "/etc/one", true),
        mount(&dir, "/ro", true),
    ];
    let id = pod.start(&config).await?;
    expect!(
        c.cri
            .shell(&id, "cat /new/dir/file /etc/one; echo x >/new/dir/deep/made")
            .await?,
        "from the host\nfrom the host",
        "mounts"
    );
    expect!(
        std::fs::read_to_string(dir.join("deep/made"))?,
        "x\n",
        "a write through the mount"
    );
    for path in ["/ro/made", "/etc/one"] {
        let write = c
            .cri
            .exec(&id, &["/bin/sh", "-c", &format!("echo x >{path}")], 10)
            .await?;
        ensure!(write.exit_code != 0, "{path} is read-only and was written");
    }
    expect!(c.cri.status(&id).await?.mounts.len(), 3, "mounts in the status");
    pod.end().await
}

async fn mount_propagation(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let dir = c.scratch.join("propagation");
    std::fs::create_dir_all(dir.join("host"))?;
    std::fs::create_dir_all(dir.join("container"))?;
    let run = |args: &[&str]| -> anyhow::Result<()> {
        let status = std::process::Command::new("mount").args(args).status()?;
        ensure!(status.success(), "mount {args:?}: {status}");
        Ok(())
    };
    let shown = dir.to_string_lossy().into_owned();
    run(&["-t", "tmpfs", "tmpfs", &shown])?;
    let result = propagate(&c, &image, &dir, &run).await;
    std::process::Command::new("umount")
        .args(["-R", "-l", &shown])
        .status()?;
    result
}

async fn propagate(
    c: &Arc<Context>,
    image: &str,
    dir: &std::path::Path,
    run: &impl Fn(&[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    run(&["--make-shared", &dir.to_string_lossy()])?;
    std::fs::create_dir_all(dir.join("host"))?;
    std::fs::create_dir_all(dir.join("container"))?;
    let mut sandbox = crate::cri::pod_config("propagation", &c.logs());
    if let Some(security) = sandbox.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.privileged = true;
    }
    let pod = Pod::run_with(c, sandbox).await?;
    let mut config = container_config("propagation", image, &["/bin/sleep", "3600"]);
    let mut both = mount(dir, "/both", false);
    both.propagation = cri::MountPropagation::PropagationBidirectional.into();
    let mut inward = mount(dir, "/inward", false);
    inward.propagation = cri::MountPropagation::PropagationHostToContainer.into();
    config.mounts = vec![both, inward, mount(dir, "/private", false)];
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.privileged = true;
    }
    let id = pod.start(&config).await?;
    run(&["-t", "tmpfs", "late", &dir.join("host").to_string_lossy()])?;
    std::fs::write(dir.join("host/late"), "")?;
    expect!(
        c.cri
            .shell(&id, "ls /both/host /inward/host /private/host")
            .await?,
        "/both/host:\nlate\n\n/inward/host:\nlate\n\n/private/host:",
        "a mount that the host made later"
    );
    c.cri
        .shell(
            &id,
            "mount -t tmpfs own /both/container && touch /both/container/own",
        )
        .await?;
    ensure!(
        dir.join("container/own").exists(),
        "a mount of the container did not reach the host"
    );
    c.cri.shell(&id, "umount /both/container").await?;
    pod.end().await
}

async fn read_only_root(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "read-only").await?;
    let mut config = container_config("ro", &image, &["/bin/sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.readonly_rootfs = true;
    }
    let id = pod.start(&config).await?;
    let write = c.cri.exec(&id, &["/bin/touch", "/made"], 10).await?;
    ensure!(write.exit_code != 0, "the root is read-only and was written");
    c.cri.shell(&id, "touch /dev/shm/made").await?;
    pod.end().await
}

async fn limits(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "limits").await?;
    let mut config = container_config("limits", &image, &["/bin/sleep", "3600"]);
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 500,
            ..Default::default()
        });
    }
    let id = pod.start(&config).await?;
    expect!(
        c.cri.shell(&id, "cat /proc/1/oom_score_adj").await?,
        "500",
        "oom_score_adj"
    );
    let memory = c
        .cri
        .shell(
            &id,
            "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        )
        .await?;
    expect!(
        memory,
        (64 << 20).to_string(),
        "the memory limit as the container sees it"
    );
    let cpu = c
        .cri
        .shell(
            &id,
            "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        )
        .await?;
    ensure!(
        cpu.starts_with("50000"),
        "the CPU quota as the container sees it: {cpu}"
    );
    let resources = c.cri.status(&id).await?.resources.and_then(|r| r.linux);
    expect!(
        resources.map(|r| r.memory_limit_in_bytes),
        Some(64 << 20),
        "resources in the status"
    );
    pod.end().await
}

async fn list_filters(c: Arc<Context>) -> anyhow::Result<()> {
    let (a, b) = (Pod::run(&c, "filter-a").await?, Pod::run(&c, "filter-b").await?);
    let (one, two) = (a.sleeper(&c).await?, b.sleeper(&c).await?);
    let of_a = cri::ContainerFilter {
        pod_sandbox_id: a.id.clone(),
        ..Default::default()
    };
    let found: Vec<String> = c
        .cri
        .containers(Some(of_a))
        .await?
        .into_iter()
        .map(|x| x.id)
        .collect();
    expect!(found, vec![one.clone()], "by pod");
    c.cri.stop(&two, 0).await?;
    let running = cri::ContainerStateValue {
        state: cri::ContainerState::ContainerRunning.into(),
    };
    let by_state = cri::ContainerFilter {
        state: Some(running),
        ..Default::default()
    };
    let found: Vec<String> = c
        .cri
        .containers(Some(by_state))
        .await?
        .into_iter()
        .map(|x| x.id)
        .collect();
    expect!(found, vec![one], "by state");
    a.end().await?;
    b.end().await
}

async fn start_twice(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "start-twice").await?;
    let id = pod.sleeper(&c).await?;
    ensure!(
        c.cri.start(&id).await.is_err(),
        "a running container was started again"
    );
    c.cri.stop(&id, 0).await?;
    ensure!(
        c.cri.start(&id).await.is_err(),
        "an exited container was started again"
    );
    pod.end().await
}

async fn sixty_four_at_once(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Arc::new(Pod::run(&c, "many").await?);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (pod, image) = (Arc::clone(&pod), image.clone());
        tasks.spawn(async move {
            pod.start(&container_config(
                &format!("many-{n}"),
                &image,
                &["/bin/sleep", "3600"],
            ))
            .await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    expect!(c.cri.containers(None).await?.len(), 64, "containers");
    c.cri.stop_pod(&pod.id).await?;
    c.cri.remove_pod(&pod.id).await?;
    Ok(())
}
