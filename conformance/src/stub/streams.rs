//! exec, attach and port-forward: the runtime's URL for what kubectl asks, and the way there.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::http::Request;
use super::{Failure, Upgrades, answers, reply};
use crate::cri::Cri;

/// Where the runtime serves the stream. `pod` is its namespace and name, `kind` exec, attach or portforward.
pub async fn url(cri: &Cri, request: &Request, pod: (&str, &str), kind: &str) -> Result<String, Failure> {
    let sandbox = answers::sandbox(cri, pod.0, pod.1).await?;
    let mut runtime = cri.runtime.clone();
    if kind == "portforward" {
        let request = cri::PortForwardRequest {
            pod_sandbox_id: sandbox.id,
            // WebSocket's older form names the ports here, all others in their streams.
            port: request.all("ports").filter_map(|p| p.parse().ok()).collect(),
        };
        return Ok(runtime.port_forward(request).await?.into_inner().url);
    }
    let container = answers::container(cri, &sandbox, request.first("container")).await?;
    let (container_id, tty) = (container.id, request.flag("tty"));
    let (stdin, stdout) = (request.flag("stdin"), request.flag("stdout"));
    // One stream of a terminal carries both; kubelet asks for no other either.
    let stderr = request.flag("stderr") && !tty;
    Ok(if kind == "exec" {
        let cmd = request.all("command").map(str::to_owned).collect();
        let request = cri::ExecRequest {
            container_id,
            cmd,
            tty,
            stdin,
            stdout,
            stderr,
        };
        runtime.exec(request).await?.into_inner().url
    } else {
        let request = cri::AttachRequest {
            container_id,
            tty,
            stdin,
            stdout,
            stderr,
        };
        runtime.attach(request).await?.into_inner().url
    })
}

/// Sends the request on to `url` and joins the two connections, until either direction has ended.
pub async fn pass_on(
    mut client: TcpStream,
    request: &Request,
    url: &str,
    upgrades: &Upgrades,
) -> anyhow::Result<()> {
    let target = url
        .strip_prefix("http://")
        .with_context(|| format!("the runtime's URL is not of http: {url}"))?;
    let (host, path) = target
        .split_once('/')
        .with_context(|| format!("no path in {url}"))?;
    let Some(protocol) = request.header("upgrade") else {
        let failure = Failure::new(400, "you must specify the header Upgrade".into());
        return reply(&mut client, Err(failure)).await;
    };
    let mut runtime = TcpStream::connect(host)
        .await
        .with_context(|| format!("connect to {host}"))?;
    let mut head = format!("{} /{path} HTTP/1.1\r\nHost: {host}\r\n", request.method);
    let kept = |name: &str| !name.eq_ignore_ascii_case("host") && !name.eq_ignore_ascii_case("authorization");
    for (name, value) in request.headers.iter().filter(|(name, _)| kept(name)) {
        head += &format!("{name}: {value}\r\n");
    }
    runtime.write_all((head + "\r\n").as_bytes()).await?;
    runtime.write_all(&request.rest).await?;

    let mut first = Vec::with_capacity(4096);
    ensure!(
        runtime.read_buf(&mut first).await? > 0,
        "the runtime closed the connection without an answer"
    );
    client.write_all(&first).await?;
    if first.starts_with(b"HTTP/1.1 101") {
        let count = match &protocol.to_ascii_lowercase()[..] {
            "spdy/3.1" => &upgrades.spdy,
            "websocket" => &upgrades.websocket,
            other => bail!("the runtime accepted an upgrade to {other}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
    // As the API server's and the kubelet's proxies do it: the end of either direction closes both connections.
    let (mut from_client, mut to_client) = client.split();
    let (mut from_runtime, mut to_runtime) = runtime.split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_runtime) => {}
        _ = tokio::io::copy(&mut from_runtime, &mut to_client) => {}
    }
    Ok(())
}
