//! Streaming connections that break the rules: each is ended, and the server, the container and everybody else go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::streaming::{attach_url, exec_url};
use super::{Pod, cases};
use crate::Context;
use crate::expect;
use crate::streams::{Channel, Over, Remote, ask, control, message, split};

cases!["bad_streams";
    tokens_are_good_once,
    requests_that_are_no_upgrades,
    frames_that_are_no_spdy => "the peer waits for streams that never come, for as long as a connection may be idle",
    frames_that_are_no_websocket => "the peer's release is older than v5.channel.k8s.io",
    half_open_connections,
    replayed_streams => "the peer lets a stream be opened twice, and waits for the others",
    a_storm_of_sizes,
    streams_that_make_no_sense => "the peer takes a terminal together with an error stream of its own",
];

use Channel::{Error, Resize, Stderr, Stdin, Stdout};

const V4: &[&str] = &["v4.channel.k8s.io"];
const V5: &[&str] = &["v5.channel.k8s.io"];
const ALL: &[Channel] = &[Error, Stdin, Stdout, Stderr];

/// After each of them: an exec over a stream works, and none of the commands is left.
async fn goes_on(c: &Context, id: &str) -> anyhow::Result<()> {
    let url = exec_url(&c.cri, id, &["/bin/echo", "fine"], &[Error, Stdout]).await?;
    let said = Remote::open(&url, Over::Spdy, &[Error, Stdout])
        .await?
        .rest()
        .await?;
    expect!(said.stdout, b"fine\n", "an exec afterwards");
    let begin = Instant::now();
    while c.cri.shell(id, "ps | grep -c '[c]at$' || true").await? != "0" {
        ensure!(
            begin.elapsed() < Duration::from_secs(20),
            "commands outlive their clients"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Reads to the end of a connection that the server must end; how much came.
async fn ended(socket: &mut TcpStream) -> anyhow::Result<usize> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut rest));
    // A reset is an end as well.
    let _ = read
        .await
        .context("the server does not end a broken connection")?;
    Ok(rest.len())
}

async fn tokens_are_good_once(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "token").await?;
    let id = pod.sleeper(&c).await?;
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let (status, _, first) = ask(&url, Over::Spdy, V4).await?;
    expect!(status, 101, "the first use");
    for over in crate::streams::BOTH {
        expect!(ask(&url, over, V4).await?.0, 404, "the second use over {over:?}");
    }
    drop(first);
    expect!(ask(&url, Over::Spdy, V4).await?.0, 404, "a use after the end");
    let (base, token) = url.rsplit_once('/').context("a URL without a token")?;
    ensure!(token.len() >= 8, "the token {token:?} can be guessed");
    let guessed = format!("{base}/{}", "A".repeat(token.len()));
    expect!(ask(&guessed, Over::Spdy, V4).await?.0, 404, "a guessed token");
    // Two at once: one of them wins.
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let (a, b) = tokio::join!(ask(&url, Over::Spdy, V4), ask(&url, Over::Spdy, V4));
    let (a, b) = (a?, b?);
    let mut both = [a.0, b.0];
    both.sort_unstable();
    expect!(both, [101, 404], "two uses at once");
    drop((a, b));
    // One kind of URL is no other.
    let url = attach_url(&c.cri, &id, &[Error, Stdout]).await?;
    expect!(
        ask(&url.replace("/attach/", "/exec/"), Over::Spdy, V4).await?.0,
        404,
        "an attach as an exec"
    );
    goes_on(&c, &id).await?;
    pod.end().await
}

async fn raw(url: &str, request: &[u8]) -> anyhow::Result<String> {
    let (host, _) = split(url)?;
    let mut socket = TcpStream::connect(host).await?;
    // The answer may come, and the connection go, before all is sent.
    let _ = socket.write_all(request).await;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(40), socket.read(&mut answer));
    let n = read.await.context("no answer to a bad request")?.unwrap_or(0);
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

