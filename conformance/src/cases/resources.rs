//! Limits of what runs are changed: in the cgroup, in the status, whole or not at all, and still there after the server
//! was killed in the middle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::survival::pid;
use super::{Pod, cases};
use crate::Context;
use crate::cri::{Cri, container_config, must_fail, pod_config};
use crate::expect;

cases!["resources";
    each_of_them_is_updated,
    before_the_start,
    what_is_left_out_stays => "the peer's status shows zero where its update said nothing",
    oom_score => "the peer leaves the processes' oom_score_adj as it is",
    whole_or_not_at_all => "the peer writes file by file, and below what is in use version 2 kills",
    only_what_can_be_updated => "the peer answers Unknown",
    server_is_killed_in_the_middle => "the peer has no record of an update under way: the cgroup can be ahead of the status",
    of_the_pod => "the peer has no such call, or does nothing in it",
    a_mebibyte => "runc's own start is charged to the container",
];

const MIB: i64 = 1 << 20;

/// The directory of a process's cgroup that has a controller's files, and whether it is version 2's.
fn group(pid: i32, controller: &str) -> anyhow::Result<(PathBuf, bool)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let lines = || {
        text.lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
    };
    if let Some((_, path)) = lines().find(|(names, _)| names.split(',').any(|name| name == controller)) {
        return Ok((PathBuf::from(format!("/sys/fs/cgroup/{controller}{path}")), false));
    }
    let (_, path) = lines().find(|(names, _)| names.is_empty()).context("no cgroup")?;
    let alone = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let base = if alone {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/unified"
    };
    Ok((PathBuf::from(format!("{base}{path}")), true))
}

fn read(pid: i32, above: usize, v1: &str, v2: &str) -> anyhow::Result<String> {
    let controller = v1.split('.').next().unwrap_or_default();
    let (mut dir, unified) = group(pid, controller)?;
    for _ in 0..above {
        dir.pop();
    }
    let file = dir.join(if unified { v2 } else { v1 });
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Memory limit, quota and shares (or weight) of a process's cgroup, or of one above it.
fn limits(pid: i32, above: usize) -> anyhow::Result<[String; 3]> {
    let memory = read(pid, above, "memory.limit_in_bytes", "memory.max")?;
    let quota = read(pid, above, "cpu.cfs_quota_us", "cpu.max")?;
    let shares = read(pid, above, "cpu.shares", "cpu.weight")?;
    let quota = quota.split(' ').next().unwrap_or_default().to_owned();
    Ok([memory, quota, shares])
}

async fn update(cri: &Cri, id: &str, linux: cri::LinuxContainerResources) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    cri.runtime
        .clone()
        .update_container_resources(request)
        .await
        .map(drop)
}

async fn shown(c: &Context, id: &str) -> anyhow::Result<cri::LinuxContainerResources> {
    let resources = c.cri.status(id).await?.resources;
    resources
        .and_then(|resources| resources.linux)
        .context("the status has no resources")
}

/// A sleeper with limits.
async fn limited(c: &Context, pod: &Pod, script: &str) -> anyhow::Result<String> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("limited", &image, &["/bin/sh", "-c", script]);
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 64 * MIB,
            oom_score_adj: 100,
            ..Default::default()
        });
    }
    Ok(c.cri.create(&pod.id, &config, &pod.config).await?)
}

const SLEEP: &str = "sleep 3600 & wait";

