//! Exec, attach and port-forward over their streams, by both protocols.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{Cri, container_config, pod_config};
use crate::expect;
use crate::streams::{BOTH, Channel, Forward, Over, Remote, ask};

cases!["streaming";
    exec_over_spdy,
    exec_over_websocket => "the peer's release is older than v5.channel.k8s.io",
    terminals_over_spdy,
    terminals_over_websocket => "the peer's release is older than v5.channel.k8s.io",
    megabytes_through_a_command => "the peer's release is older than v5.channel.k8s.io",
    attach_over_spdy,
    attach_over_websocket => "the peer's release is older than v5.channel.k8s.io",
    stdin_once_ends_the_input,
    forward_over_spdy,
    forward_through_a_tunnel => "the peer's release is older than the tunnel",
    forward_to_the_hosts_network,
    streams_after_a_restart => "the peer's server is the other end of the container's output",
    two_hundred_dropped,
    a_lot_of_output => "the peer's release is older than v5.channel.k8s.io",
];

use Channel::{Error, Resize, Stderr, Stdin, Stdout};

pub async fn exec_url(cri: &Cri, id: &str, command: &[&str], channels: &[Channel]) -> anyhow::Result<String> {
    let request = cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        tty: channels.contains(&Resize),
        stdin: channels.contains(&Stdin),
        stdout: channels.contains(&Stdout),
        stderr: channels.contains(&Stderr),
    };
    Ok(cri.runtime.clone().exec(request).await?.into_inner().url)
}

pub async fn attach_url(cri: &Cri, id: &str, channels: &[Channel]) -> anyhow::Result<String> {
    let request = cri::AttachRequest {
        container_id: id.to_owned(),
        stdin: channels.contains(&Stdin),
        tty: channels.contains(&Resize),
        stdout: channels.contains(&Stdout),
        stderr: channels.contains(&Stderr),
    };
    Ok(cri.runtime.clone().attach(request).await?.into_inner().url)
}

async fn exec(
    c: &Context,
    id: &str,
    over: Over,
    command: &[&str],
    channels: &[Channel],
) -> anyhow::Result<Remote> {
    let url = exec_url(&c.cri, id, command, channels).await?;
    Remote::open(&url, over, channels).await
}

async fn exec_over(c: &Arc<Context>, over: Over) -> anyhow::Result<()> {
    let pod = Pod::run(c, "stream-exec").await?;
    let id = pod.sleeper(c).await?;
    let script = ["/bin/sh", "-c", "cat; echo problem >&2; exit 3"];
    let mut remote = exec(c, &id, over, &script, &[Error, Stdin, Stdout, Stderr]).await?;
    remote.send(Stdin, b"there and back").await?;
    remote.end_input().await?;
    let said = remote.rest().await?;
    expect!(
        (&said.stdout[..], &said.stderr[..], said.exit_code()?),
        (&b"there and back"[..], &b"problem\n"[..], 3),
        "what the command said"
    );
    // Without input and errors.
    let mut remote = exec(c, &id, over, &["/bin/echo", "only"], &[Error, Stdout]).await?;
    let said = remote.rest().await?;
    expect!(
        (&said.stdout[..], said.exit_code()?),
        (&b"only\n"[..], 0),
        "a success"
    );
    // One that cannot be executed is told of in the stream.
    let mut remote = exec(c, &id, over, &["/no/such/program"], &[Error, Stdout]).await?;
    let said = remote.rest().await?;
    let text = String::from_utf8_lossy(&said.error).into_owned();
    ensure!(
        text.contains("Failure") && text.contains("/no/such/program"),
        "the end of no program: {text}"
    );
    pod.end().await
}

async fn exec_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    exec_over(&c, Over::Spdy).await
}

async fn exec_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    exec_over(&c, Over::WebSocket).await
}