async fn requests_that_are_no_upgrades(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "no-upgrade").await?;
    let id = pod.sleeper(&c).await?;
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
        "x".repeat(2 << 20)
    );
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    let cases: [(&str, &[u8]); 5] = [
        ("a long header", long.as_bytes()),
        ("many headers", many.as_bytes()),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("an odd method", b"DELETE /exec/x HTTP/1.1\r\nHost: x\r\n\r\n"),
        (
            "a path that leaves",
            b"GET /exec/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
    ];
    for (what, request) in cases {
        let answer = raw(&url, request).await?;
        ensure!(
            // A redirect to where nothing is, is no more than a no.
            answer.is_empty()
                || ["4", "301"].iter().any(|code| answer
                    .trim_start_matches("HTTP/")
                    .starts_with(&format!("1.1 {code}"))),
            "{what} was answered: {answer}"
        );
    }
    // The token was not spent by any of them.
    let said = {
        let mut remote = Remote::open(&url, Over::Spdy, ALL).await?;
        remote.end_input().await?;
        remote.rest().await?
    };
    expect!(said.exit_code()?, 0, "the right request after the wrong ones");
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let (status, ..) = ask(&url, Over::Spdy, &["v99.channel.k8s.io"]).await?;
    ensure!(
        (400..500).contains(&status),
        "an unknown protocol was answered with {status}"
    );
    goes_on(&c, &id).await?;
    pod.end().await
}

async fn frames_that_are_no_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "no-spdy").await?;
    let id = pod.sleeper(&c).await?;
    let bomb = control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &zlib_bomb()?].concat());
    let endless = [&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..], &vec![0; 1 << 20]].concat();
    let cases: [(&str, &[u8]); 7] = [
        ("text", b"GET / HTTP/1.1\r\n\r\n"),
        ("ones", &[0xff; 4096]),
        (
            "another version",
            &[0x80, 2, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        ),
        ("a control frame of 16 MB", &endless),
        (
            "headers that are no zlib",
            &control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9]),
        ),
        ("headers that inflate to 12 MiB", &bomb),
        ("a SYN_STREAM that is cut off", &control(1, &[0, 0])),
    ];
    for (what, bytes) in cases {
        let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
        let (status, _, mut socket) = ask(&url, Over::Spdy, V4).await?;
        expect!(status, 101, "the upgrade before {what}");
        let _ = socket.write_all(bytes).await;
        if what == "text" {
            // Read as the head of two megabytes of data, which never come.
            socket.shutdown().await?;
        }
        ended(&mut socket).await.context(what)?;
    }
    goes_on(&c, &id).await?;
    pod.end().await
}

/// A header block of a few KiB that becomes 12 MiB.
fn zlib_bomb() -> anyhow::Result<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..12 {
        encoder.write_all(&zeros)?;
    }
    Ok(encoder.finish()?)
}

async fn frames_that_are_no_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "no-websocket").await?;
    let id = pod.sleeper(&c).await?;
    let mut unmasked = vec![0x82, 2];
    unmasked.extend([0, b'x']);
    let endless = [
        &[
            0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4,
        ][..],
        &vec![0x55; 1 << 20],
    ]
    .concat();
    let cases: [(&str, &[u8]); 6] = [
        ("text", b"GET / HTTP/1.1\r\n\r\n"),
        ("a frame without a mask", &unmasked),
        ("an unknown opcode", &message(0x83, &[0, 1])),
        ("a ping of 200 bytes", &message(0x89, &[7; 200])),
        ("a continuation of nothing", &message(0x80, &[0, 1])),
        ("a frame of eight exabytes", &endless),
    ];
    for (what, bytes) in cases {
        let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
        let (status, _, mut socket) = ask(&url, Over::WebSocket, V5).await?;
        expect!(status, 101, "the upgrade before {what}");
        let _ = socket.write_all(bytes).await;
        if what == "a frame of eight exabytes" {
            // It may be passed on as it comes; then it ends with the client.
            socket.shutdown().await?;
        }
        ended(&mut socket).await.context(what)?;
    }
    goes_on(&c, &id).await?;
    pod.end().await
}

async fn half_open_connections(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "half-open").await?;
    let id = pod.sleeper(&c).await?;
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let (host, path) = split(&url)?;
    let mut kept = Vec::new();
    // Connections that say nothing, half a request, and half of what an upgrade needs.
    for beginning in [
        String::new(),
        format!("POST {path} HT"),
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n"),
    ] {
        for _ in 0..20 {
            let mut socket = TcpStream::connect(host).await?;
            socket.write_all(beginning.as_bytes()).await?;
            kept.push(socket);
        }
    }
    // An upgrade whose streams never come, and one with half of them.
    for channels in [&[][..], &[Error], &[Error, Stdin]] {
        let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
        if channels.is_empty() {
            kept.push(ask(&url, Over::Spdy, V4).await?.2);
        } else {
            let remote = Remote::open(&url, Over::Spdy, channels).await?;
            drop(remote);
        }
    }
    // They hold up nobody.
    let begin = Instant::now();
    goes_on(&c, &id).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "others waited {:?}",
        begin.elapsed()
    );
    // One that behaves is served beside them.
    let url = exec_url(
        &c.cri,
        &id,
        &["/bin/sh", "-c", "sleep 0.3; echo late"],
        &[Error, Stdout],
    )
    .await?;
    let said = Remote::open(&url, Over::Spdy, &[Error, Stdout])
        .await?
        .rest()
        .await?;
    expect!(said.stdout, b"late\n", "output that comes late");
    drop(kept);
    pod.end().await
}

