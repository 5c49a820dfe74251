//! A real `kubectl` (`--kubectl`) against the stub API server: each stream over WebSocket and over SPDY.

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_conformance::stub::StubApi;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::{Pod, cases};
use crate::Context;
use crate::cri::container_config;
use crate::expect;

cases!["kubectl";
    exec_over_websocket => "the peer's streams have no v5.channel.k8s.io, and kubectl falls back to SPDY",
    exec_over_spdy,
    input_of_20_mb_over_websocket => "the peer's streams have no v5.channel.k8s.io, and kubectl falls back to SPDY",
    input_of_20_mb_over_spdy,
    output_that_is_read_late_over_websocket => "the peer's streams have no v5.channel.k8s.io, and kubectl falls back to SPDY",
    output_that_is_read_late_over_spdy,
    terminal_over_websocket => "the peer's streams have no v5.channel.k8s.io, and kubectl falls back to SPDY",
    terminal_over_spdy,
    attach_over_websocket => "the peer's streams have no v5.channel.k8s.io, and kubectl falls back to SPDY",
    attach_over_spdy,
    port_forward_over_websocket => "the peer has no SPDY over WebSocket, and kubectl falls back to SPDY",
    port_forward_over_spdy,
    logs,
    what_is_not_there,
];

const INPUT: usize = 20 << 20;

#[derive(Clone, Copy)]
enum Transport {
    WebSocket,
    Spdy,
}
use Transport::{Spdy, WebSocket};

/// The stub and the kubectl that speaks to it.
struct Client {
    api: StubApi,
    program: std::path::PathBuf,
    scratch: std::path::PathBuf,
    transport: Transport,
}

impl Client {
    async fn start(c: &Context, transport: Transport) -> anyhow::Result<Self> {
        Ok(Self {
            program: c.kubectl()?.to_owned(),
            api: StubApi::start(c.cri.clone()).await?,
            scratch: c.scratch.join("kubectl"),
            transport,
        })
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["--server", &self.api.url, "--namespace", "conformance"];
        all.extend(words);
        all
    }

    fn command(&self, program: &std::path::Path, words: &[&str]) -> Command {
        let wanted = match self.transport {
            WebSocket => "true",
            Spdy => "false",
        };
        let mut command = Command::new(program);
        command
            .args(words)
            .env("HOME", &self.scratch)
            .env("KUBECONFIG", self.scratch.join("none"))
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", wanted)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", wanted)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        self.command(&self.program, &self.words(words))
    }

    /// Runs kubectl with `input` to its end.
    async fn run(&self, words: &[&str], input: &[u8]) -> anyhow::Result<Output> {
        run(self.kubectl(words), input).await
    }

    /// Every upgrade so far was to the transport that was asked for, and there were as many.
    fn upgraded(&self, times: usize) -> anyhow::Result<()> {
        let wanted = match self.transport {
            WebSocket => (0, times),
            Spdy => (times, 0),
        };
        expect!(self.api.upgraded(), wanted, "upgrades to SPDY and to WebSocket");
        Ok(())
    }
}

async fn run(mut command: Command, input: &[u8]) -> anyhow::Result<Output> {
    let mut child = command.spawn().context("start kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl's stdin")?;
    let feed = async {
        // A program that reads no input may have ended before all is written.
        let _broken_pipe = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    Ok(output?)
}

fn shown(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

async fn exec_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    exec(&c, WebSocket).await
}
async fn exec_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    exec(&c, Spdy).await
}

async fn exec(c: &Context, transport: Transport) -> anyhow::Result<()> {
    let client = Client::start(c, transport).await?;
    let pod = Pod::run(c, "kubectl-exec").await?;
    pod.sleeper(c).await?;
    let script = "echo out; echo err >&2; exit 7";
    let output = client
        .run(&["exec", "kubectl-exec", "--", "sh", "-c", script], b"")
        .await?;
    let (code, out, err) = shown(&output);
    expect!(
        (code, &out[..]),
        (Some(7), "out\n"),
        "exit code and output ({err})"
    );
    ensure!(
        err.contains("err\n") && err.contains("exit code 7"),
        "stderr: {err}"
    );
    let output = client.run(&["exec", "kubectl-exec", "--", "true"], b"").await?;
    expect!(shown(&output), (Some(0), String::new(), String::new()), "true");
    client.upgraded(2)?;
    pod.end().await
}

