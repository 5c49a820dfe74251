//! Pod addresses, traffic between pods, host ports.

use std::io::Read as _;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail, pod_config};
use crate::expect;

cases!["network";
    addresses,
    pods_reach_each_other,
    host_port_tcp,
    host_port_udp,
    host_port_of_one_address,
    host_port_taken_twice => "the peer's portmap plugin takes a port twice and lets the first pod have it",
    loopback_is_up,
];

pub fn ports(
    config: &mut cri::PodSandboxConfig,
    protocol: cri::Protocol,
    inside: i32,
    host: i32,
    host_ip: &str,
) {
    config.port_mappings.push(cri::PortMapping {
        protocol: protocol.into(),
        container_port: inside,
        host_port: host,
        host_ip: host_ip.to_owned(),
    });
}

pub async fn address(c: &Context, pod: &Pod) -> anyhow::Result<IpAddr> {
    let status = c.cri.pod_status(&pod.id).await?;
    let ip = status.network.context("no network in the status")?.ip;
    ip.parse().with_context(|| format!("pod address {ip:?}"))
}

async fn addresses(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "addresses").await?;
    let ip = address(&c, &pod).await?;
    let id = pod.sleeper(&c).await?;
    let inside = c.cri.shell(&id, "ip -o addr show eth0").await?;
    ensure!(inside.contains(&ip.to_string()), "{ip} is not in {inside}");
    c.cri.stop_pod(&pod.id).await?;
    c.cri.remove_pod(&pod.id).await?;
    Ok(())
}

async fn pods_reach_each_other(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let (server, client) = (Pod::run(&c, "server").await?, Pod::run(&c, "client").await?);
    server
        .start(&container_config(
            "server",
            &image,
            &["/bin/nc", "-ll", "-p", "8080", "-e", "echo", "hello"],
        ))
        .await?;
    let id = client.sleeper(&c).await?;
    let ip = address(&c, &server).await?;
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 2 {ip} 8080 </dev/null && exit 0; sleep 0.1; done; exit 1"
    );
    expect!(
        c.cri.shell(&id, &script).await?,
        "hello",
        "what the other pod says"
    );
    server.end().await?;
    client.end().await
}

/// Connects until something answers, for at most five seconds.
pub fn ask(address: &str) -> anyhow::Result<String> {
    let mut last = None;
    for _ in 0..50 {
        match TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(1)) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                if !text.is_empty() {
                    return Ok(text);
                }
            }
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("nothing answers on {address}: {last:?}")
}

async fn host_port_tcp(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("host-port", &c.logs());
    ports(&mut config, cri::Protocol::Tcp, 8080, 28080, "");
    let pod = Pod::run_with(&c, config).await?;
    pod.start(&container_config(
        "server",
        &image,
        &["/bin/nc", "-ll", "-p", "8080", "-e", "echo", "mapped"],
    ))
    .await?;
    let answer = tokio::task::spawn_blocking(|| ask("127.0.0.1:28080")).await??;
    expect!(answer, "mapped\n", "the answer on the host port from 127.0.0.1");
    pod.end().await?;
    ensure!(
        TcpStream::connect("127.0.0.1:28080").is_err(),
        "the host port outlived its pod"
    );
    Ok(())
}

async fn host_port_udp(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("socat")).await?;
    let mut config = pod_config("host-port-udp", &c.logs());
    ports(&mut config, cri::Protocol::Udp, 8081, 28081, "");
    let pod = Pod::run_with(&c, config).await?;
    pod.start(&container_config(
        "server",
        &image,
        &["/usr/bin/socat", "UDP4-RECVFROM:8081,fork", "EXEC:/bin/cat"],
    ))
    .await?;
    let echoed = tokio::task::spawn_blocking(|| -> anyhow::Result<bool> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut buffer = [0; 16];
        for _ in 0..20 {
            socket.send_to(b"ping", "127.0.0.1:28081")?;
            if matches!(socket.recv(&mut buffer), Ok(4)) {
                return Ok(&buffer[..4] == b"ping");
            }
        }
        Ok(false)
    })
    .await??;
    ensure!(echoed, "no answer on the UDP host port");
    pod.end().await
}

async fn host_port_of_one_address(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("host-ip", &c.logs());
    ports(&mut config, cri::Protocol::Tcp, 8080, 28082, "127.0.0.1");
    let pod = Pod::run_with(&c, config).await?;
    pod.start(&container_config(
        "server",
        &image,
        &["/bin/nc", "-ll", "-p", "8080", "-e", "echo", "mapped"],
    ))
    .await?;
    let answer = tokio::task::spawn_blocking(|| ask("127.0.0.1:28082")).await??;
    expect!(answer, "mapped\n", "the answer on the named address");
    ensure!(
        TcpStream::connect("127.0.0.2:28082").is_err(),
        "the port answers on another address"
    );
    pod.end().await
}

async fn host_port_taken_twice(c: Arc<Context>) -> anyhow::Result<()> {
    let mut config = pod_config("port-owner", &c.logs());
    ports(&mut config, cri::Protocol::Tcp, 80, 28083, "");
    let owner = Pod::run_with(&c, config).await?;
    let mut config = pod_config("port-thief", &c.logs());
    ports(&mut config, cri::Protocol::Tcp, 80, 28083, "");
    std::fs::create_dir_all(&config.log_directory)?;
    must_fail(
        c.cri.run_pod(&config).await,
        &[
            tonic::Code::AlreadyExists,
            tonic::Code::FailedPrecondition,
            tonic::Code::InvalidArgument,
        ],
        &["28083", "port-owner"],
    )?;
    owner.end().await
}

async fn loopback_is_up(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "loopback").await?;
    let id = pod.sleeper(&c).await?;
    c.cri.shell(&id, "nc -l -p 9 -e echo up & for i in 1 2 3 4 5; do nc -w 1 127.0.0.1 9 </dev/null && exit 0; sleep 0.1; done; exit 1").await?;
    pod.end().await?;
    Ok(())
}