async fn replayed_streams(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "replayed").await?;
    let id = pod.sleeper(&c).await?;
    // What one connection has sent, byte for byte, on another: its token is spent; on a good token the streams are twice
    // the same.
    let url = exec_url(&c.cri, &id, &["/bin/cat"], ALL).await?;
    let (status, _, mut socket) = ask(&url, Over::Spdy, V4).await?;
    expect!(status, 101, "the upgrade");
    let plain = [
        &1u32.to_be_bytes()[..],
        &10u32.to_be_bytes(),
        b"streamtype",
        &5u32.to_be_bytes(),
        b"error",
    ]
    .concat();
    let length = plain.len() as u16;
    let block = [
        &[0x78, 1, 0][..],
        &length.to_le_bytes(),
        &(!length).to_le_bytes(),
        &plain,
        &[0, 0, 0, 0xff, 0xff],
    ]
    .concat();
    let syn = control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &block].concat());
    for _ in 0..3 {
        let _ = socket.write_all(&syn).await;
    }
    ended(&mut socket)
        .await
        .context("the same SYN_STREAM three times")?;
    expect!(ask(&url, Over::Spdy, V4).await?.0, 404, "the replayed request");
    goes_on(&c, &id).await?;
    pod.end().await
}

async fn a_storm_of_sizes(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "resize-storm").await?;
    let id = pod.sleeper(&c).await?;
    let script = "echo up; read line; stty size; exit 0";
    let channels = [Error, Stdin, Stdout, Resize];
    let url = exec_url(&c.cri, &id, &["/bin/sh", "-c", script], &channels).await?;
    let mut remote = Remote::open(&url, Over::Spdy, &channels).await?;
    remote.until("up").await?;
    for n in 0..10_000u16 {
        remote.resize(1 + n % 500, 24).await?;
    }
    for rubbish in [
        "{\"Width\":",
        "[]",
        "{\"Width\":99999999999,\"Height\":-1}",
        "\u{0}\u{0}",
    ] {
        remote.send(Resize, rubbish.as_bytes()).await?;
    }
    // The server and the container answer all the while.
    let begin = Instant::now();
    goes_on(&c, &id).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "others waited {:?}",
        begin.elapsed()
    );
    remote.send(Stdin, b"\n").await?;
    remote.rest().await?;
    pod.end().await
}

async fn streams_that_make_no_sense(c: Arc<Context>) -> anyhow::Result<()> {
    use k8s_cri::v1 as cri;
    use tonic::Code;
    let pod = Pod::run(&c, "no-sense").await?;
    let id = pod.sleeper(&c).await?;
    let exec = |edit: &dyn Fn(&mut cri::ExecRequest)| {
        let mut request = cri::ExecRequest {
            container_id: id.clone(),
            cmd: vec!["/bin/true".into()],
            tty: false,
            stdin: false,
            stdout: true,
            stderr: false,
        };
        edit(&mut request);
        let mut runtime = c.cri.runtime.clone();
        async move { runtime.exec(request).await }
    };
    let invalid = [Code::InvalidArgument];
    let both = exec(&|r| {
        r.tty = true;
        r.stderr = true;
    });
    crate::cri::must_fail(both.await, &invalid, &["stderr"])?;
    crate::cri::must_fail(exec(&|r| r.stdout = false).await, &invalid, &["stdout"])?;
    crate::cri::must_fail(exec(&|r| r.cmd.clear()).await, &invalid, &["cmd"])?;
    crate::cri::must_fail(
        exec(&|r| r.container_id = "0".repeat(64)).await,
        &[Code::NotFound],
        &["0000"],
    )?;
    let forward = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![70_000],
    };
    crate::cri::must_fail(
        c.cri.runtime.clone().port_forward(forward).await,
        &invalid,
        &["port"],
    )?;
    // No input was asked for: there is none to attach to.
    let attach = cri::AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    if let Ok(reply) = c.cri.runtime.clone().attach(attach).await {
        let url = reply.into_inner().url;
        let mut remote = Remote::open(&url, Over::Spdy, &[Error, Stdin, Stdout]).await?;
        // Input that goes nowhere ends nothing.
        let _ = remote.send(Stdin, b"x\n").await;
    }
    goes_on(&c, &id).await?;
    pod.end().await
}