async fn terminals(c: &Arc<Context>, over: Over) -> anyhow::Result<()> {
    let pod = Pod::run(c, "stream-tty").await?;
    let id = pod.sleeper(c).await?;
    let script = "test -t 0 && echo terminal; read line; stty size; echo got $line; exit 7";
    let mut remote = exec(
        c,
        &id,
        over,
        &["/bin/sh", "-c", script],
        &[Error, Stdin, Stdout, Resize],
    )
    .await?;
    remote.resize(132, 43).await?;
    remote.until("terminal").await?;
    // The size is a stream of its own: it may come after what is typed.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        let size = c
            .cri
            .shell(
                &id,
                "for t in /dev/pts/[0-9]*; do stty -F $t size 2>/dev/null; done; true",
            )
            .await?;
        if size.contains("43 132") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    remote.send(Stdin, b"words\n").await?;
    let said = remote.rest().await?;
    let text = String::from_utf8_lossy(&said.stdout).replace('\r', "");
    ensure!(
        text.contains("43 132\ngot words\n"),
        "what the terminal showed: {text:?}"
    );
    expect!(said.exit_code()?, 7, "exit code");
    pod.end().await
}

async fn terminals_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    terminals(&c, Over::Spdy).await
}

async fn terminals_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    terminals(&c, Over::WebSocket).await
}

async fn megabytes_through_a_command(c: Arc<Context>) -> anyhow::Result<()> {
    const SIZE: usize = 20_000_000;
    let pod = Pod::run(&c, "stream-large").await?;
    let id = pod.sleeper(&c).await?;
    let sent = vec![b'x'; SIZE];
    for over in BOTH {
        let command = ["/bin/sh", "-c", "wc -c; head -c 20000000 /dev/zero >&2"];
        let mut remote = exec(&c, &id, over, &command, &[Error, Stdin, Stdout, Stderr]).await?;
        remote.send(Stdin, &sent).await?;
        remote.end_input().await?;
        let said = remote.rest().await?;
        expect!(
            (
                String::from_utf8_lossy(&said.stdout).trim(),
                said.stderr.len(),
                said.exit_code()?
            ),
            ("20000000", SIZE, 0),
            "bytes in and out over {over:?}"
        );
    }
    pod.end().await
}

/// A container with an input that says back what it reads.
async fn echoing(c: &Arc<Context>, pod: &Pod, name: &str, once: bool) -> anyhow::Result<String> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let script = "echo before; while read line; do echo said $line; done; echo end of input";
    let mut config = container_config(name, &image, &["/bin/sh", "-c", script]);
    config.stdin = true;
    config.stdin_once = once;
    pod.start(&config).await
}

async fn attach_over(c: &Arc<Context>, over: Over) -> anyhow::Result<()> {
    let pod = Pod::run(c, "stream-attach").await?;
    let id = echoing(c, &pod, "echo", false).await?;
    let log = std::path::Path::new(&pod.config.log_directory).join("echo.log");
    let begin = Instant::now();
    while !std::fs::read_to_string(&log)
        .unwrap_or_default()
        .contains("before")
    {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "the container says nothing"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Whoever attaches while a line is on its way from the log to those who are attached gets it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let channels = [Error, Stdin, Stdout, Stderr];
    let mut one = Remote::open(&attach_url(&c.cri, &id, &channels).await?, over, &channels).await?;
    let mut two = Remote::open(
        &attach_url(&c.cri, &id, &[Error, Stdout]).await?,
        over,
        &[Error, Stdout],
    )
    .await?;
    // Attached is who has been told something; the second does not say when it is.
    tokio::time::sleep(Duration::from_millis(300)).await;
    one.send(Stdin, b"one\n").await?;
    let first = one.until("said one\n").await?;
    expect!(first, "said one\n", "attach replays nothing");
    expect!(two.until("said one\n").await?, "said one\n", "the second client");
    // A client that goes ends nothing.
    drop(one);
    let mut three = Remote::open(&attach_url(&c.cri, &id, &channels).await?, over, &channels).await?;
    three.send(Stdin, b"three\n").await?;
    three.until("said three\n").await?;
    two.until("said three\n").await?;
    ensure!(
        std::fs::read_to_string(&log)?.contains("said three"),
        "the log misses what was attached to"
    );
    // The end of the container is the end of the connection.
    c.cri.stop(&id, 0).await?;
    three.rest().await?;
    two.rest().await?;
    pod.end().await
}

async fn attach_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    attach_over(&c, Over::Spdy).await
}

async fn attach_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    attach_over(&c, Over::WebSocket).await
}