async fn each_of_them_is_updated(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update").await?;
    let id = limited(&c, &pod, SLEEP).await?;
    c.cri.start(&id).await?;
    let first = pid(&c, &id).await?;
    let shares = limits(first, 0)?[2].clone();
    for memory in [96 * MIB, 32 * MIB, 256 * MIB] {
        let wanted = cri::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        update(&c.cri, &id, wanted).await?;
        expect!(limits(first, 0)?[0], memory.to_string(), "the memory limit");
        expect!(
            shown(&c, &id).await?.memory_limit_in_bytes,
            memory,
            "the memory limit in the status"
        );
    }
    for (quota, period) in [(20_000, 100_000), (90_000, 50_000)] {
        let wanted = cri::LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: period,
            ..Default::default()
        };
        update(&c.cri, &id, wanted).await?;
        expect!(limits(first, 0)?[1], quota.to_string(), "the quota");
        let status = shown(&c, &id).await?;
        expect!(
            (status.cpu_quota, status.cpu_period),
            (quota, period),
            "the quota in the status"
        );
    }
    let wanted = cri::LinuxContainerResources {
        cpu_shares: 4096,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    update(&c.cri, &id, wanted).await?;
    ensure!(limits(first, 0)?[2] != shares, "the shares are as they were");
    expect!(
        read(first, 0, "cpuset.cpus", "cpuset.cpus")?,
        "0",
        "the processors"
    );
    expect!(
        shown(&c, &id).await?.cpuset_cpus,
        "0",
        "the processors in the status"
    );
    expect!(
        c.cri.shell(&id, "echo fine").await?,
        "fine",
        "what an exec says afterwards"
    );
    pod.end().await
}

async fn before_the_start(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update-created").await?;
    let id = limited(&c, &pod, SLEEP).await?;
    let wanted = cri::LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        ..Default::default()
    };
    update(&c.cri, &id, wanted).await?;
    c.cri.start(&id).await?;
    let first = pid(&c, &id).await?;
    expect!(
        limits(first, 0)?[0],
        (128 * MIB).to_string(),
        "the memory limit after the start"
    );
    expect!(
        shown(&c, &id).await?.memory_limit_in_bytes,
        128 * MIB,
        "the memory limit in the status"
    );
    pod.end().await
}

async fn what_is_left_out_stays(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update-one").await?;
    let id = limited(&c, &pod, SLEEP).await?;
    c.cri.start(&id).await?;
    let first = pid(&c, &id).await?;
    let before = limits(first, 0)?;
    let wanted = cri::LinuxContainerResources {
        cpu_period: 50_000,
        ..Default::default()
    };
    update(&c.cri, &id, wanted).await?;
    expect!(
        limits(first, 0)?,
        before,
        "limits after an update of the period alone"
    );
    let status = shown(&c, &id).await?;
    expect!(
        (
            status.cpu_period,
            status.cpu_quota,
            status.cpu_shares,
            status.memory_limit_in_bytes,
            status.oom_score_adj
        ),
        (50_000, 50_000, 1024, 64 * MIB, 100),
        "the status"
    );
    pod.end().await
}

fn score(pid: i32) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
        .trim()
        .to_owned())
}

async fn oom_score(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update-score").await?;
    let id = limited(&c, &pod, SLEEP).await?;
    c.cri.start(&id).await?;
    let first = pid(&c, &id).await?;
    let wanted = cri::LinuxContainerResources {
        oom_score_adj: 321,
        ..Default::default()
    };
    update(&c.cri, &id, wanted).await?;
    expect!(score(first)?, "321", "the score of the first process");
    let child = c
        .cri
        .shell(&id, "cat /proc/$(pidof sleep | cut -d' ' -f1)/oom_score_adj")
        .await?;
    expect!(child, "321", "the score of its child");
    expect!(
        c.cri.shell(&id, "cat /proc/self/oom_score_adj").await?,
        "321",
        "the score of a later exec"
    );
    expect!(
        shown(&c, &id).await?.oom_score_adj,
        321,
        "the score in the status"
    );
    pod.end().await
}

async fn whole_or_not_at_all(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update-whole").await?;
    let hold = "x=$(head -c 25165824 /dev/zero | tr '\\0' x); echo held; sleep 3600 & wait";
    let id = limited(&c, &pod, hold).await?;
    c.cri.start(&id).await?;
    let log = Path::new(&pod.config.log_directory).join("limited.log");
    let held = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("held"));
    super::survival::until("the memory is held", Duration::from_secs(60), held).await?;
    let first = pid(&c, &id).await?;
    let before = (limits(first, 0)?, score(first)?, shown(&c, &id).await?);
    let wanted = cri::LinuxContainerResources {
        cpu_quota: 20_000,
        cpu_shares: 77,
        memory_limit_in_bytes: 4 * MIB,
        oom_score_adj: 400,
        ..Default::default()
    };
    let error = update(&c.cri, &id, wanted).await;
    must_fail(
        error,
        &[Code::FailedPrecondition],
        &["linux.memory_limit_in_bytes"],
    )?;
    let after = (limits(first, 0)?, score(first)?, shown(&c, &id).await?);
    expect!(
        after,
        before,
        "limits, score and status after an update that failed"
    );
    expect!(
        c.cri.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning,
        "the container"
    );
    pod.end().await
}