async fn input_of_20_mb_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    input_of_20_mb(&c, WebSocket).await
}
async fn input_of_20_mb_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    input_of_20_mb(&c, Spdy).await
}

async fn input_of_20_mb(c: &Context, transport: Transport) -> anyhow::Result<()> {
    let client = Client::start(c, transport).await?;
    let pod = Pod::run(c, "kubectl-input").await?;
    pod.sleeper(c).await?;
    // The same in every run, and nothing that repeats within it.
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut input = Vec::with_capacity(INPUT);
    while input.len() < INPUT {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        input.extend_from_slice(&word.to_be_bytes());
    }
    let output = client
        .run(&["exec", "-i", "kubectl-input", "--", "wc", "-c"], &input)
        .await?;
    let (code, out, err) = shown(&output);
    expect!(
        (code, out.trim()),
        (Some(0), &INPUT.to_string()[..]),
        "bytes that arrived ({err})"
    );
    let output = client
        .run(&["exec", "-i", "kubectl-input", "--", "cat"], &input)
        .await?;
    ensure!(
        output.stdout == input,
        "{} of {INPUT} bytes came back, {:?} {}",
        output.stdout.len(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    client.upgraded(2)?;
    pod.end().await
}

async fn output_that_is_read_late_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    output_that_is_read_late(&c, WebSocket).await
}
async fn output_that_is_read_late_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    output_that_is_read_late(&c, Spdy).await
}

/// The program has ended long before its output is read. kubectl sends a ping each five seconds: a proxy whose side of the connection
/// was closed answers it by a reset, and what it still held is lost.
async fn output_that_is_read_late(c: &Context, transport: Transport) -> anyhow::Result<()> {
    const LATE: Duration = Duration::from_secs(7);
    let client = Client::start(c, transport).await?;
    let pod = Pod::run(c, "kubectl-late").await?;
    pod.sleeper(c).await?;
    let words = ["exec", "kubectl-late", "--", "head", "-c", "1500000", "/dev/zero"];
    let mut kubectl = client.kubectl(&words).spawn()?;
    let mut from = kubectl.stdout.take().context("kubectl's stdout")?;
    tokio::time::sleep(LATE).await;
    let mut output = Vec::new();
    from.read_to_end(&mut output).await?;
    expect!(output.len(), 1_500_000, "bytes that were read late");
    expect!(kubectl.wait().await?.code(), Some(0), "exit code");
    client.upgraded(1)?;
    pod.end().await
}

async fn terminal_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    terminal(&c, WebSocket).await
}
async fn terminal_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    terminal(&c, Spdy).await
}

/// kubectl asks for a terminal only if it has one: script(1) gives it.
async fn terminal(c: &Context, transport: Transport) -> anyhow::Result<()> {
    let client = Client::start(c, transport).await?;
    let pod = Pod::run(c, "kubectl-tty").await?;
    pod.sleeper(c).await?;
    // The size is sent beside the command, and may come a moment after it has begun: until then stty says nothing.
    let shell = "tty; n=0; until size=$(stty size 2>/dev/null); [ $n = 100 -o -n \"$size\" ]; do n=$((n + 1)); sleep 0.05; done; \
        echo size $size after $n; exit 5";
    let line = format!(
        "stty rows 33 cols 101; exec '{}' {} sh -c '{shell}'",
        client.program.display(),
        client.words(&["exec", "-it", "kubectl-tty", "--"]).join(" ")
    );
    let script = client.command("script".as_ref(), &["-qefc", &line, "/dev/null"]);
    let (code, out, err) = shown(&run(script, b"").await?);
    ensure!(
        out.contains("/dev/pts/") && out.contains("size 33 101 after"),
        "terminal and size: {out} {err}"
    );
    expect!(code, Some(5), "exit code ({out})");
    client.upgraded(1)?;
    pod.end().await
}

async fn attach_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    attach(&c, WebSocket).await
}
async fn attach_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    attach(&c, Spdy).await
}

