//! The server and the processes that it has beside pods are killed, and what was true before is true after.
//!
//! A "monitor" is here the parent of a container's first process, whatever the runtime calls it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, pod_config};
use crate::expect;
use crate::server::{Server, alive, parent, send};

cases!["survival";
    server_is_killed => "the peer's server writes the logs itself: while it is away no line is, and a container whose pipe is full waits",
    server_is_killed_in_the_middle_of_calls,
    server_is_told_to_stop => "as above: no line while the peer's server is away",
    monitor_is_killed => "the peer's containers die with their shim",
    monitor_is_killed_and_the_exit_is_seen => "the peer's containers die with their shim",
    server_and_monitor_are_killed => "the peer finds the container dead, and says 255 and Unknown",
];

/// Counts, a line each 10 ms, until SIGTERM.
const COUNT: &str = "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";

/// The first process of a container, in the host's numbers.
pub(super) async fn pid(c: &Context, id: &str) -> anyhow::Result<i32> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let info = c
        .cri
        .runtime
        .clone()
        .container_status(request)
        .await?
        .into_inner()
        .info;
    let text = info.get("info").context("the verbose status has no `info`")?;
    let value: serde_json::Value = serde_json::from_str(text)?;
    let pid = value["pid"].as_i64().context("the verbose status has no pid")?;
    Ok(pid.try_into()?)
}

fn now() -> anyhow::Result<i64> {
    Ok(SystemTime::now()
        .duration_since(UNIX_EPOCH)?
        .as_nanos()
        .try_into()?)
}

/// The numbers in the log of a container that runs `COUNT`.
fn counted(path: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut last = 0;
    for line in text.lines() {
        last += 1;
        ensure!(
            line.ends_with(&format!(" stdout F line {last}")),
            "line {last} of the log is {line:?}"
        );
    }
    Ok(last)
}

/// Waits until `done`, for at most `limit`; how long it took.
pub(super) async fn until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed())
}

/// What runs and what ends while nobody looks.
struct Scene {
    pod: Pod,
    steady: (String, i32),
    created: String,
    /// Container, its first process, exit code, reason.
    ending: Vec<(String, i32, i32, &'static str)>,
}

impl Scene {
    async fn set(c: &Arc<Context>, name: &str) -> anyhow::Result<Self> {
        let image = c.cri.pull(c.image("busybox")).await?;
        let pod = Pod::run(c, name).await?;
        let shell = |name: &str, script: &str| container_config(name, &image, &["/bin/sh", "-c", script]);
        let steady = pod.start(&shell("steady", COUNT)).await?;
        let created = c
            .cri
            .create(&pod.id, &shell("created", "echo begun; sleep 3600"), &pod.config)
            .await?;
        let mut ending = Vec::new();
        // Each waits for a file, so that it ends when the server is away however slow the machine is.
        let wait = "while [ ! -e /go/now ]; do sleep 0.02; done; echo goes;";
        for (name, then, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("seven", "seq 1 20000; exit 7", 7, "Error"),
            ("oom", "x=$(yes x | head -c 300000000); echo $x", 137, "OOMKilled"),
        ] {
            let mut config = shell(name, &format!("{wait} {then}"));
            config.mounts = vec![cri::Mount {
                container_path: "/go".into(),
                host_path: pod.config.log_directory.clone(),
                ..Default::default()
            }];
            if let (Some(linux), "oom") = (&mut config.linux, name) {
                linux.resources = Some(cri::LinuxContainerResources {
                    memory_limit_in_bytes: 32 << 20,
                    ..Default::default()
                });
            }
            let id = pod.start(&config).await?;
            let first = pid(c, &id).await?;
            ending.push((id, first, code, reason));
        }
        let steady = (steady.clone(), pid(c, &steady).await?);
        Ok(Self {
            pod,
            steady,
            created,
            ending,
        })
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        Path::new(&self.pod.config.log_directory).join(name)
    }