async fn stdin_once_ends_the_input(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "stream-once").await?;
    let id = echoing(&c, &pod, "once", true).await?;
    let channels = [Error, Stdin, Stdout];
    let mut remote = Remote::open(&attach_url(&c.cri, &id, &channels).await?, Over::Spdy, &channels).await?;
    remote.send(Stdin, b"words\n").await?;
    remote.until("said words\n").await?;
    remote.end_input().await?;
    let status = c.cri.exited(&id, Duration::from_secs(10)).await?;
    expect!(status.exit_code, 0, "the end of its input");
    pod.end().await
}

/// Listens on the pod's loopback and says back what it got.
async fn listening(c: &Arc<Context>, pod: &Pod, port: u16) -> anyhow::Result<String> {
    let image = c.cri.pull(c.image("socat")).await?;
    let script = format!(
        "echo on; exec /usr/bin/socat TCP4-LISTEN:{port},reuseaddr,fork,bind=127.0.0.1 SYSTEM:'read line; echo re $line'"
    );
    let id = pod
        .start(&container_config("listener", &image, &["/bin/sh", "-c", &script]))
        .await?;
    let begin = Instant::now();
    let probe = format!("grep -q ':{port:04X} ' /proc/net/tcp");
    while c.cri.shell(&id, &probe).await.is_err() {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "nobody listens in the pod"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(id)
}

async fn forward(c: &Arc<Context>, pod: &Pod, port: u16, over: Over) -> anyhow::Result<()> {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![i32::from(port)],
    };
    let url = c
        .cri
        .runtime
        .clone()
        .port_forward(request)
        .await?
        .into_inner()
        .url;
    let mut forward = Forward::open(&url, over).await?;
    for n in 0..3 {
        let text = format!("hello {n}\n");
        let (data, error) = forward.talk(port, &n.to_string(), &text).await?;
        expect!(
            (data, error),
            (format!("re {text}"), String::new()),
            "a forwarded connection"
        );
    }
    // A port where nobody listens is told of, and the others go on.
    let (data, error) = forward.talk(1, "closed", "x").await?;
    ensure!(
        data.is_empty() && error.contains('1'),
        "a closed port: {data:?}, {error:?}"
    );
    let (data, _) = forward.talk(port, "again", "still there\n").await?;
    expect!(data, "re still there\n", "after a closed port");
    Ok(())
}

async fn forward_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "forward").await?;
    listening(&c, &pod, 7070).await?;
    forward(&c, &pod, 7070, Over::Spdy).await?;
    pod.end().await
}

async fn forward_through_a_tunnel(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "tunnel").await?;
    listening(&c, &pod, 7071).await?;
    forward(&c, &pod, 7071, Over::WebSocket).await?;
    pod.end().await
}

async fn forward_to_the_hosts_network(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("forward-host", &c.logs());
    // As kubelet has it: the name is the host's.
    config.hostname.clear();
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(crate::cri::namespaces(cri::NamespaceMode::Node));
    }
    let pod = Pod::run_with(&c, config).await?;
    let image = c.cri.pull(c.image("socat")).await?;
    let script = "exec /usr/bin/socat TCP4-LISTEN:17072,reuseaddr,fork,bind=127.0.0.1 SYSTEM:'read line; echo re $line'";
    let mut config = container_config("listener", &image, &["/bin/sh", "-c", script]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(crate::cri::namespaces(cri::NamespaceMode::Node));
    }
    pod.start(&config).await?;
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", 17072)).is_err() {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "nobody listens on the host"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    forward(&c, &pod, 17072, Over::Spdy).await?;
    pod.end().await
}