async fn only_what_can_be_updated(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "update-refused").await?;
    let id = limited(&c, &pod, "exit 0").await?;
    let with = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut wanted = cri::LinuxContainerResources::default();
        change(&mut wanted);
        wanted
    };
    for (wanted, word) in [
        (with(|it| it.cpu_quota = -7), "cpu_quota"),
        (with(|it| it.memory_limit_in_bytes = -7), "memory_limit_in_bytes"),
        (
            with(|it| it.memory_swap_limit_in_bytes = MIB),
            "memory_swap_limit_in_bytes",
        ),
        (with(|it| it.cpuset_cpus = "x".into()), "cpuset_cpus"),
        (with(|it| it.oom_score_adj = 2000), "oom_score_adj"),
        (
            with(|it| it.unified = [("../x.y".to_owned(), "1".to_owned())].into()),
            "unified",
        ),
        (
            with(|it| it.unified = [("cgroup.procs".to_owned(), "1".to_owned())].into()),
            "cgroup.procs",
        ),
    ] {
        must_fail(
            update(&c.cri, &id, wanted).await,
            &[Code::InvalidArgument],
            &[word],
        )?;
    }
    let some = || with(|it| it.cpu_shares = 512);
    must_fail(
        update(&c.cri, &"0".repeat(64), some()).await,
        &[Code::NotFound],
        &["0000"],
    )?;
    let nothing = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    let answer = c.cri.runtime.clone().update_container_resources(nothing).await;
    must_fail(answer, &[Code::InvalidArgument], &["linux"])?;
    c.cri.start(&id).await?;
    c.cri.exited(&id, Duration::from_secs(10)).await?;
    must_fail(
        update(&c.cri, &id, some()).await,
        &[Code::FailedPrecondition],
        &["exited"],
    )?;
    pod.end().await
}

/// The one of two sets of limits that belong together.
fn set(which: bool) -> cri::LinuxContainerResources {
    let (memory, quota, shares) = if which {
        (96, 30_000, 512)
    } else {
        (192, 70_000, 2048)
    };
    cri::LinuxContainerResources {
        memory_limit_in_bytes: memory * MIB,
        cpu_quota: quota,
        cpu_shares: shares,
        ..Default::default()
    }
}

async fn server_is_killed_in_the_middle(c: Arc<Context>) -> anyhow::Result<()> {
    let server = c.server()?;
    let pod = Pod::run(&c, "update-killed").await?;
    let id = limited(&c, &pod, SLEEP).await?;
    c.cri.start(&id).await?;
    let first = pid(&c, &id).await?;
    // What each set looks like.
    let mut known = Vec::new();
    for which in [true, false] {
        update(&c.cri, &id, set(which)).await?;
        known.push((set(which).memory_limit_in_bytes, limits(first, 0)?));
    }
    for round in 0..5_u64 {
        let (cri, target) = (c.cri.clone(), id.clone());
        let updates = tokio::spawn(async move {
            let mut which = true;
            while update(&cri, &target, set(which)).await.is_ok() {
                which = !which;
            }
        });
        tokio::time::sleep(Duration::from_millis(20 + round * 7)).await;
        server.end(Signal::KILL).await?;
        updates.await?;
        server.start(&c.cri).await?;
        let now = (shown(&c, &id).await?.memory_limit_in_bytes, limits(first, 0)?);
        ensure!(
            known.contains(&now),
            "status and cgroup after the server's death: {now:?}, not one of {known:?}"
        );
    }
    update(&c.cri, &id, set(true)).await?;
    expect!(limits(first, 0)?, known[0].1, "a later update");
    pod.end().await
}