    /// The server is away: what shall end does, what counts goes on.
    async fn without_a_server(&self) -> anyhow::Result<()> {
        let before = counted(&self.log("steady.log"))?;
        std::fs::write(self.log("now"), "")?;
        until("the containers end", Duration::from_secs(60), || {
            // Gone, and not a zombie: their monitor has noted when.
            let gone = |pid: &i32| !Path::new("/proc").join(pid.to_string()).exists();
            self.ending.iter().all(|(_, pid, ..)| gone(pid))
        })
        .await?;
        ensure!(alive(self.steady.1), "the container died with the server");
        let log = self.log("steady.log");
        until(
            "the log goes on without the server",
            Duration::from_secs(5),
            || counted(&log).is_ok_and(|lines| lines > before + 20),
        )
        .await?;
        Ok(())
    }

    /// The server is back. `away`: when it went and when it came, by the clock.
    async fn check(self, c: &Arc<Context>, away: (i64, i64)) -> anyhow::Result<()> {
        for (id, _, code, reason) in &self.ending {
            let status = c.cri.exited(id, Duration::from_secs(5)).await?;
            expect!(
                (status.exit_code, status.reason.as_str()),
                (*code, *reason),
                "an end while the server was away"
            );
            ensure!(
                (away.0..=away.1).contains(&status.finished_at),
                "finished_at {} is not between {} and {}",
                status.finished_at,
                away.0,
                away.1
            );
        }
        let seven = std::fs::read_to_string(self.log("seven.log"))?;
        let text: Vec<&str> = seven.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
        ensure!(
            text.len() == 20_001 && text[20_000] == "20000",
            "{} lines of an exited container, the last {:?}",
            text.len(),
            text.last()
        );
        let (steady, process) = &self.steady;
        expect!(pid(c, steady).await?, *process, "the pid after the restart");
        expect!(
            c.cri.shell(steady, "echo fine").await?,
            "fine",
            "an exec after the restart"
        );
        c.cri.start(&self.created).await?;
        expect!(
            c.cri.status(&self.created).await?.state(),
            cri::ContainerState::ContainerRunning,
            "a container created before and started after the restart"
        );
        c.cri.stop(steady, 10).await?;
        let status = c.cri.status(steady).await?;
        expect!(status.exit_code, 4, "an exit after the restart");
        ensure!(counted(&self.log("steady.log"))? > 20, "the log is too short");
        self.pod.end().await
    }
}

async fn restart(c: &Arc<Context>, name: &str, signal: Signal) -> anyhow::Result<()> {
    let server = c.server()?;
    let scene = Scene::set(c, name).await?;
    let started = c.cri.status(&scene.steady.0).await?.started_at;
    let network = c.cri.pod_status(&scene.pod.id).await?.network;
    let went = now()?;
    server.end(signal).await?;
    scene.without_a_server().await?;
    let came = now()?;
    server.start(&c.cri).await?;
    expect!(
        c.cri.status(&scene.steady.0).await?.started_at,
        started,
        "started_at after the restart"
    );
    let status = c.cri.pod_status(&scene.pod.id).await?;
    expect!(
        (status.state(), status.network),
        (cri::PodSandboxState::SandboxReady, network),
        "the pod and its address after the restart"
    );
    scene.check(c, (went, came)).await
}

async fn server_is_killed(c: Arc<Context>) -> anyhow::Result<()> {
    restart(&c, "survives-kill", Signal::KILL).await
}

async fn server_is_told_to_stop(c: Arc<Context>) -> anyhow::Result<()> {
    restart(&c, "survives-term", Signal::TERM).await
}

async fn server_is_killed_in_the_middle_of_calls(c: Arc<Context>) -> anyhow::Result<()> {
    let server = c.server()?;
    let image = c.cri.pull(c.image("busybox")).await?;
    for round in 0..3u64 {
        let configs: Vec<_> = (0..12)
            .map(|n| pod_config(&format!("middle-{n}"), &c.logs()))
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        for config in &configs {
            std::fs::create_dir_all(&config.log_directory)?;
            let (cri, config, image) = (c.cri.clone(), config.clone(), image.clone());
            tasks.spawn(async move {
                let pod = cri.run_pod(&config).await?;
                let id = cri
                    .create(
                        &pod,
                        &container_config("one", &image, &["/bin/sleep", "3600"]),
                        &config,
                    )
                    .await?;
                cri.start(&id).await?;
                cri.stop_pod(&pod).await
            });
        }
        tokio::time::sleep(Duration::from_millis(40 + 90 * round)).await;
        server.end(Signal::KILL).await?;
        tasks.shutdown().await;
        server.start(&c.cri).await?;
        // What kubelet does: it looks at what is there, ends it, and makes it anew.
        super::sweep_all(&c.cri).await?;
        for config in configs {
            let pod = Pod::run_with(&c, config).await?;
            pod.start(&container_config("one", &image, &["/bin/sleep", "3600"]))
                .await?;
            pod.end().await?;
        }
    }
    Ok(())
}

async fn monitor_is_killed(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "monitor").await?;
    let id = pod
        .start(&container_config("steady", &image, &["/bin/sh", "-c", COUNT]))
        .await?;
    let process = pid(&c, &id).await?;
    let log = Path::new(&pod.config.log_directory).join("steady.log");
    let killed = Instant::now();
    send(parent(process)?, Signal::KILL)?;
    // Noticed within a second: the pod can be worked with again.
    let back = loop {
        match c.cri.shell(&id, "echo fine").await {
            Ok(text) => break text,
            Err(error) if killed.elapsed() > Duration::from_secs(1) => {
                return Err(error.context("no exec a second after the monitor's death"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    expect!(back, "fine", "an exec after the monitor's death");
    ensure!(alive(process), "the container died with its monitor");
    expect!(pid(&c, &id).await?, process, "the pid under another monitor");
    expect!(
        c.cri.pod_status(&pod.id).await?.state(),
        cri::PodSandboxState::SandboxReady,
        "the pod under another monitor"
    );
    let lines = counted(&log)?;
    until(
        "the log goes on under another monitor",
        Duration::from_secs(5),
        || counted(&log).is_ok_and(|now| now > lines + 20),
    )
    .await?;
    // A new container in the old pod, and the old one's end by its own signal.
    let config = container_config("next", &image, &["/bin/sh", "-c", "exit 3"]);
    expect!(
        pod.once(&c, &config).await?.status.exit_code,
        3,
        "a container of the new monitor"
    );
    c.cri.stop(&id, 10).await?;
    ended_by_itself(&c.cri.status(&id).await?, 4)?;
    counted(&log)?;
    pod.end().await
}

/// Who is not the parent sees how a process ended since Linux 6.15; before, nobody does, and that is said.
fn ended_by_itself(status: &cri::ContainerStatus, code: i32) -> anyhow::Result<()> {
    let told = (status.exit_code, status.reason.as_str());
    ensure!(
        status.state() == cri::ContainerState::ContainerExited
            && (told == (code, "Error") || told == (137, "ContainerStatusUnknown")),
        "the end of an adopted container: {told:?}, expected {code} or 137 with ContainerStatusUnknown"
    );
    Ok(())
}

async fn monitor_is_killed_and_the_exit_is_seen(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "adopted-exit").await?;
    let script = "trap 'exit 9' USR1; while :; do sleep 0.05; done";
    let id = pod
        .start(&container_config("exits", &image, &["/bin/sh", "-c", script]))
        .await?;
    let process = pid(&c, &id).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // It ends before anybody can have adopted it.
    send(parent(process)?, Signal::KILL)?;
    send(process, Signal::USR1)?;
    let status = c.cri.exited(&id, Duration::from_secs(5)).await?;
    ended_by_itself(&status, 9)?;
    pod.end().await
}

async fn server_and_monitor_are_killed(c: Arc<Context>) -> anyhow::Result<()> {
    let server: &Server = c.server()?;
    let pod = Pod::run(&c, "both-killed").await?;
    let id = pod.sleeper(&c).await?;
    let process = pid(&c, &id).await?;
    let monitor = parent(process)?;
    server.end(Signal::KILL).await?;
    send(monitor, Signal::KILL)?;
    server.start(&c.cri).await?;
    let status = c.cri.exited(&id, Duration::from_secs(5)).await?;
    expect!(
        (status.exit_code, status.reason.as_str()),
        (137, "ContainerStatusUnknown"),
        "an end that nobody saw"
    );
    ensure!(!alive(process), "a container that is said to have ended runs");
    expect!(
        c.cri.pod_status(&pod.id).await?.state(),
        cri::PodSandboxState::SandboxNotready,
        "a pod whose descriptors are lost"
    );
    pod.end().await
}