async fn streams_after_a_restart(c: Arc<Context>) -> anyhow::Result<()> {
    let server = c.server()?;
    let pod = Pod::run(&c, "stream-restart").await?;
    let id = echoing(&c, &pod, "echo", false).await?;
    let channels = [Error, Stdin, Stdout];
    let mut attached =
        Remote::open(&attach_url(&c.cri, &id, &channels).await?, Over::Spdy, &channels).await?;
    attached.send(Stdin, b"one\n").await?;
    attached.until("said one\n").await?;
    let mut running = exec(
        &c,
        &id,
        Over::WebSocket,
        &["/bin/sh", "-c", "echo up; sleep 3600"],
        &[Error, Stdout],
    )
    .await?;
    running.until("up\n").await?;
    let unused = exec_url(&c.cri, &id, &["/bin/true"], &[Error, Stdout]).await?;
    server.end(Signal::KILL).await?;
    // Whoever was connected is told, and does not hang.
    ensure!(
        !matches!(attached.next().await, Ok(Some(_))) && !matches!(running.next().await, Ok(Some(_))),
        "streams of a server that was killed go on"
    );
    server.start(&c.cri).await?;
    ensure!(
        ask(&unused, Over::Spdy, &["v4.channel.k8s.io"])
            .await
            .is_ok_and(|(status, ..)| status == 404)
            || ask(&unused, Over::Spdy, &["v4.channel.k8s.io"]).await.is_err(),
        "a token outlived its server"
    );
    let mut again = Remote::open(&attach_url(&c.cri, &id, &channels).await?, Over::Spdy, &channels).await?;
    again.send(Stdin, b"two\n").await?;
    again.until("said two\n").await?;
    let mut remote = exec(&c, &id, Over::WebSocket, &["/bin/echo", "fine"], &[Error, Stdout]).await?;
    expect!(
        remote.rest().await?.stdout,
        b"fine\n",
        "an exec after the restart"
    );
    expect!(
        c.cri.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning,
        "the container after the restart"
    );
    pod.end().await
}

async fn two_hundred_dropped(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "stream-dropped").await?;
    let id = echoing(&c, &pod, "echo", false).await?;
    let channels = [Error, Stdin, Stdout, Stderr];
    for n in 0..200 {
        let url = if n % 2 == 0 {
            exec_url(&c.cri, &id, &["/bin/cat"], &channels).await?
        } else {
            attach_url(&c.cri, &id, &channels).await?
        };
        match n % 3 {
            // Never claimed.
            0 => {}
            1 => drop(ask(&url, Over::Spdy, &["v4.channel.k8s.io"]).await?),
            _ => {
                let mut remote = Remote::open(&url, Over::Spdy, &channels).await?;
                remote.send(Stdin, b"x\n").await?;
            }
        }
    }
    // A command whose client is gone finds its input closed.
    let begin = Instant::now();
    while c.cri.shell(&id, "ps | grep -c '[c]at$' || true").await? != "0" {
        ensure!(
            begin.elapsed() < Duration::from_secs(20),
            "commands outlive their clients"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pod.end().await
}

/// Resident memory of the server in KiB, where it is known.
fn resident(c: &Context) -> Option<u64> {
    let pid = c.server().ok()?.pid().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

async fn a_lot_of_output(c: Arc<Context>) -> anyhow::Result<()> {
    // Of both protocols together.
    let wanted = c.exec_output / 2;
    let pod = Pod::run(&c, "stream-flood").await?;
    let id = pod.sleeper(&c).await?;
    let before = resident(&c);
    let command = format!("head -c {wanted} /dev/zero");
    for over in BOTH {
        let mut remote = exec(&c, &id, over, &["/bin/sh", "-c", &command], &[Error, Stdout]).await?;
        let (mut got, mut said, mut most, mut look) = (0u64, Vec::new(), 0, 0);
        let begin = Instant::now();
        while let Some((channel, bytes)) = remote.next().await? {
            match channel {
                Stdout => got += bytes.len() as u64,
                Error => said = bytes,
                other => anyhow::bail!("output on {other:?}"),
            }
            if got >= look {
                // Every 64 MiB.
                most = most.max(resident(&c).unwrap_or_default());
                look = got + (64 << 20);
            }
        }
        expect!(got, wanted, "bytes over {over:?}");
        ensure!(
            String::from_utf8_lossy(&said).contains("Success"),
            "the end: {:?}",
            String::from_utf8_lossy(&said)
        );
        let rate = got as f64 / begin.elapsed().as_secs_f64() / 1e6;
        println!(
            "      {got} bytes in {:?}, {rate:.0} MB/s; the server's memory rose to {most} KiB",
            begin.elapsed()
        );
        if let Some(before) = before {
            ensure!(
                most < before + (64 << 10),
                "the server's memory rose from {before} to {most} KiB"
            );
        }
    }
    pod.end().await.context("after the flood")
}