/// `UpdatePodSandboxResourcesRequest` of Kubernetes 1.33, which `k8s-cri` does not know yet.
#[derive(Clone, PartialEq, prost::Message)]
struct UpdatePod {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    overhead: Option<cri::LinuxContainerResources>,
    #[prost(message, optional, tag = "3")]
    resources: Option<cri::LinuxContainerResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

async fn update_pod(c: &Context, request: UpdatePod) -> Result<(), Status> {
    let mut grpc = Grpc::new(c.cri.channel.clone());
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let codec: ProstCodec<UpdatePod, Nothing> = ProstCodec::default();
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/UpdatePodSandboxResources");
    grpc.unary(tonic::Request::new(request), path, codec)
        .await
        .map(drop)
}

async fn of_the_pod(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("update-pod", &c.logs());
    // Two levels below the root, whose limits are nobody's to write: by its name a slice lies in another.
    let parent = c.cri.cgroup_parent("update").await;
    if let (true, Some(linux)) = (parent.ends_with(".slice"), &mut config.linux) {
        linux.cgroup_parent = format!("conformance-{parent}");
    }
    let pod = Pod::run_with(&c, config).await?;
    let id = pod.sleeper(&c).await?;
    let first = pid(&c, &id).await?;
    // The pod's cgroup is the one above the container's; the one above that is nobody's business here.
    let outside = limits(first, 2)?;
    let of = |memory: i64, quota: i64| cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: 512,
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    let request = |overhead, resources| UpdatePod {
        pod_sandbox_id: pod.id.clone(),
        overhead,
        resources,
    };
    update_pod(
        &c,
        request(Some(of(16 * MIB, 10_000)), Some(of(256 * MIB, 50_000))),
    )
    .await?;
    let now = limits(first, 1)?;
    expect!(
        (now[0].as_str(), now[1].as_str()),
        ("285212672", "60000"),
        "the pod's limits"
    );
    expect!(limits(first, 2)?, outside, "the limits outside the pod");
    let status = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let status = c
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(status)
        .await?
        .into_inner();
    let info: serde_json::Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
    let linux = &info["config"]["linux"];
    expect!(
        linux["resources"]["memory_limit_in_bytes"].as_i64(),
        Some(256 * MIB),
        "resources in the status"
    );
    expect!(
        linux["overhead"]["memory_limit_in_bytes"].as_i64(),
        Some(16 * MIB),
        "overhead in the status"
    );
    if let Ok(server) = c.server() {
        server.end(Signal::KILL).await?;
        server.start(&c.cri).await?;
    }
    // The overhead is on record.
    update_pod(&c, request(None, Some(of(128 * MIB, 20_000)))).await?;
    let now = limits(first, 1)?;
    expect!(
        (now[0].as_str(), now[1].as_str()),
        ("150994944", "30000"),
        "the pod's limits after a restart"
    );
    let bad = cri::LinuxContainerResources {
        oom_score_adj: 7,
        ..Default::default()
    };
    must_fail(
        update_pod(&c, request(None, Some(bad))).await,
        &[Code::InvalidArgument],
        &["oom_score_adj"],
    )?;
    let mut unknown = request(None, Some(of(128 * MIB, 20_000)));
    unknown.pod_sandbox_id = "0".repeat(64);
    must_fail(update_pod(&c, unknown).await, &[Code::NotFound], &["0000"])?;
    c.cri.stop_pod(&pod.id).await?;
    let late = request(None, Some(of(128 * MIB, 20_000)));
    must_fail(
        update_pod(&c, late).await,
        &[Code::FailedPrecondition],
        &["ready"],
    )?;
    pod.end().await
}

async fn a_mebibyte(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run_with(&c, pod_config("mebibyte", &c.logs())).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("small", &image, &["/bin/sleep", "3600"]);
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: MIB,
            ..Default::default()
        });
    }
    let id = pod.start(&config).await?;
    let first = pid(&c, &id).await?;
    expect!(limits(first, 0)?[0], MIB.to_string(), "the memory limit");
    tokio::time::sleep(Duration::from_millis(100)).await;
    expect!(
        c.cri.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning,
        "the container"
    );
    pod.end().await
}