async fn attach(c: &Context, transport: Transport) -> anyhow::Result<()> {
    let client = Client::start(c, transport).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(c, "kubectl-attach").await?;
    let script = "read go; while read line; do echo got $line; echo err $line >&2; done; echo no more input";
    let mut config = container_config("reader", &image, &["/bin/sh", "-c", script]);
    (config.stdin, config.stdin_once) = (true, true);
    let id = pod.start(&config).await?;
    let output = client
        .run(&["attach", "-i", "kubectl-attach"], b"go\nfirst\nsecond\n")
        .await?;
    let (code, out, err) = shown(&output);
    expect!(
        (code, &out[..]),
        (Some(0), "got first\ngot second\nno more input\n"),
        "exit code and output ({err})"
    );
    ensure!(err.contains("err first\nerr second\n"), "stderr: {err}");
    let status = c.cri.exited(&id, Duration::from_secs(10)).await?;
    expect!(status.exit_code, 0, "the container's exit code");
    client.upgraded(1)?;
    pod.end().await
}

async fn port_forward_over_websocket(c: Arc<Context>) -> anyhow::Result<()> {
    port_forward(&c, WebSocket).await
}
async fn port_forward_over_spdy(c: Arc<Context>) -> anyhow::Result<()> {
    port_forward(&c, Spdy).await
}

async fn port_forward(c: &Context, transport: Transport) -> anyhow::Result<()> {
    let client = Client::start(c, transport).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(c, "kubectl-forward").await?;
    let script = "mkdir -p /tmp/www; head -c 5000000 /dev/zero >/tmp/www/big; echo small >/tmp/www/small; exec httpd -f -p 8080 -h /tmp/www";
    let id = pod
        .start(&container_config("server", &image, &["/bin/sh", "-c", script]))
        .await?;
    c.cri
        .shell(
            &id,
            "until wget -qO /dev/null 127.0.0.1:8080/small; do sleep 0.1; done",
        )
        .await?;
    let mut forward = client
        .kubectl(&["port-forward", "kubectl-forward", ":8080"])
        .spawn()?;
    let mut lines = BufReader::new(forward.stdout.take().context("kubectl's stdout")?).lines();
    let line = lines.next_line().await?.context("port-forward ended at once")?;
    let port = line
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.split(' ').next())
        .with_context(|| format!("no port in {line}"))?;
    let address = format!("127.0.0.1:{port}");
    for _ in 0..3 {
        expect!(
            &fetch(&address, "/small").await?[..],
            b"small\n",
            "the small file"
        );
    }
    expect!(
        fetch(&address, "/big").await?.len(),
        5_000_000,
        "bytes of the big file"
    );
    forward.start_kill()?;
    forward.wait().await?;
    client.upgraded(1)?;
    pod.end().await
}

/// The body of an answer to HTTP/1.0.
async fn fetch(address: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .with_context(|| format!("no answer for {path}: {} bytes", answer.len()))?;
    ensure!(
        answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200"),
        "{path}: {}",
        String::from_utf8_lossy(&answer[..end])
    );
    Ok(answer.split_off(end + 4))
}

async fn logs(c: Arc<Context>) -> anyhow::Result<()> {
    let client = Client::start(&c, WebSocket).await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "kubectl-logs").await?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; sleep 1; echo late";
    pod.start(&container_config("writer", &image, &["/bin/sh", "-c", script]))
        .await?;
    let (code, out, err) = shown(&client.run(&["logs", "-f", "kubectl-logs"], b"").await?);
    expect!(
        (code, out),
        (Some(0), "x".repeat(40000) + "\nlate\n"),
        "the followed log ({err})"
    );
    let (code, out, err) = shown(&client.run(&["get", "pods", "-o", "name"], b"").await?);
    expect!(
        (code, &out[..]),
        (Some(0), "pod/kubectl-logs\n"),
        "the pods ({err})"
    );
    pod.end().await
}

async fn what_is_not_there(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "kubectl-missing").await?;
    pod.sleeper(&c).await?;
    for transport in [WebSocket, Spdy] {
        let client = Client::start(&c, transport).await?;
        for (words, wanted) in [
            (&["exec", "nobody", "--", "true"][..], "not found"),
            (
                &["exec", "kubectl-missing", "--", "/no/such/program"][..],
                "/no/such/program",
            ),
            (&["logs", "nobody"][..], "not found"),
        ] {
            let (code, _, err) = shown(&client.run(words, b"").await?);
            ensure!(
                code != Some(0) && err.contains(wanted),
                "{words:?}: {code:?} {err}"
            );
        }
    }
    pod.end().await
}
